"""PostgreSQL: units as if each ran alone, the order of events, lost and hanging servers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from service.model.errors import SearchTooLongError, StorageBusyError, StorageError
from service.model.event import Event
from service.store import events, pages, write_queue, writes
from service.store.database import Row, Transaction
from service.store.postgres import Database, reads
from service.store.postgres import database as database_module
from service.store.postgres.connection import COMMAND_SECONDS
from tests import engine

BLOCKED = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock'"""


@pytest.fixture
async def database(postgres: engine.Schemas, tmp_path: Path) -> AsyncIterator[Database]:
    async with opened(postgres, tmp_path) as database:
        await database.migrate()
        yield database


@contextlib.asynccontextmanager
async def opened(postgres: engine.Schemas, path: Path, **options: Any) -> AsyncIterator[Database]:
    database = Database(postgres.database_of(path), clock=lambda: 7, **options)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


@contextlib.asynccontextmanager
async def connected(database: Database) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(database.url)
    try:
        yield connection
    finally:
        await connection.close()


async def kill_all(database: Database) -> None:
    """End every connection to the database but our own, as a server that restarts does."""
    async with connected(database) as connection:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name LIKE 'genhook-%' AND datname = current_database()"
        )


async def until(is_true: Callable[[], bool]) -> None:
    """Let the event loop read from its connections until something is true."""
    async with asyncio.timeout(60):
        while not is_true():  # noqa: ASYNC110  nothing tells of it
            await asyncio.sleep(0)  # noqa: TID251


async def until_blocked(database: Database, work: "asyncio.Future[Any]") -> None:
    """Wait until the work is over or waits for a lock."""
    async with connected(database) as connection, asyncio.timeout(60):
        while not work.done() and not await connection.fetchval(BLOCKED):
            await asyncio.wait([work], timeout=0.002)


async def number(tx: Transaction) -> int:
    [row] = await tx.select("SELECT number FROM revisions", {})
    return int(row["number"])


async def increment(tx: Transaction) -> int:
    """Read, then write what was read, which would lose updates without the lock."""
    await tx.lock_names("number")
    seen = await number(tx)
    await tx.select("UPDATE revisions SET number = :number", {"number": seen + 1})
    return seen


async def increment_all(tx: Transaction, names: Sequence[str]) -> list[str]:
    await increment(tx)
    return list(names)


async def fail(tx: Transaction) -> None:
    await increment(tx)
    raise LookupError


async def test_units_of_several_processes_lose_no_update_of_each_other(
    database: Database, postgres: engine.Schemas, tmp_path: Path
) -> None:
    async with opened(postgres, tmp_path) as other:
        writes = [each.write(increment) for _ in range(20) for each in (database, other)]
        assert sorted(await asyncio.gather(*writes)) == list(range(40))


async def test_a_unit_that_the_server_ended_to_break_a_deadlock_runs_again(
    database: Database,
) -> None:
    runs = 0

    async def unit(tx: Transaction) -> int:
        nonlocal runs
        runs += 1
        seen = await increment(tx)
        if runs == 1:
            raise asyncpg.DeadlockDetectedError("deadlock detected")
        return seen

    assert (await database.write(unit), runs) == (0, 2)
    assert await database.read(number) == 1


async def test_a_unit_that_raises_stores_nothing_and_the_others_do(database: Database) -> None:
    results = await asyncio.gather(
        database.write(increment),
        database.write(fail),
        database.write(increment),
        return_exceptions=True,
    )
    assert isinstance(results[1], LookupError)
    assert await database.read(number) == 2


async def test_items_that_wait_together_share_one_call(database: Database) -> None:
    writes = [database.write_batched(increment_all, str(count)) for count in range(100)]
    assert await asyncio.gather(*writes) == [str(count) for count in range(100)]
    assert await database.read(number) <= 3


async def test_what_comes_while_its_unit_is_in_two_commits_is_one_group(database: Database) -> None:
    groups: list[list[str]] = []
    may_end = asyncio.Event()

    async def note(_tx: Transaction, names: Sequence[str]) -> list[str]:
        groups.append(list(names))
        await may_end.wait()
        return list(names)

    writes = []
    for count, name in enumerate(("first", "second"), 1):
        writes.append(database.write_batched(note, name))
        await until(lambda count=count: len(groups) == count)  # type: ignore[misc]
    for name in ("third", "fourth"):
        writes.append(database.write_batched(note, name))
        for _ in range(10):  # Turns of the loop in which it could be taken.
            await asyncio.sleep(0)  # noqa: TID251
    queued = database.queued
    may_end.set()
    await asyncio.gather(*writes)
    assert queued == 2
    assert groups == [["first"], ["second"], ["third", "fourth"]]


async def test_a_server_that_ended_every_idle_connection_is_used_as_if_it_had_not(
    database: Database, postgres: engine.Schemas
) -> None:
    """As in a process that was frozen: nothing was read from any of them meanwhile."""
    await asyncio.gather(*(database.write(increment) for _ in range(4)))
    assert postgres.end_connections() > 1
    seen = await asyncio.gather(*(database.write(increment) for _ in range(4)))
    assert sorted(seen) == [4, 5, 6, 7]
    assert postgres.end_connections() > 1
    assert await database.read(number) == 8


async def test_what_upstream_will_not_repeat_is_stored_once_the_server_is_back(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writes, "RETRY_SECONDS", 0)
    run_once = database._run_once
    failures = [ConnectionResetError("the server is gone")] * 2

    async def failing(batch: Any) -> Any:
        if failures:
            raise failures.pop()
        return await run_once(batch)

    monkeypatch.setattr(database, "_run_once", failing)
    always, once = database.write_always(increment), database.write(increment)
    with pytest.raises(StorageError, match="the server is gone"):
        await once
    assert await database.write_problem() == "the database failed: the server is gone"
    assert await always == 0


