"""The forms of a webhook: the whole event, a thin one, or CloudEvents 1.0 in binary mode."""

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

import msgspec

Payload = Literal["full", "thin", "cloudevents"]
CLOUDEVENTS_SOURCE = "urn:genhook:events"
CACHED = 256  # Events whose forms are kept, for their other subscribers.
CACHED_BYTES_MAX = 64 * 1024
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Form(msgspec.Struct, frozen=True):
    """The bytes that are signed and sent, and the headers that belong to them."""

    body: bytes
    headers: Mapping[str, str]


class _About(msgspec.Struct):
    """What is read of an event's data."""

    id: str | None = None
    status: str | None = None


class _Event(msgspec.Struct):
    """An event with its data as it was written."""

    id: str
    type: str
    timestamp: str
    data: msgspec.Raw


def form(payload: Payload, event: bytes) -> Form:
    """`event`, as it is stored, in the form that a subscriber asked for."""
    if payload == "full":
        return Form(event, _NO_HEADERS)
    make = _made if len(event) > CACHED_BYTES_MAX else _kept
    return make(payload, event)


def _made(payload: Payload, event: bytes) -> Form:
    decoded = msgspec.json.decode(event, type=_Event)
    return _thin(event, decoded) if payload == "thin" else _cloud_event(decoded)


_kept = lru_cache(maxsize=CACHED)(_made)


def _thin(event: bytes, decoded: _Event) -> Form:
    """Which generation, and how it stands; an event about anything else is small already."""
    if not decoded.type.startswith("generation."):
        return Form(event, _NO_HEADERS)
    about = msgspec.json.decode(decoded.data, type=_About)
    thin = {
        "id": decoded.id,
        "type": decoded.type,
        "timestamp": decoded.timestamp,
        "data": {"id": about.id, "status": about.status},
    }
    return Form(msgspec.json.encode(thin), _NO_HEADERS)


def _cloud_event(decoded: _Event) -> Form:
    """The HTTP binding's binary content mode: the data is the body, the rest are headers."""
    headers = {
        "ce-specversion": "1.0",
        "ce-id": decoded.id,
        "ce-source": CLOUDEVENTS_SOURCE,
        "ce-type": decoded.type,
        "ce-time": decoded.timestamp,
    }
    if decoded.type.startswith("generation."):
        headers["ce-subject"] = msgspec.json.decode(decoded.data, type=_About).id or ""
    return Form(bytes(decoded.data), headers)
