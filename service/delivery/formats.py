"""The formats of a webhook: the whole event, a thin one, or CloudEvents 1.0 in binary mode."""

from collections.abc import Mapping
from functools import lru_cache

import msgspec

CACHED = 256  # Formatted events that are kept for other subscribers of the same event.
CACHED_BYTES_MAX = 64 * 1024


class Message(msgspec.Struct, frozen=True):
    """The body that is signed and sent, and headers that are sent with it."""

    body: bytes
    headers: Mapping[str, str] = {}


class _Summary(msgspec.Struct):
    """The part of an event's data that is read here."""

    id: str | None = None
    status: str | None = None


class _Event(msgspec.Struct):
    """An event whose data stays as it was encoded, unless it is replaced."""

    id: str
    type: str
    timestamp: str
    data: msgspec.Raw


def format_event(payload: str, event: bytes) -> Message:
    """Return `event`, as it is stored, in the format of a `Subscriber.payload`."""
    if payload == "full":
        return Message(event)
    make = _format if len(event) > CACHED_BYTES_MAX else _cached
    return make(payload, event)


def _format(payload: str, event: bytes) -> Message:
    decoded = msgspec.json.decode(event, type=_Event)
    is_generation = decoded.type.startswith("generation.")
    summary = msgspec.json.decode(decoded.data, type=_Summary) if is_generation else None
    if payload == "thin":
        if summary is None:  # Events about anything else are small already.
            return Message(event)
        decoded.data = msgspec.Raw(msgspec.json.encode(summary))
        return Message(msgspec.json.encode(decoded))
    # The HTTP binding's binary content mode: the data as body, the rest as headers.
    headers = {
        "ce-specversion": "1.0",
        "ce-id": decoded.id,
        "ce-source": "urn:genhook:events",
        "ce-type": decoded.type,
        "ce-time": decoded.timestamp,
    }
    if summary is not None:
        headers["ce-subject"] = summary.id or ""
    return Message(bytes(decoded.data), headers)


_cached = lru_cache(maxsize=CACHED)(_format)
