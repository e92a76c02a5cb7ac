"""Texts that UTF-8 cannot hold, such as names of files and variables with other bytes (PEP 383)."""

from typing import Any


def encodable(value: Any) -> Any:
    r"""Return a value of dicts, lists and texts that JSON can hold: a byte becomes `\udcff`."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {encodable(name): encodable(child) for name, child in value.items()}
    if isinstance(value, list):
        return [encodable(child) for child in value]
    return value
