"""Measures genhook against its limits and against what people use instead."""
