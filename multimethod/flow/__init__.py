"""Methods that feed each other: planned, scheduled, run, and loaded as a whole program."""
