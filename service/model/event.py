"""An event: an immutable fact, its id the `webhook-id`."""

import msgspec

EVENT_TYPES = (
    "generation.submitted",
    "generation.succeeded",
    "generation.failed",
    "generation.timed_out",
    "subscriber.disabled",
    "ping",
)
EVENT_TYPE_OF = {
    "processing": "generation.submitted",
    "succeeded": "generation.succeeded",
    "failed": "generation.failed",
    "timed_out": "generation.timed_out",
}


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """An immutable fact; `body` is the exact bytes that are stored, signed and sent."""

    id: str
    tenant: str
    type: str
    generation_id: str | None
    created_at: int
    body: bytes
