"""Finds names that an object of JSON has twice: readers differ in which value they take.

RFC 8259, 4. msgspec takes the last one.
"""

import json
from collections import Counter
from functools import partial
from typing import Any

import msgspec


def find_repeated(body: bytes, decoded: Any) -> str | None:
    """Return a name that an object of the body has twice; also if the body is a text of JSON.

    In `decoded` each object has each name once. A colon stands behind each name, so a body with as
    many colons has none twice and is not read again; unless a colon in a text may be written as an
    escape, which UTF-16 (it has zeros) and a text of JSON may hide.

    ValueError or RecursionError if that cannot be found out, as of a body that is no UTF-8.
    """
    is_plain = body.lstrip().startswith((b"{", b"[")) and b"\0" not in body
    may_escape_colons = not is_plain or b"\\u003a" in body.lower()
    if not may_escape_colons and msgspec.json.encode(decoded).count(b":") == body.count(b":"):
        return None
    try:
        text = _read(body)
        if isinstance(text, str):
            _read(text)
    except _RepeatedNameError as error:
        return str(error)
    return None


class _RepeatedNameError(Exception):
    """An object has the name twice."""


def _check_names(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) < len(pairs):
        raise _RepeatedNameError(Counter(name for name, _ in pairs).most_common(1)[0][0])


# Control characters are read, and integers of any length, which Python refuses to compute.
_read = partial(json.loads, object_pairs_hook=_check_names, parse_int=str, strict=False)
