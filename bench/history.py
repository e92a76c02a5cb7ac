"""A database with a long history: a million rows in every table that grows."""

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from bench import callbacks, world
from bench.plan import Plan
from service.api.generations import USAGE_DAYS_MAX
from service.model.attempt import Attempt
from service.model.clock import DAY, SECOND, now_ms
from service.model.delivery import DueDelivery
from service.model.event import Event
from service.model.generation import Generation
from service.model.ids import new_id, time_of
from service.model.key import Key
from service.model.subscriber import Subscriber
from service.store import callbacks as stored_callbacks
from service.store import deliveries, events, generations, keys, subscribers
from service.store.callbacks import Arrival
from service.store.deliveries import AttemptRecord
from service.store.sqlite.group import Transaction
from service.store.stats import SLOT_MS

ROWS = 1_000_000
FIRST = 1_000  # Rows stored by the store's own functions; the rest are copies with other ids.
OPEN_EVERY = 10  # One generation in ten is open; the others have succeeded.
SPAN_MS = 20 * DAY  # Less than the retention, which would delete the rows.
RARE = 20  # Rows of a kind that few rows have.
BUSY = 100  # The position of a generation that was polled a thousand times.
SLOTS, BUCKETS, MODELS = 288, 20, 25
QUIET = "quiet"
QUIET_KEY = "ghk_quiet_quiet_quiet_quiet_quiet_quiet_quiet"
NAMES = ("generation_id", "event_id", "delivery_id", "callback_id")
TIMES = ("submitted_at", "completed_at", "started_at", "delivered_at")
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


async def build(plan: Plan) -> Path:
    """Build the database, unless it exists; return its path.

    Every generation has a callback and an event; every event has a delivery that is not due for
    hours and one that has ended. Open generations are not polled for hours. The rows go back
    SPAN_MS; the oldest few rows of each table are of rare kinds. A second tenant has a few rows of
    each.
    """
    path = plan.folder / "history.db"
    if not path.exists():
        times = plan.size(ROWS) // FIRST
        async with world.open_database(path) as database:
            ids = await world.add_subscribers(
                database,
                [f"http://127.0.0.1:9/inbox/{index}" for index in range(10)],
                retry_schedule_seconds=[6 * 3_600],
            )
            await database.write(_add, ids, world.TENANT, FIRST)
            await database.apply(_vary)
        multiply(path, TABLES, times, _earlier(times), by_copy=True)
        async with world.open_database(path) as database:
            await database.apply(_age, times)
            quiet = await world.add_subscribers(database, ["http://127.0.0.1:9/quiet"])
            await database.apply(_move_subscriber, quiet[0])
            await database.write(_add, quiet, QUIET, RARE)
            await database.write(_add_key)
    return path


def _earlier(times: int) -> dict[str, str]:
    """SQL for the times and ids of copies: the last copy is the newest, but older than its row."""
    back = f"({times} - k) * {SPAN_MS // times}"
    event_ids = f"json_array(moved(json_extract(event_ids, '$[0]'), -{back}))"
    return (
        {name: f"moved({name}, -{back})" for name in ("id", *NAMES)}
        | {name: f"{name} - {back}" for name in TIMES}
        | {"event_ids": event_ids}
    )


def _vary(connection: sqlite3.Connection) -> None:
    """Vary frequent rows: callbacks that are duplicates or late, and a receiver that fails."""
    connection.executescript("""
        UPDATE callbacks SET verdict = CASE unicode(substr(id, -1)) % 10
            WHEN 0 THEN 'duplicate' WHEN 1 THEN 'duplicate' WHEN 2 THEN 'late' ELSE 'accepted' END;
        UPDATE deliveries SET status = 'dead' WHERE status = 'delivered'
            AND subscriber_id = (SELECT max(id) FROM subscribers);
        INSERT INTO generation_metadata
            SELECT tenant, 'customer', substr(id, -8), id FROM generations;
    """)


