"""A replay: new deliveries for events that are stored."""

from typing import Any, Literal

import msgspec

from service.model.clock import rfc3339, time_or_none


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """New deliveries to one subscriber, for events of a span of time that are stored.

    `cursor` is the place among events up to which deliveries were made, `last_seq` the last place
    to look at. `due_at`: when to go on; None when there is nothing left to do.
    """

    id: str
    tenant: str
    subscriber_id: str
    since_at: int
    until_at: int
    event_types: list[str]
    only_dead: bool
    rate_per_second: float | None
    dry_run: bool
    status: Literal["running", "done", "canceled"]
    total: int
    done: int = 0
    cursor: int
    last_seq: int
    due_at: int | None
    created_at: int
    finished_at: int | None = None

    def view(self) -> dict[str, Any]:
        """The replay as the API shows it."""
        return {
            "id": self.id,
            "subscriber_id": self.subscriber_id,
            "status": self.status,
            "total": self.total,
            "done": self.done,
            "dry_run": self.dry_run,
            "created_at": rfc3339(self.created_at),
            "finished_at": time_or_none(self.finished_at),
        }
