"""The queue in front of the database: bounded in bytes and seconds; a failing disk is told."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.model.errors import StorageBusyError, StorageError, UnstoredError
from service.store import write_queue as queue_module
from service.store import writes
from service.store.item import Item
from service.store.sqlite.database import Database
from service.store.sqlite.group import Transaction
from service.store.write_queue import Queue


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(str(tmp_path / "test.db"), clock=lambda: 7)
    await opened.open()
    await opened.migrate()
    yield opened
    await opened.close()


@contextmanager
def hanging(database: Database) -> Iterator[None]:
    """Let the disk hang: the writer's thread waits until the end of the context."""
    disk = threading.Event()
    hang = asyncio.ensure_future(database.apply(lambda _: disk.wait()))
    try:
        yield
    finally:
        disk.set()
        hang.add_done_callback(lambda done: done.result())


async def write(tx: Transaction) -> int:
    return await tx.run("subscribers_bump_revision")


async def write_all(tx: Transaction, items: list[str]) -> list[int]:
    return [await write(tx) for _ in items]


async def revision(database: Database) -> int:
    rows = await database.apply(
        lambda connection: connection.execute("SELECT number FROM revisions").fetchall()
    )
    return int(rows[0][0])


async def test_the_queue_is_bounded_in_bytes(database: Database) -> None:
    database._queue.bytes_max = 100
    with hanging(database):
        waiting = [database.write(write, held_bytes=60), database.write(write, held_bytes=40)]
        await asyncio.sleep(0)  # noqa: TID251  they are in a commit, and still held
        with pytest.raises(StorageBusyError, match="full"):
            database.write(write, held_bytes=1)
        with pytest.raises(StorageBusyError, match="full"):
            database.write_batched(write_all, "item", held_bytes=1)
        waiting.append(database.write(write))  # It holds no body.
    assert await asyncio.gather(*waiting) == [1, 1, 1]
    assert await database.write(write, held_bytes=100) == 1


async def test_a_body_above_the_bound_is_stored_if_it_is_the_only_one(database: Database) -> None:
    database._queue.bytes_max = 100
    large = database.write(write, held_bytes=1_000)
    with pytest.raises(StorageBusyError):
        database.write(write, held_bytes=1)
    assert await large == 1
    assert await database.write(write, held_bytes=1_000) == 1


async def test_nobody_waits_for_a_disk_that_hangs(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_module, "WAIT_SECONDS", 0)
    with hanging(database):
        committing = database.write(write, held_bytes=1)
        await asyncio.sleep(0)  # noqa: TID251  it is in a commit now
        waiting = database.write(write, held_bytes=1)
        always = database.write_always(write)
        with pytest.raises(StorageBusyError, match="in time") as may_be_stored:
            await asyncio.wait_for(committing, 10)
        assert may_be_stored.type is StorageBusyError
        with pytest.raises(UnstoredError, match="in time"):
            await asyncio.wait_for(waiting, 10)
        with pytest.raises(UnstoredError, match="in time"):
            database.write(write)
        assert await database.write_problem() == "the database did not commit in time"
        assert database.queued == 1
    assert await always == 1
    assert await revision(database) == 2, "a unit that was given up in the queue has run"
    monkeypatch.setattr(queue_module, "WAIT_SECONDS", 60)
    assert await database.write(write) == 1
    assert await database.write_problem() is None
    assert database._queue._held_bytes == 0


async def test_who_was_refused_does_not_go_back_into_the_queue() -> None:
    queue = Queue(10, lambda: None)
    refused, waiting = [Item(write, (), held_bytes=1) for _ in range(2)]
    queue.put(refused)
    queue.put(waiting)
    taken = queue.take()
    refused.ends_at = 0
    queue.end_waits()
    queue.put_back(taken)
    assert [*queue.take()] == [waiting]
    queue.finish([waiting])
    with pytest.raises(StorageBusyError):
        await refused.future
    assert (len(queue), queue._held_bytes) == (0, 0)
    queue.clear()


async def test_what_comes_behind_others_waits_for_none_that_come_later() -> None:
    woken: list[bool] = []
    queue = Queue(10, lambda: woken.append(True))
    one, two, three = [Item(write, ()) for _ in range(3)]
    behind_one, behind_two = [Item(write, (), is_behind=True) for _ in range(2)]
    queue.put(one)
    taken = queue.take()
    for item in (behind_one, two, behind_two):
        queue.put(item)
    queue.finish(taken)
    taken = queue.take()
    assert (woken, taken) == ([True], [two, behind_one])
    queue.put(three)
    queue.finish(taken)
    taken = queue.take()
    assert (woken, taken) == ([True] * 2, [three, behind_two])
    queue.finish(taken)
    assert len(queue) == 0
    queue.clear()