def _age(connection: sqlite3.Connection, times: int) -> None:
    """Make the oldest rows rare kinds, and counts, latencies and usage those of a long history."""
    oldest = f"id IN (SELECT id FROM {{}} ORDER BY id LIMIT {RARE})"
    numbers = "WITH RECURSIVE n (k) AS (SELECT 0 UNION ALL SELECT k + 1 FROM n WHERE k < {} - 1)"
    now = now_ms()
    connection.executescript(f"""
        UPDATE events SET seq = seq + {times * FIRST} WHERE seq <= {FIRST};
        UPDATE generations SET status = 'timed_out', model = 'imagen4-ultra', next_poll_at = NULL
            WHERE {oldest.format("generations")};
        INSERT INTO generation_metadata SELECT tenant, 'order', 'rare', id FROM generations
            WHERE {oldest.format("generations")};
        UPDATE callbacks SET verdict = 'unreadable'
            WHERE tenant = '{world.TENANT}' AND {oldest.format("callbacks")};
        UPDATE events SET type = 'generation.timed_out' WHERE {oldest.format("events")};
        UPDATE deliveries SET due_at = NULL,
            status = CASE status WHEN 'pending' THEN 'canceled' ELSE 'delivered' END
            WHERE tenant = '{world.TENANT}' AND {oldest.format("deliveries")};
        UPDATE deliveries SET status = 'delivered'
            WHERE tenant = '{world.TENANT}' AND id IN (SELECT id FROM deliveries
                WHERE status = 'dead' AND subscriber_id = (SELECT max(id) FROM subscribers)
                ORDER BY id LIMIT {RARE});
        {numbers.format(SLOTS * BUCKETS)}
            INSERT OR IGNORE INTO attempt_latency
            SELECT s.id, {now - now % SLOT_MS} - (k / {BUCKETS}) * {SLOT_MS}, 20 + k % {BUCKETS},
                'delivered', 1 + k % 7, {now} FROM subscribers s CROSS JOIN n;
        {numbers.format(USAGE_DAYS_MAX * MODELS)}
            INSERT INTO usage (tenant, day, model)
            SELECT '{world.TENANT}', date('now', '-' || (k / {MODELS}) || ' days'),
                'model-' || (k % {MODELS}) FROM n;
        {numbers.format(1_000)}
            INSERT INTO exchanges
            SELECT (SELECT id FROM generations ORDER BY id LIMIT 1 OFFSET {BUSY}), 'poll', k + 2,
                {now}, 40, 200, 'processing', 'IN_PROGRESS' FROM n;
    """)


def _move_subscriber(connection: sqlite3.Connection, subscriber_id: str) -> None:
    connection.execute("UPDATE subscribers SET tenant = ? WHERE id = ?", (QUIET, subscriber_id))


async def _add_key(tx: Transaction) -> None:
    """Store a key of the second tenant, and callbacks that were rejected just now."""
    key = Key(
        id=new_id("key", tx.now),
        name="quiet",
        tenant=QUIET,
        scopes=["read", "manage"],
        created_at=tx.now,
        last_used_at=None,
        revoked_at=None,
    )
    await keys.insert(tx, key, QUIET_KEY)
    for index in range(RARE):
        generation = world.new_generation(tx.now, index)
        await stored_callbacks.reject(tx, _arrival(generation, index))


async def _add(tx: Transaction, subscriber_ids: Sequence[str], tenant: str, count: int) -> None:
    for index in range(count):
        is_open = index % OPEN_EVERY == 0
        ended = {"status": "succeeded", "completed_at": tx.now, "next_poll_at": None}
        generation = world.new_generation(
            now_ms(),
            index,
            tenant=tenant,
            model="imagen4" if index % 7 == 3 else "imagen4-fast",
            metadata={"order": str(index % 7)},
            **({} if is_open else ended),
        )
        event = events.new_event(
            generation.tenant, "generation.succeeded", generation.view(), generation.id, tx.now
        )
        generation = replace(generation, event_ids=[event.id])
        await world.insert_generations(tx, [generation])
        for name, value in generation.metadata.items():
            await tx.run(
                "generation_metadata_insert",
                tenant=generation.tenant,
                name=name,
                value=value,
                generation_id=generation.id,
            )
        await generations.record_exchanges(tx, [_exchange(generation)])
        await stored_callbacks.insert(tx, [_arrival(generation, index)])
        await events.insert(tx, [event])
        pair = [subscriber_ids[(index + more) % len(subscriber_ids)] for more in (0, 1)]
        await _add_deliveries(tx, event, [await _subscriber(tx, id_) for id_ in pair], index)


