"""One POST to a checked address."""
