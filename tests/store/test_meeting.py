"""Writers of many processes on PostgreSQL: rows that all of them add to hold none of them up."""

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest
from msgspec.structs import replace

from service.delivery import tenants
from service.store import events, generations, retention, stats, subscribers
from service.store.database import Row, Transaction
from service.store.postgres import connection as postgres_connection
from service.store.postgres import database as postgres_database
from service.store.postgres.database import Database
from service.store.vault import Vault
from tests import engine
from tests.store.test_lists import generation
from tests.store.test_postgres import connected, until_blocked

pytestmark = pytest.mark.usefixtures("postgres")
WRITERS = 8
KEY = ("default", "2026-11-27", "imagen4")
DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"


@contextlib.asynccontextmanager
async def opened_databases(path: Path, count: int) -> AsyncIterator[list[Database]]:
    async with contextlib.AsyncExitStack() as stack:
        databases = [Database(engine.database_of(path)) for _ in range(count)]
        for database in databases:
            await database.open()
            stack.push_async_callback(database.close)
        await databases[0].migrate()
        yield databases


@pytest.fixture
def repeats(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """Why transactions ran again, of all processes."""
    noted: list[BaseException] = []

    def note(error: BaseException) -> bool:
        noted.append(error)
        return postgres_connection.is_repeatable(error)

    monkeypatch.setattr(postgres_database, "is_repeatable", note)
    return noted


async def read_deadlocks(path: Path) -> int:
    connection = await asyncpg.connect(engine.database_of(path))
    try:
        return int(await connection.fetchval(DEADLOCKS))
    finally:
        await connection.close()


async def read_usage(database: Database) -> list[Row]:
    return await database.read(generations.usage, KEY[0], KEY[1], KEY[1], None)


async def test_eight_writers_that_add_to_one_usage_wait_for_none_and_run_once(
    tmp_path: Path, repeats: list[BaseException]
) -> None:
    """Each has written before any of them commits: who waited for a row would never get there."""
    have_written = asyncio.Barrier(WRITERS)

    async def unit(tx: Transaction) -> None:
        await generations.add_usage(tx, {(*KEY, "succeeded"): 1, (*KEY, "credits"): 4})
        async with asyncio.timeout(20):
            await have_written.wait()

    async with opened_databases(tmp_path, WRITERS) as databases:
        before = await read_deadlocks(tmp_path)
        for _ in range(5):
            await asyncio.gather(*(database.write(unit) for database in databases))
        assert repeats == []
        assert await read_deadlocks(tmp_path) == before
        [usage] = await read_usage(databases[0])
        assert (usage["succeeded"], usage["credits"]) == (5 * WRITERS, 20 * WRITERS)


async def test_usage_is_the_same_before_and_after_it_is_added_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "FOLD_BATCH", 3)

    async def add(tx: Transaction, day: str, model: str) -> None:
        await generations.add_usage(tx, {(KEY[0], day, model, "generations"): 1})

    async with opened_databases(tmp_path, 1) as [database]:
        for model in ("imagen4", "imagen4", "veo3", "imagen4", "veo3"):
            await database.write(add, KEY[1], model)
        await database.write(add, "2026-11-26", "veo3")
        before = await read_usage(database)
        assert {row["model"]: row["generations"] for row in before} == {"imagen4": 3, "veo3": 2}
        assert [await database.write(retention.fold_usage) for _ in range(3)] == [3, 3, 0]
        assert await read_usage(database) == before
        await database.write(add, KEY[1], "veo3")
        assert await database.write(retention.fold_usage) == 1
        after = await read_usage(database)
        assert {row["model"]: row["generations"] for row in after} == {"imagen4": 3, "veo3": 3}


async def test_what_is_stored_beside_the_usage_is_added_up_every_few_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "FOLD_BATCH", 2)

    async def add(tx: Transaction) -> None:
        await generations.add_usage(tx, {(*KEY, "generations"): 1})

    async with opened_databases(tmp_path, 1) as [database]:
        for _ in range(3):
            await database.write(add)
        sweep, now = retention.Sweep(next_at=10**15), 10**12
        assert await retention.run_due(database, sweep, 30, now) == (0, now)  # One is left.
        _, next_at = await retention.run_due(database, sweep, 30, now)
        assert next_at == now + retention.FOLD_INTERVAL_MS
        assert await database.write(retention.fold_usage) == 0


