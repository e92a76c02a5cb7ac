"""Tests of what upstream says and sells."""