async def _subscriber(tx: Transaction, id_: str) -> Subscriber:
    subscriber = await subscribers.get(tx, id_)
    assert subscriber is not None
    return subscriber


def _exchange(generation: Generation) -> generations.Exchange:
    return generations.Exchange(
        generation_id=generation.id,
        at=generation.created_at,
        kind="poll",
        number=1,
        duration_ms=40,
        status_code=200,
        outcome="processing",
        detail="IN_PROGRESS",
    )


def _arrival(generation: Generation, index: int) -> Arrival:
    return Arrival(
        id=new_id("cb", generation.created_at),
        generation_id=generation.id,
        nonce=generation.nonce,
        upstream="apiinone",
        received_at=generation.created_at,
        trust="confirm",
        headers=[(b"content-type", b"application/json")],
        body=callbacks.build_body(index)[:200],
        readable=True,
    )


async def _add_deliveries(
    tx: Transaction, event: Event, pair: Sequence[Subscriber], index: int
) -> None:
    """Store a pending delivery for the first subscriber, and an ended one for the second."""
    pending, ended = pair
    due_at = tx.now + pending.retry_schedule_seconds[0] * SECOND
    await deliveries.insert(tx, [(event, pending, due_at)])
    due = deliveries.new_due(event, ended, tx.now, "scheduled")
    await deliveries.insert_ended(tx, due, _recorded(due, "dead" if index % 3 else "delivered"))


def _recorded(due: DueDelivery, status: str) -> AttemptRecord:
    created_at = time_of(due.id)
    attempt = Attempt(
        id=new_id("att", created_at),
        delivery_id=due.id,
        number=1,
        trigger="scheduled",
        started_at=created_at,
        duration_ms=12,
        status_code=204 if status == "delivered" else 500,
        error_code=None if status == "delivered" else "status_500",
        error_message=None if status == "delivered" else "The receiver answered 500.",
        response_headers=[],
        response_body=b"",
    )
    return AttemptRecord(
        tenant=due.tenant,
        subscriber_id=due.subscriber_id,
        generation_id=due.generation_id,
        ordered=False,
        status=status,
        due_at=None,
        delivered_at=created_at if status == "delivered" else None,
        attempt=attempt,
    )


def multiply(
    path: Path,
    tables: Sequence[str],
    times: int,
    changes: Mapping[str, str] | None = None,
    *,
    by_copy: bool = False,
) -> None:
    """Copy every row until there are `times` of it, each with another id.

    The last digits of every id become the number `k` of the copy, in all tables alike, so that
    copies refer to copies. `changes` maps columns to SQL for their values, which may use `k`. Rows
    are copied one by one, or, with `by_copy`, all of them once, then all of them again.
    """
    connection = sqlite3.connect(path, isolation_level=None)
    connection.create_function("moved", 2, _moved, deterministic=True)
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("PRAGMA cache_size=-400000")
    connection.execute("BEGIN")
    for table in tables:
        columns = connection.execute(f"PRAGMA table_info({table})").fetchall()
        names = [row[1] for row in columns if row[1] != "seq"]
        values = ", ".join((changes or {}).get(name, _copied(name)) for name in names)
        sources = [f"(SELECT * FROM {table})", "copies"]
        connection.execute(
            f"WITH RECURSIVE copies (k) AS (SELECT 1 UNION ALL SELECT k + 1 FROM copies "
            f"WHERE k < :times) INSERT OR IGNORE INTO {table} ({', '.join(names)}) "
            f"SELECT {values} FROM {' CROSS JOIN '.join(sources[::-1] if by_copy else sources)}",
            {"times": times - 1},
        )
    connection.execute("COMMIT")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def _copied(name: str) -> str:
    is_id = name == "id" or name in NAMES
    return f"substr({name}, 1, length({name}) - 4) || printf('%04x', k)" if is_id else name


def _moved(id_: str | None, by_ms: int) -> str | None:
    """Move the time in an id by so many milliseconds."""
    if id_ is None:
        return None
    prefix, _, rest = id_.partition("_")
    return f"{prefix}_{int(rest[:12], 16) + by_ms:012x}{rest[12:]}"
