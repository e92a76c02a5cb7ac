"""Replays: how far each has come, the events it is about, and the deliveries it made."""

from typing import Any

import msgspec

from service.model.clock import HOUR
from service.model.delivery import Due
from service.model.event import Event
from service.model.ids import first_id, time_of
from service.model.replay import Replay
from service.model.subscriber import Subscriber
from service.store import deliveries, events
from service.store.database import Row, Transaction
from service.store.rows import noun, text

SKEW_MS = HOUR  # How far an event's time may be from that of its neighbours.


class Window(msgspec.Struct, frozen=True):
    """The next few events of a tenant: the last one's place, and the earliest time among them."""

    last_seq: int
    since_at: int


def replay(row: Row) -> Replay:
    """The replay in a row."""
    return noun(Replay, row, json=frozenset({"event_types"}))


async def insert(tx: Transaction, new: Replay) -> None:
    """Store a new replay."""
    row = msgspec.structs.asdict(new)
    await tx.run("replay_insert", **{**row, "event_types": text(new.event_types)})


async def get(tx: Transaction, replay_id: str) -> Replay | None:
    """The replay, whoever's it is."""
    row = await tx.one("replay_by_id", id=replay_id)
    return replay(row) if row else None


async def change(tx: Transaction, old: Replay, **changes: Any) -> Replay:
    """`old` with `changes`, stored."""
    new = msgspec.structs.replace(old, **changes)
    names = ("id", "status", "done", "cursor", "due_at", "finished_at")
    await tx.run("replay_update", **{name: getattr(new, name) for name in names})
    return new


async def is_running(tx: Transaction, subscriber_id: str) -> bool:
    """True while a replay makes deliveries for the subscriber."""
    return await tx.one("replay_running", subscriber_id=subscriber_id) is not None


async def due(tx: Transaction, limit: int) -> list[str]:
    """The replays with something to do by now, the longest due first."""
    return [row["id"] for row in await tx.all("replays_due", now=tx.now, limit=limit)]


async def next_due(tx: Transaction) -> int | None:
    """When the next replay has something to do."""
    row = await tx.one("replay_next_due")
    return row["due_at"] if row else None


async def bounds(tx: Transaction, since_at: int) -> tuple[int, int]:
    """Where to start looking for events since a time, and the last place there is by now."""
    first = await tx.one("replay_first_seq", first_id=first_id("evt", since_at - SKEW_MS))
    last = await tx.one("replay_last_seq")
    assert last is not None
    last_seq = last["seq"] or 0
    return (first["seq"] - 1 if first else last_seq), last_seq


async def window(tx: Transaction, of: Replay, limit: int) -> Window | None:
    """The next `limit` events of the tenant after the cursor; None if there are none to look at."""
    row = await tx.one(
        "replay_window", tenant=of.tenant, cursor=of.cursor, last_seq=of.last_seq, limit=limit
    )
    if row is None or row["last_seq"] is None:
        return None
    since_at = time_of(row["first_id"])
    return Window(row["last_seq"], since_at) if since_at < of.until_at + SKEW_MS else None


async def matches(
    tx: Transaction, of: Replay, subscriber: Subscriber, last_seq: int, limit: int
) -> list[int]:
    """Where the events up to `last_seq` are that the replay is about and the subscriber wants."""
    wanted = subscriber.filter
    rows = await tx.all(
        "replay_matches",
        tenant=of.tenant,
        cursor=of.cursor,
        last_seq=last_seq,
        since_id=first_id("evt", of.since_at),
        until_id=first_id("evt", of.until_at),
        event_types=text(of.event_types),
        subscriber_id=of.subscriber_id,
        only_dead=of.only_dead,
        unfiltered=not (wanted.models or wanted.metadata),
        models=text(wanted.models),
        metadata=text(wanted.metadata),
        limit=limit,
    )
    return [row["seq"] for row in rows]


async def deliver(tx: Transaction, of: Replay, subscriber: Subscriber, seq: int) -> Due | None:
    """Make a delivery of the event at `seq`; None if the event is gone."""
    row = await tx.one("replay_event", seq=seq)
    if row is None:
        return None
    event: Event = events.event(row)
    due = deliveries.new_due(event, subscriber, tx.now, "replay")
    await deliveries.insert_replayed(tx, due, of.id)
    return due


async def ahead(tx: Transaction, replay_id: str, limit: int) -> int:
    """How many of the replay's deliveries wait for their first attempt, counted up to `limit`."""
    row = await tx.one("replay_ahead", id=replay_id, limit=limit)
    return row["count"] if row else 0


async def delete_past(tx: Transaction, before: int, limit: int) -> int:
    """Delete replays that ended and are older; how many went."""
    return await tx.run("replays_delete_past", before_id=first_id("rpl", before), limit=limit)
