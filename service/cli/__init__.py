"""The command line: commands that run genhook, and commands that call its API."""
