"""Methods that feed each other: planned, run piece by piece, and loaded as a whole program."""
