"""Promises held against drawn histories."""
