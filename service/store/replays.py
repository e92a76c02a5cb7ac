"""Replays: their rows, the stored events they match, and the deliveries they create."""

from collections.abc import Sequence
from operator import itemgetter

import msgspec

from service.model.clock import HOUR, MINUTE
from service.model.delivery import DueDelivery
from service.model.event import Event
from service.model.ids import first_id
from service.model.replay import Replay
from service.model.subscriber import Subscriber
from service.store import deliveries, rows
from service.store.database import Transaction
from service.store.writes import Database

DELAY_MS = MINUTE
SKEW_MS = HOUR  # The most by which the ids of two processes may be out of commit order.


async def is_running(tx: Transaction, subscriber_id: str) -> bool:
    """Return whether a replay creates deliveries for the subscriber."""
    return await tx.one("replay_running", subscriber_id=subscriber_id) is not None


async def list_due(tx: Transaction, limit: int) -> list[str]:
    """Return the ids of due replays, the longest due first."""
    return [row["id"] for row in await tx.all("replays_due", now=tx.now, limit=limit)]


async def delay(tx: Transaction, replay_id: str) -> None:
    """Delay by DELAY_MS a replay whose next batch failed."""
    await tx.run("replay_delay", id=replay_id, due_at=tx.now + DELAY_MS)


async def next_due(tx: Transaction) -> int | None:
    """Return when the next replay is due."""
    return await rows.read_number(tx, "replay_next_due")


async def read_bounds(database: Database, since_at: int) -> tuple[int, int]:
    """Return the seq after which the events since a time begin, and the last seq there is."""
    await database.order_events()
    return await database.read(_seq_bounds, since_at)


async def _seq_bounds(tx: Transaction, since_at: int) -> tuple[int, int]:
    first = first_id("evt", since_at - SKEW_MS)
    seq_before = await rows.read_number(tx, "replay_seq_before", first_id=first) or 0
    return seq_before, await rows.read_number(tx, "replay_last_seq") or 0


async def span_end(tx: Transaction, replay: Replay, limit: int) -> int | None:
    """Return the last seq of the tenant's next `limit` events; None if the replay is done."""
    until_id = first_id("evt", replay.until_at + SKEW_MS)
    values = {"tenant": replay.tenant, "cursor": replay.cursor, "last_seq": replay.last_seq}
    return await rows.read_number(tx, "replay_span_end", until_id=until_id, limit=limit, **values)


async def matching_seqs(
    tx: Transaction, replay: Replay, subscriber: Subscriber, last_seq: int, limit: int
) -> list[int]:
    """Return the seqs, up to `last_seq`, of events that the replay sends to its subscriber."""
    models, metadata = subscriber.filter.models, subscriber.filter.metadata
    values = {
        **rows.encode_row(replay),
        "last_seq": last_seq,
        "since_id": first_id("evt", replay.since_at),
        "until_id": first_id("evt", replay.until_at),
        "unfiltered": not (models or metadata),
        "models": rows.json_text(models),
        "metadata": rows.json_text(metadata),
        "limit": limit,
    }
    return [row["seq"] for row in await tx.all("replay_matches", **values)]


async def insert_deliveries(
    tx: Transaction, replay: Replay, subscriber: Subscriber, seqs: Sequence[int]
) -> list[DueDelivery]:
    """Store a delivery, due now, of each event with one of these seqs, unless it was deleted.

    The events are locked: nobody deletes or erases them meanwhile.
    """
    locked = await tx.lock("replay_events", seqs=rows.json_text(seqs), tenant=replay.tenant)
    events = [rows.decode_row(Event, row) for row in sorted(locked, key=itemgetter("seq"))]
    due = [deliveries.new_due(event, subscriber, tx.now, "replay") for event in events]
    more = {"replay_id": replay.id, "due_at": tx.now}
    await tx.many("replay_deliveries_insert", [msgspec.structs.asdict(d) | more for d in due])
    return due


async def count_untried(tx: Transaction, replay_id: str, limit: int) -> int:
    """Count the replay's deliveries that wait for their first attempt, up to `limit`."""
    return await rows.read_number(tx, "replay_count_untried", id=replay_id, limit=limit) or 0
