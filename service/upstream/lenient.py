"""Decodes untrusted JSON: strictly, and where that fails, as far as it can be read.

A byte order mark, NaN and Infinity, lone surrogates, control characters, text that is not UTF-8,
great depth, a cut end and bytes behind the end hide nothing else of an answer.
"""

import contextlib
import json
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

LOST = "\ufffd"  # In place of a character that is a lone surrogate or no UTF-8.
DEPTH_MAX = 64  # What is nested deeper becomes null.
DIGITS_MAX = 1_000  # A longer integer becomes null.
TOKENS_MAX = 200_000  # Of a body that has to be repaired; what follows counts as cut.
VALUES_MAX = 500_000  # A body with more values counts as cut.
VALUES_LENIENT_MAX = 200_000  # So does one that is no strict JSON and has more than these.
_BEFORE_VALUES = (",", "[", "{")
_BEFORE_JSON = ("{", "[")
# Possessive, so that it takes linear time. A lone quotation mark begins a text without an end.
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|"|[\[\]{},:]|[^\s\[\]{},:"]++', re.DOTALL)
_CLOSING = {"{": "}", "[": "]"}
_OPENING = {"}": "{", "]": "["}


class Decoded(NamedTuple):
    """A JSON object or array, and whether the body held all of it."""

    value: dict[str, Any] | list[Any]
    is_whole: bool


def decode(body: bytes) -> Decoded | None:
    """Return the JSON object or array of a body, or of a text that is all of it; else None."""
    try:
        # A body with more values is not decoded whole: nothing, which is no JSON, stands for it.
        is_readable = len(body) <= VALUES_MAX or _count_values(body) <= VALUES_MAX
        value, is_whole = msgspec.json.decode(body if is_readable else b""), True
    except (ValueError, RecursionError):
        value, is_whole = _decode_leniently(_text(body))
    if not isinstance(value, dict | list):
        value = opened(value) if isinstance(value, str) else None  # A body may be a text of JSON.
        if not isinstance(value, dict | list):
            return None
    # Most bodies have too few brackets to be nested so deeply.
    is_flat = is_whole and body.count(b"{") + body.count(b"[") <= DEPTH_MAX
    return Decoded(value if is_flat else _prune(value), is_whole)


def opened(text: str) -> Any:
    """Return what a text holds as JSON; the text itself if it holds no object and no list."""
    if not text.lstrip().startswith(_BEFORE_JSON):
        return text
    decoded = decode(text.encode())
    return decoded.value if decoded and decoded.is_whole else text


def texts_of_json(value: Any) -> Iterator[str]:
    """Yield each text within decoded JSON that begins as an object or a list."""
    open_ = [value]
    while open_:
        value = open_.pop()
        if isinstance(value, list | dict):
            open_ += value if isinstance(value, list) else value.values()
        elif isinstance(value, str) and value.lstrip().startswith(_BEFORE_JSON):
            yield value


def _text(body: bytes) -> str:
    encoding = json.detect_encoding(body)  # Also by a byte order mark.
    return body.decode("utf-8-sig" if encoding == "utf-8" else encoding, "replace").lstrip()


def _decode_leniently(text: str) -> tuple[Any, bool]:
    decoder = json.JSONDecoder(
        strict=False,
        parse_constant=lambda _: None,
        parse_float=_finite,
        # Python refuses to read longer ones.
        parse_int=lambda digits: int(digits) if len(digits) <= DIGITS_MAX else None,
    )
    if sum(map(text.count, _BEFORE_VALUES)) <= VALUES_LENIENT_MAX:
        with contextlib.suppress(ValueError, RecursionError):
            return _without_surrogates(decoder.raw_decode(text)[0]), True
    repaired, is_whole = _repair(text)
    try:
        return _without_surrogates(decoder.raw_decode(repaired)[0]), is_whole
    except ValueError:
        return None, False


def _count_values(body: bytes) -> int:
    """Return about how many values a body has: a mark stands before each; texts may hold more."""
    return sum(body.count(mark.encode()) for mark in _BEFORE_VALUES)


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _without_surrogates(value: Any, depth: int = 0) -> Any:
    """Replace lone surrogates by LOST, and by null what is nested too deeply."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if not isinstance(value, dict | list):
        return value
    if depth > DEPTH_MAX:
        return None
    if isinstance(value, list):
        return [_without_surrogates(item, depth + 1) for item in value]
    pairs = value.items()
    return {_without_surrogates(key): _without_surrogates(v, depth + 1) for key, v in pairs}


def _repair(text: str) -> tuple[str, bool]:
    """Return the JSON before the cut, with every bracket closed, and whether that is all.

    It ends behind a value: before a comma, behind an opening or a closing bracket. Values that are
    nested too deeply become null here too, because json.loads is recursive.
    """
    parts: list[str] = []
    end, open_at_end = 0, ""
    open_: list[str] = []
    for part in _tokens(text):
        if part in _CLOSING:
            open_.append(part)
            if len(open_) > DEPTH_MAX:
                parts += ["null"] if len(open_) == DEPTH_MAX + 1 else []
                continue
        elif part in _OPENING:
            if not open_ or open_.pop() != _OPENING[part]:
                break
            if len(open_) >= DEPTH_MAX:
                continue
        elif len(open_) > DEPTH_MAX:
            continue
        if part == ",":
            end, open_at_end = len(parts), "".join(open_)
        parts.append(part)
        if part in _CLOSING or part in _OPENING:
            end, open_at_end = len(parts), "".join(open_)
        if not open_:
            break
    closing = "".join(_CLOSING[bracket] for bracket in reversed(open_at_end))
    return " ".join(parts[:end]) + closing, end > 0 and not closing


def _tokens(text: str) -> Iterator[str]:
    for count, match in enumerate(_TOKEN.finditer(text)):
        if count == TOKENS_MAX or match[0] == '"':
            return
        yield match[0]


def _prune(value: dict[str, Any] | list[Any]) -> dict[str, Any] | list[Any]:
    """Replace values that are nested deeper than DEPTH_MAX by null, in place."""
    level: list[Any] = [value]
    for depth in range(1, DEPTH_MAX + 1):
        below: list[Any] = []
        for container in level:
            entries = container.items() if isinstance(container, dict) else enumerate(container)
            nested = [(key, child) for key, child in entries if isinstance(child, dict | list)]
            below.extend(child for _, child in nested)
            for key, _ in nested if depth == DEPTH_MAX else ():
                container[key] = None
        if not below:
            break
        level = below
    return value