async def test_eight_writers_that_count_attempts_of_one_subscriber_lose_none(
    tmp_path: Path,
) -> None:
    """Its lane has one writer; tests of it by processes that serve, and a lane that moves, meet it.

    They add to rows of several buckets, which each process met in another order.
    """
    async with opened_databases(tmp_path, WRITERS) as databases:
        before = await read_deadlocks(tmp_path)
        writes = []
        for n, database in enumerate(databases):
            for _ in range(5):
                counts = stats.AttemptCounts()
                for duration_ms in (10, 100, 1_000)[:: -1 if n % 2 else 1]:
                    counts.count("sub_1", 1_000_000, duration_ms, "delivered")
                writes.append(database.write(stats.add, counts))
        async with asyncio.timeout(20):
            await asyncio.gather(*writes)
        assert await read_deadlocks(tmp_path) == before
        counted = await databases[0].read(read_column, "SELECT count FROM attempt_latency")
        assert counted == [5 * WRITERS] * 3


async def test_processes_that_create_a_tenant_at_once_get_the_secrets_that_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both_have_read = asyncio.Barrier(2)
    read = subscribers.tenant_secrets
    reads = Counter[Transaction]()

    async def read_together(tx: Transaction, tenant: str) -> bytes | None:
        sealed = await read(tx, tenant)
        reads[tx] += 1
        if reads[tx] == 1:
            await both_have_read.wait()
        return sealed

    monkeypatch.setattr(subscribers, "tenant_secrets", read_together)
    context: Any = SimpleNamespace(vault=Vault(("s" * 32,)), random_bytes=os.urandom)
    async with opened_databases(tmp_path, 2) as databases:
        ensure = [each.write(tenants.ensure, context, "fresh") for each in databases]
        first, second = await asyncio.gather(*ensure)
        assert first == second == await databases[0].read(read, "fresh")


async def test_eight_writers_that_change_subscribers_count_every_revision(tmp_path: Path) -> None:
    async with opened_databases(tmp_path, WRITERS) as databases:
        before = await read_deadlocks(tmp_path)
        revision = await databases[0].read(subscribers.get_revision)
        bumps = [each.write(subscribers.bump_revision) for _ in range(5) for each in databases]
        async with asyncio.timeout(20):
            await asyncio.gather(*bumps)
        assert await read_deadlocks(tmp_path) == before
        after = await databases[0].read(subscribers.get_revision)
        assert after == revision + 5 * WRITERS


async def read_column(tx: Transaction, sql: str) -> list[object]:
    return [next(iter(row.values())) for row in await tx.select(sql, {})]


async def test_eight_writers_that_change_the_same_generations_in_any_order_wait_for_none_forever(
    tmp_path: Path,
) -> None:
    """Each writes some of their plans, and whole rows of others: the statements differ."""
    stored = [generation(number, 1_000 + number) for number in range(20)]

    async def change(tx: Transaction, shift: int) -> None:
        changes = []
        ids = [each.id for each in stored[:: -1 if shift % 2 else 1]]
        read = await generations.lock_many(tx, ids)
        for number, before in enumerate(read[id_] for id_ in ids):
            fields = {"next_poll_at": shift} if (number + shift) % 3 else {"submit_count": shift}
            changes.append((before, replace(before, **fields)))
        await generations.update(tx, changes)

    async with opened_databases(tmp_path, WRITERS) as databases:
        for each in stored:
            await databases[0].write(generations.insert, each)
        before = await read_deadlocks(tmp_path)
        for _ in range(3):
            writes = [each.write(change, shift) for shift, each in enumerate(databases, 1)]
            async with asyncio.timeout(30):
                await asyncio.gather(*writes)
        assert await read_deadlocks(tmp_path) == before


LOCK = "SELECT id FROM events WHERE id = $1 FOR UPDATE"
DELIVER = """
INSERT INTO deliveries (tenant, id, subscriber_id, event_id, event_type, trigger)
VALUES ('default', 'dlv_1', 'sub_1', $1, 'ping', 'replay')"""


async def test_an_old_event_that_gets_a_delivery_while_retention_waits_for_it_stays(
    tmp_path: Path,
) -> None:
    """The retention has looked at the deliveries by the time at which it waits."""
    event = events.new_event("default", "ping", {}, None, 1_000)
    async with opened_databases(tmp_path, 1) as [database], connected(database) as replay:
        await database.write(events.insert, [event])
        async with replay.transaction():
            await replay.execute(LOCK, event.id)
            await replay.execute(DELIVER, event.id)
            stage = partial(retention._delete_old, "events_old", before=10**12, limit=9)
            deleting = asyncio.ensure_future(database.write(stage, ""))
            await until_blocked(database, deleting)
        assert await deleting == (0, None)
        assert await replay.fetchval("SELECT count(*) FROM events") == 1
