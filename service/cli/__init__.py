"""The command line: every way to run genhook, and clients of its API."""
