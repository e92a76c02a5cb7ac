"""The HTTP API: one module per resource, one table of routes."""
