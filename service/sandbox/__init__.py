"""A simulation of API in One, for `genhook sandbox`, `genhook demo` and tests."""

from service.sandbox.app import create_app

__all__ = ["create_app"]
