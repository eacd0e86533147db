"""Two Python methods of one model as two methods of one program, sharing their weights."""