async def test_who_is_refused_while_the_file_is_opened_anew_never_runs(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = asyncio.Event()

    async def reopen(_writer: object) -> None:
        await opened.wait()
        database._must_reopen = False

    monkeypatch.setattr(database, "_reopen", reopen)
    database._must_reopen = True
    refused = database.write(write)
    for _ in range(5):
        await asyncio.sleep(0)  # noqa: TID251  until it is taken
    assert database.queued == 0
    for item in database._queue._committing:
        item.ends_at = 0
    database._queue.end_waits()
    with pytest.raises(StorageBusyError):
        await refused
    opened.set()
    for _ in range(5):
        await asyncio.sleep(0)  # noqa: TID251  until nothing is committed
    assert await database.write(write) == 1
    assert await revision(database) == 1


async def test_a_failed_commit_is_told_and_a_later_one_tried(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await database.write_problem() is None
    await database.apply(lambda c: c.execute("PRAGMA query_only=ON"))
    assert await database.write_problem() is None, "a commit is tried though one was just made"
    monkeypatch.setattr(writes, "PROBE_SECONDS", 0)
    monkeypatch.setattr(writes, "FAILING_SECONDS", 3_600)
    assert "readonly" in str(await database.write_problem())
    await database.apply(lambda c: c.execute("PRAGMA query_only=OFF"))
    assert await database.write(write) == 1
    assert "readonly" in str(await database.write_problem()), "failures are told for a while"
    monkeypatch.setattr(writes, "FAILING_SECONDS", 0)
    assert await database.write_problem() is None


async def test_a_unit_that_raises_is_no_fault_of_the_disk(database: Database) -> None:
    async def fail(_tx: Transaction) -> None:
        raise sqlite3.IntegrityError("UNIQUE")

    with pytest.raises(sqlite3.IntegrityError):
        await database.write(fail)
    assert await database.write_problem() is None


async def test_a_table_that_is_missing_is_told_and_what_must_be_stored_waits_for_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writes, "RETRY_SECONDS", 0.01)
    assert await database.write(write) == 1
    await database.apply(lambda c: c.execute("ALTER TABLE revisions RENAME TO away"))
    with pytest.raises(StorageError, match="no such table: revisions"):
        await database.write(write)
    assert "no such table" in str(await database.write_problem()), "a good commit hides it"
    always = database.write_always(write)
    with pytest.raises(StorageError, match="no such table"):
        await database.write(write)
    await database.apply(lambda c: c.execute("ALTER TABLE away RENAME TO revisions"))
    async with asyncio.timeout(60):
        assert await always == 1


@pytest.mark.parametrize(
    "sql", ["UPDATE revisions SET x = 1", "INSERT INTO revisions (x) SELECT 1"]
)
async def test_a_column_that_is_missing_is_the_fault_of_the_database(
    database: Database, sql: str
) -> None:
    async def unit(tx: Transaction) -> None:
        await tx.select(sql, {})

    with pytest.raises(StorageError, match="column"):
        await database.write(unit)
    assert "column" in str(await database.write_problem())


@pytest.mark.parametrize("error", [LookupError("odd"), sqlite3.OperationalError("odd")])
async def test_a_trial_that_fails_is_told_whatever_its_error_is(
    database: Database, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def touch(_tx: Transaction) -> None:
        raise error

    monkeypatch.setattr(writes, "PROBE_SECONDS", 0)
    monkeypatch.setattr(writes, "write_trial", touch)
    assert "odd" in str(await database.write_problem())


async def test_those_who_ask_together_share_a_trial(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = []

    async def touch(tx: Transaction) -> None:
        trials.append(tx)
        raise StorageError("failing")

    monkeypatch.setattr(writes, "PROBE_SECONDS", 0)
    monkeypatch.setattr(writes, "write_trial", touch)
    problems = await asyncio.gather(*(database.write_problem() for _ in range(5)))
    assert problems == ["failing"] * 5
    assert len(trials) == 1


async def test_who_waited_in_vain_while_no_commit_was_under_way_refuses_nobody_else(
    database: Database,
) -> None:
    """As after a process was frozen: the time of the wait is up before the commit begins."""
    waiting = database._enqueue(Item(write, ()), may_wait=True)
    [item] = database._queue._waiting
    item.ends_at = 0
    database._queue.end_waits()
    with pytest.raises(StorageBusyError):
        await waiting
    assert await database.write(write) == 1
