"""Reads one value of upstream's JSON as a text, an id or a number, each within its bounds."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from service.upstream import lenient

MAX_TEXT_CHARS = 500
MAX_ID_CHARS = 512
NUMBER_MAX = 2**53  # Every reader of JSON and every column holds an integer up to this.

JsonObject = dict[str, Any]


def values_of(objects: Iterable[JsonObject], keys: Sequence[str]) -> Iterator[Any]:
    """Yield the values under these keys of these objects, None for a missing key."""
    return (object_.get(key) for object_ in objects for key in keys)


def first_text(values: Iterable[Any]) -> str | None:
    """Return the first of these values that is a text."""
    return next(filter(None, map(text_of, values)), None)


def text_of(value: Any, chars: int = MAX_TEXT_CHARS) -> str | None:
    """Return a text without the spaces around it, or an integer as text; else None."""
    text = value if type(value) is str else _written(value)
    return text.strip()[:chars] or None if text else None


def id_of(value: Any) -> str | None:
    """Return an id as written; None if no path can hold it. Ids are opaque: any text may be one."""
    text = value if type(value) is str else _written(value)
    if text is None or len(text) > MAX_ID_CHARS or not text.strip():
        return None
    # A server or a proxy would read dots as steps in the path, also encoded. An id that lost a
    # character is another one.
    return None if text in (".", "..") or lenient.LOST in text else text


def _written(value: Any) -> str | None:
    # Python refuses to write a longer one.
    is_short = type(value) is int and value.bit_length() <= 4 * lenient.DIGITS_MAX
    return str(value) if is_short else None


def number_of(value: Any) -> int | None:
    """Return an integer, clamped to what every column holds."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        return int(value)
    return clamp(value) if type(value) is int else None


def clamp(number: int | None) -> int | None:
    """Return an untrusted number within the range that every reader of JSON can hold."""
    return None if number is None else max(-NUMBER_MAX, min(number, NUMBER_MAX))
