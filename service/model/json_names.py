"""Finds names that an object of JSON has twice: readers differ in which value they take.

RFC 8259, 4. msgspec takes the last one.
"""

import json
from typing import Any

import msgspec


def find_repeated(body: bytes, decoded: Any) -> str | None:
    """Return a name that an object of the body has twice, also within a text that is all of it.

    `decoded` holds each name once. If the body has no more colons, it is not read again: a colon
    stands behind each name, and those in texts are the same, unless one is written as an escape.
    """
    if b"\\u003a" not in body.lower() and msgspec.json.encode(decoded).count(b":") == body.count(
        b":"
    ):
        return None
    try:
        text = json.loads(body, object_pairs_hook=_check_names)
        if isinstance(text, str):
            json.loads(text, object_pairs_hook=_check_names)
    except _RepeatedNameError as error:
        return str(error)
    except (ValueError, RecursionError):
        return None  # It is no strict JSON, and nobody else reads it at all.
    return None


class _RepeatedNameError(Exception):
    """An object has the name twice."""


def _check_names(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) == len(pairs):
        return
    names: set[str] = set()
    for name, _ in pairs:
        if name in names:
            raise _RepeatedNameError(name)
        names.add(name)
