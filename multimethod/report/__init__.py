"""What the other rooms found, as tables, text and JSON."""
