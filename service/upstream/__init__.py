"""Upstream: its catalogue of models, its wire format, and a client."""
