"""A database with a long history: a million rows in every table that grows."""

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import callbacks, world
from bench.plan import Plan
from service.clock import now_ms
from service.ids import new_id
from service.model import Attempt, Due, Event, Generation, Subscriber
from service.store import callbacks as stored_callbacks
from service.store import deliveries, events, generations, subscribers
from service.store.callbacks import Arrival
from service.store.database import Transaction
from service.store.deliveries import Recorded

ROWS = 1_000_000
FIRST = 1_000  # made by the store's own functions; the others are copies with ids of their own
OPEN_EVERY = 10  # generations: the others have succeeded
NAMES = ("generation_id", "event_id", "delivery_id", "callback_id")
TABLES = (
    "generations",
    "generation_bodies",
    "generation_metadata",
    "exchanges",
    "callbacks",
    "callback_bodies",
    "events",
    "deliveries",
    "attempts",
)


async def built(plan: Plan) -> Path:
    """The database, built where it is not there yet.

    Every generation has a callback and an event; each event a delivery that is not due for hours
    and one that has ended. One generation in ten is open, and nobody asks about it for hours.
    """
    path = plan.folder / "history.db"
    if not path.exists():
        async with world.database(path) as opened:
            ids = await world.add_subscribers(
                opened,
                [f"http://127.0.0.1:9/inbox/{index}" for index in range(10)],
                retry_schedule_seconds=[6 * 3_600],
            )
            await opened.write(_first, ids)
        multiply(path, TABLES, plan.size(ROWS) // FIRST)
    return path


async def _first(tx: Transaction, subscriber_ids: Sequence[str]) -> None:
    for index in range(FIRST):
        is_open = index % OPEN_EVERY == 0
        ended = {"status": "succeeded", "completed_at": tx.now, "next_poll_at": None}
        one = world.generation(
            now_ms(),
            index,
            metadata={"order": str(index % 7)},
            **({} if is_open else ended),
        )
        await world.insert_generations(tx, [one])
        for name, value in one.metadata.items():
            await tx.run(
                "generation_metadata_insert",
                tenant=one.tenant,
                name=name,
                value=value,
                generation_id=one.id,
            )
        await generations.record(tx, _exchange(one))
        await stored_callbacks.insert(tx, [_arrival(one, index)])
        told = await events.insert(tx, one.tenant, "generation.succeeded", one.view(), one.id)
        pair = (subscriber_ids[index % 10], subscriber_ids[(index + 1) % 10])
        await _owe(tx, told, [await _subscriber(tx, id_) for id_ in pair], index)


async def _subscriber(tx: Transaction, id_: str) -> Subscriber:
    found = await subscribers.get(tx, id_)
    assert found is not None
    return found


def _exchange(one: Generation) -> generations.Exchange:
    return generations.Exchange(
        generation_id=one.id,
        at=one.created_at,
        kind="poll",
        duration_ms=40,
        status_code=200,
        outcome="processing",
        detail="IN_PROGRESS",
    )


def _arrival(one: Generation, index: int) -> Arrival:
    return Arrival(
        id=new_id("cb", one.created_at),
        generation_id=one.id,
        nonce=one.nonce,
        upstream="apiinone",
        received_at=one.created_at,
        trust="confirm",
        headers=[(b"content-type", b"application/json")],
        body=callbacks.body(index)[:200],
        readable=True,
    )


async def _owe(tx: Transaction, event: Event, two: list[Subscriber], index: int) -> None:
    """One delivery that waits, and one that has ended after an attempt."""
    waits, ended = two
    await deliveries.insert(tx, event, [waits])
    due = deliveries.new_due(event, ended, tx.now, "scheduled")
    await deliveries.insert_ended(tx, due, _recorded(due, "dead" if index % 3 else "delivered"))


def _recorded(due: Due, status: str) -> Recorded:
    attempt = Attempt(
        id=new_id("att", due.created_at),
        delivery_id=due.id,
        number=1,
        trigger="scheduled",
        started_at=due.created_at,
        duration_ms=12,
        status_code=204 if status == "delivered" else 500,
        error_code=None if status == "delivered" else "status_500",
        error_message=None if status == "delivered" else "The receiver answered 500.",
        response_headers=[],
        response_body=b"",
    )
    return Recorded(
        tenant=due.tenant,
        subscriber_id=due.subscriber_id,
        generation_id=due.generation_id,
        ordered=False,
        status=status,
        due_at=None,
        delivered_at=due.created_at if status == "delivered" else None,
        last_error=attempt.error_message,
        attempt=attempt,
    )


def multiply(
    path: Path, tables: Sequence[str], times: int, changes: Mapping[str, str] | None = None
) -> None:
    """Copy every row until there are `times` of it, with an id of its own each.

    The end of every id becomes the number `k` of the copy, in all tables alike, so that copies
    refer to copies. `changes` are columns with SQL for their values in a copy, which may name `k`.
    """
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("PRAGMA cache_size=-400000")
    connection.execute("BEGIN")
    for table in tables:
        columns = connection.execute(f"PRAGMA table_info({table})").fetchall()
        names = [row[1] for row in columns if row[1] != "seq"]
        values = ", ".join((changes or {}).get(name, _copied(name)) for name in names)
        connection.execute(
            f"WITH RECURSIVE copies (k) AS (SELECT 1 UNION ALL SELECT k + 1 FROM copies "
            f"WHERE k < :times) INSERT OR IGNORE INTO {table} ({', '.join(names)}) "
            f"SELECT {values} FROM (SELECT * FROM {table}) CROSS JOIN copies",
            {"times": times - 1},
        )
    connection.execute("COMMIT")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def _copied(name: str) -> str:
    is_id = name == "id" or name in NAMES
    return f"substr({name}, 1, length({name}) - 4) || printf('%04x', k)" if is_id else name
