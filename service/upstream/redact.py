"""Cuts secrets out of decoded JSON, before anybody else sees it."""

import urllib.parse
from collections.abc import Collection
from typing import Any

from service.upstream import shapes

REDACTED = "[redacted]"

_HIDDEN_KEYS = """
    callbackurl webhook webhookurl webhooksecret webhookhmackey notifyurl secret apikey
    authorization accesstoken token password
"""
_HIDDEN = frozenset(_HIDDEN_KEYS.split())


def redact(value: Any, needles: Collection[str]) -> Any:
    """Return decoded JSON without secrets: "[redacted]" for each needle and each secret's key.

    A needle is also found percent-encoded, and as it stands in JSON within a string.
    """
    forms = {form for needle in needles if needle for form in _forms(needle)}
    return _redact(value, sorted(forms, key=len, reverse=True), shapes.MAX_DEPTH)


def _forms(needle: str) -> tuple[str, ...]:
    return needle, urllib.parse.quote(needle, safe=""), needle.replace("/", "\\/")


def _redact(value: Any, forms: list[str], depth: int) -> Any:
    if isinstance(value, str):
        for form in forms:
            value = value.replace(form, REDACTED)
        return value
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
