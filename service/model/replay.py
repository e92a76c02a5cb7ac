"""A replay: new deliveries of stored events."""

from typing import Any, Literal

import msgspec

from service.model.view import view_of


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """New deliveries to one subscriber of the events from `since_at` until before `until_at`."""

    id: str
    tenant: str
    subscriber_id: str
    since_at: int
    until_at: int
    event_types: list[str]  # Empty: all types.
    only_dead: bool  # Only events whose last delivery to the subscriber is dead.
    rate_per_second: float | None
    dry_run: bool  # Only count the events.
    status: Literal["running", "done", "canceled"]
    total: int = 0  # How many events there are to replay.
    done: int = 0  # How many of them have been replayed.
    cursor: int = 0  # The `seq` of the last event that was examined.
    last_seq: int = 0  # The `seq` of the last event to examine.
    due_at: int | None  # When to continue; None if nothing is left to do.
    created_at: int
    finished_at: int | None = None

    def view(self) -> dict[str, Any]:
        """Return the replay as the API shows it."""
        names = ("id", "subscriber_id", "status", "total", "done", "dry_run")
        return view_of(self, *names, "created_at", "finished_at")
