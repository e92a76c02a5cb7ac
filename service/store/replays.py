"""Replays: their rows, the stored events they match, and the deliveries they create."""

from typing import Any

import msgspec

from service.model.clock import HOUR
from service.model.delivery import DueDelivery
from service.model.ids import first_id, time_of
from service.model.replay import Replay
from service.model.subscriber import Subscriber
from service.store import deliveries, events
from service.store.database import Row, Transaction
from service.store.rows import convert, json_text

SKEW_MS = HOUR  # The most by which the ids of two processes may be out of commit order.


class Window(msgspec.Struct, frozen=True):
    """The next few events of a tenant: the seq of the last one, and the earliest time of all."""

    last_seq: int
    since_at: int


def from_row(row: Row) -> Replay:
    """Return the replay in a row."""
    return convert(Replay, row, json=frozenset({"event_types"}))


async def insert(tx: Transaction, new: Replay) -> None:
    """Store a new replay."""
    row = msgspec.structs.asdict(new)
    await tx.run("replay_insert", **{**row, "event_types": json_text(new.event_types)})


async def get(tx: Transaction, replay_id: str) -> Replay | None:
    """Return the replay, of any tenant."""
    row = await tx.one("replay_by_id", id=replay_id)
    return from_row(row) if row else None


async def update(tx: Transaction, old: Replay, **changes: Any) -> Replay:
    """Store `changes` to a replay; return the changed replay."""
    new = msgspec.structs.replace(old, **changes)
    names = ("id", "status", "done", "cursor", "due_at", "finished_at")
    await tx.run("replay_update", **{name: getattr(new, name) for name in names})
    return new


async def is_running(tx: Transaction, subscriber_id: str) -> bool:
    """Return whether a replay creates deliveries for the subscriber."""
    return await tx.one("replay_running", subscriber_id=subscriber_id) is not None


async def list_due(tx: Transaction, limit: int) -> list[str]:
    """Return the ids of due replays, the longest due first."""
    return [row["id"] for row in await tx.all("replays_due", now=tx.now, limit=limit)]


async def next_due(tx: Transaction) -> int | None:
    """Return when the next replay is due."""
    row = await tx.one("replay_next_due")
    return row["due_at"] if row else None


async def seq_bounds(tx: Transaction, since_at: int) -> tuple[int, int]:
    """Return the cursor to start from for events since a time, and the last seq there is now."""
    first = await tx.one("replay_first_seq", first_id=first_id("evt", since_at - SKEW_MS))
    last = await tx.one("replay_last_seq")
    assert last is not None
    last_seq = last["seq"] or 0
    return (first["seq"] - 1 if first else last_seq), last_seq


async def window(tx: Transaction, replay: Replay, limit: int) -> Window | None:
    """Return the next `limit` events of the tenant after the cursor; None if the replay is done."""
    row = await tx.one(
        "replay_window",
        tenant=replay.tenant,
        cursor=replay.cursor,
        last_seq=replay.last_seq,
        limit=limit,
    )
    if row is None or row["last_seq"] is None:
        return None
    since_at = time_of(row["first_id"])
    return Window(row["last_seq"], since_at) if since_at < replay.until_at + SKEW_MS else None


async def matching_seqs(
    tx: Transaction, replay: Replay, subscriber: Subscriber, last_seq: int, limit: int
) -> list[int]:
    """Return the seqs, up to `last_seq`, of events that the replay sends to its subscriber."""
    models, metadata = subscriber.filter.models, subscriber.filter.metadata
    rows = await tx.all(
        "replay_matches",
        tenant=replay.tenant,
        cursor=replay.cursor,
        last_seq=last_seq,
        since_id=first_id("evt", replay.since_at),
        until_id=first_id("evt", replay.until_at),
        event_types=json_text(replay.event_types),
        subscriber_id=replay.subscriber_id,
        only_dead=replay.only_dead,
        unfiltered=not (models or metadata),
        models=json_text(models),
        metadata=json_text(metadata),
        limit=limit,
    )
    return [row["seq"] for row in rows]


async def insert_delivery(
    tx: Transaction, replay: Replay, subscriber: Subscriber, seq: int
) -> DueDelivery | None:
    """Store a delivery of the event with this seq, due now; None if the event is deleted."""
    row = await tx.one("replay_event", seq=seq)
    if row is None:
        return None
    due = deliveries.new_due(events.from_row(row), subscriber, tx.now, "replay")
    await deliveries.insert_replayed(tx, due, replay.id)
    return due


async def count_untried(tx: Transaction, replay_id: str, limit: int) -> int:
    """Count the replay's deliveries that wait for their first attempt, up to `limit`."""
    row = await tx.one("replay_count_untried", id=replay_id, limit=limit)
    return row["count"] if row else 0


async def delete_old(tx: Transaction, before: int, limit: int) -> int:
    """Delete up to `limit` ended replays from before a time; return how many."""
    return await tx.run("replays_delete_old", before_id=first_id("rpl", before), limit=limit)
