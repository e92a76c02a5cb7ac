"""An event: an immutable fact. Its id is the `webhook-id` of its deliveries."""

import msgspec

EVENT_TYPE_OF = {  # Keyed by the new status of the generation.
    "processing": "generation.submitted",
    "succeeded": "generation.succeeded",
    "failed": "generation.failed",
    "timed_out": "generation.timed_out",
    "canceled": "generation.canceled",
}
EVENT_TYPES = (*EVENT_TYPE_OF.values(), "subscriber.disabled", "ping")


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """An immutable fact."""

    id: str
    tenant: str
    type: str
    generation_id: str | None
    created_at: int
    body: bytes  # JSON; exactly these bytes are stored, signed and sent.
