"""Static projections and a nested matrix product with two dynamic dims, in one program."""