async def test_a_server_that_hangs_is_refused_in_time(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_queue, "WAIT_SECONDS", 0.05)
    async with connected(database) as connection, asyncio.timeout(60):
        async with connection.transaction():
            await connection.execute("LOCK TABLE revisions")
            with pytest.raises(StorageBusyError, match="in time"):
                await database.write(increment)
            assert await database.write_problem() == write_queue.STALLED
        await until(lambda: not database._queue.is_stalled)
    monkeypatch.setattr(write_queue, "WAIT_SECONDS", 60)
    await database.write(increment)


async def test_a_read_of_a_server_that_hangs_ends_in_time(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "READ_SECONDS", 0.05)
    async with connected(database) as connection, connection.transaction():
        await connection.execute("LOCK TABLE revisions")
        async with asyncio.timeout(COMMAND_SECONDS / 2):  # A statement has a limit of its own.
            with pytest.raises(StorageError, match="did not answer in time"):
                await database.read(number)


async def test_a_search_that_takes_too_long_is_ended(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def search(tx: Transaction) -> None:
        await tx.select("SELECT pg_sleep(60)", {})

    monkeypatch.setattr(reads, "SEARCH_SECONDS", 0.01)
    with pytest.raises(SearchTooLongError):
        await database.search("default", search)
    assert await database.read(number) == 0


async def test_nul_in_a_text_is_replaced(database: Database) -> None:
    async def echo(tx: Transaction) -> str:
        [row] = await tx.select("SELECT CAST(:text AS TEXT) AS text", {"text": "a\0b"})
        return str(row["text"])

    assert await database.read(echo) == "a\ufffdb"


def event(name: str) -> Event:
    return Event(
        id=f"evt_{name}", tenant="t", type="ping", generation_id=None, created_at=0, body=b"{}"
    )


async def listed(database: Database, after: str | None) -> list[str]:
    page = pages.Page(after=after, ascending=True)
    rows, _ = await events.read_page(database, page, "t")
    return [row["id"] for row in rows]


async def test_an_event_that_is_committed_late_is_not_skipped(database: Database) -> None:
    """Its id is older than that of an event that a reader has seen already."""
    async with connected(database) as late:
        transaction = late.transaction()
        await transaction.start()
        await late.execute(
            "INSERT INTO events (id, tenant, type, body) VALUES ('evt_1', 't', 'ping', '')"
        )
        await database.write(events.insert, [event("2")])
        assert await listed(database, None) == ["evt_2"]
        await transaction.commit()
    await database.write(events.insert, [event("3")])
    assert await listed(database, "evt_2") == ["evt_1", "evt_3"]
    assert await listed(database, None) == ["evt_2", "evt_1", "evt_3"]


async def test_a_cursor_that_is_no_event_begins_after_those_before_it(database: Database) -> None:
    """The latest of them is committed after the events were ordered, so it has no `seq` yet."""
    await database.write(events.insert, [event("1"), event("2")])
    await database.order_events()
    await database.write(events.insert, [event("3")])
    page = pages.Page(after="evt_4", ascending=True)
    rows, _ = await database.search("t", events.list_page, page, "t", None, None)
    assert rows == []


async def test_reads_of_a_database_that_is_closed_fail_as_storage_does(
    database: Database,
) -> None:
    """A request may outlive the stop of its process."""
    await database.close()
    for read in (
        database.read(number),
        database.search("t", number),
        database.order_events(),
        database.schema_problem(),
    ):
        with pytest.raises(StorageError):
            await read
    await database.open()
    assert await database.read(number) == 0


async def test_two_schemas_of_one_database_do_not_see_each_other(
    database: Database, postgres: engine.Schemas, tmp_path: Path
) -> None:
    async with opened(postgres, tmp_path / "other") as other:
        await other.migrate()
        await other.write(increment)
        assert await database.read(number) == 0


async def test_a_second_migration_does_nothing(database: Database) -> None:
    assert await database.migrate() == []
    assert await database.schema_problem() is None


async def test_a_schema_of_a_newer_genhook_is_refused(database: Database) -> None:
    async with connected(database) as connection:
        await connection.execute("UPDATE schema_version SET number = 99")
        try:
            with pytest.raises(StorageError, match="made by a newer genhook"):
                await database.migrate()
        finally:
            latest = database.schema_version
            await connection.execute("UPDATE schema_version SET number = $1", latest)


async def test_rows_of_one_insert_are_stored_by_one_execution(database: Database) -> None:
    """An insert that changes rows stays one for each row: it could meet the same row twice."""
    sent: list[str] = []

    async def unit(tx: Any) -> None:
        tx._connection.add_query_logger(lambda query: sent.append(query.query))
        keys = [{"tenant": "t", "name": f"n{n}", "value": "v"} for n in range(3)]
        await tx.many("generation_metadata_insert", [key | {"generation_id": "g"} for key in keys])
        await tx.many("confirmations_put", [{"generation_id": "g", "due_at": n} for n in (9, 5)])

    async def read(tx: Transaction) -> list[Row]:
        names = await tx.select("SELECT name FROM generation_metadata ORDER BY name", {})
        return names + await tx.select("SELECT due_at FROM confirmations", {})

    await database.write(unit)
    assert ["unnest(" in query for query in sent if query.startswith("INSERT")] == [True, False]
    rows = [next(iter(dict(row).values())) for row in await database.read(read)]
    assert rows == ["n0", "n1", "n2", 5]
