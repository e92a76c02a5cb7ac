"""Measures genhook against the limits of the machine and against other ways to do the same."""
