"""A delivery: one event for one subscriber."""

from typing import Any, Literal, get_args

import msgspec

from service.model.clock import rfc3339_or_none
from service.model.view import view_of

Status = Literal["pending", "delivered", "dead", "canceled"]
STATUSES: tuple[Status, ...] = get_args(Status)


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One event for one subscriber: pending until it is delivered, dead or canceled."""

    id: str
    tenant: str
    subscriber_id: str
    event_id: str
    event_type: str
    generation_id: str | None
    status: Status
    trigger: Literal["scheduled", "manual", "replay", "test"]
    attempt_count: int
    due_at: int | None  # When the next attempt is due, while it is pending.
    created_at: int
    delivered_at: int | None
    last_error: str | None

    def view(self) -> dict[str, Any]:
        """Return the delivery as the API lists it."""
        return {
            **view_of(self, "id", "event_id", "event_type", "generation_id", "subscriber_id"),
            **view_of(self, "status", "attempt_count"),
            "next_attempt_at": rfc3339_or_none(self.due_at) if self.status == "pending" else None,
            **view_of(self, "created_at", "delivered_at", "last_error"),
        }


class DueDelivery(msgspec.Struct):
    """What an attempt needs of a pending delivery, its event and its subscriber."""

    tenant: str
    id: str
    subscriber_id: str
    event_id: str
    event_type: str
    generation_id: str | None
    attempt_count: int
    trigger: str
    body: bytes  # The event's body, as it is stored.
    manual_count: int  # How many attempts a person asked for, which the schedule does not count.
    # When the schedule goes on after a manual attempt (None: it is over), or once the events before
    # it have ended (None: it does not wait for them).
    planned_at: int | None
    ordered: bool  # As Subscriber.ordered.
