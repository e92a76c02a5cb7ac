"""Cuts secrets out of decoded JSON, before anybody else sees it."""

import functools
import re
import urllib.parse
from collections.abc import Collection
from typing import Any

REDACTED = "[redacted]"
DEPTH_MAX = 64  # What is deeper is replaced whole.

_HIDDEN_KEYS = """
    callbackurl webhook webhookurl webhooksecret webhookhmackey notifyurl secret apikey
    authorization accesstoken token password
"""
_HIDDEN = frozenset(_HIDDEN_KEYS.split())


def redact(value: Any, needles: Collection[str]) -> Any:
    """Return decoded JSON without secrets: "[redacted]" for each needle and each secret's key.

    A needle is also found percent-encoded, and as it stands in JSON within a string.
    """
    return _redact(value, _pattern(tuple(needles)), DEPTH_MAX)


@functools.lru_cache(maxsize=8)
def _pattern(needles: tuple[str, ...]) -> re.Pattern[str]:
    """Every form of every needle, the longest first; nothing at all where there is none."""
    forms = {form for needle in needles if needle for form in _forms(needle)}
    ordered = sorted(forms, key=lambda form: (-len(form), form))
    return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")


def _forms(needle: str) -> tuple[str, ...]:
    return needle, urllib.parse.quote(needle, safe=""), needle.replace("/", "\\/")


def _redact(value: Any, forms: re.Pattern[str], depth: int) -> Any:
    if isinstance(value, str):
        return forms.sub(REDACTED, value)
    if not isinstance(value, dict | list):
        return value
    if depth == 0:
        return REDACTED
    if isinstance(value, list):
        return [_redact(item, forms, depth - 1) for item in value]
    return {
        _redact(key, forms, depth - 1): REDACTED
        if _is_secret(key, child)
        else _redact(child, forms, depth - 1)
        for key, child in value.items()
    }


def _is_secret(key: str, child: Any) -> bool:
    # `token` may also be a number: how many were used.
    return key.replace("_", "").replace("-", "").lower() in _HIDDEN and not isinstance(
        child, int | float | None
    )
