"""Attacks on the promises from outside, with real processes, sockets and files."""
