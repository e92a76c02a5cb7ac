"""The database: commits in groups, units that fail, a full queue, retries, checkpoints, closing."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from service.model.errors import StorageError
from service.store import lines, writes
from service.store.sqlite import connection, group
from service.store.sqlite import database as database_module
from service.store.sqlite import readers as readers_module
from service.store.sqlite.database import Database
from service.store.sqlite.group import Transaction
from tests.faults import disk_error
from tests.store.test_units import names_in, put, put_all


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await open_database(tmp_path)
    yield opened
    await opened.close()


async def open_database(folder: Path, **options: Any) -> Database:
    opened = Database(str(folder / "test.db"), clock=lambda: 7, **options)
    await opened.open()
    await opened.apply(lambda c: c.execute("CREATE TABLE things (name TEXT PRIMARY KEY) STRICT"))
    return opened


def record_group_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the size of each group from now on."""
    sizes: list[int] = []
    commit = group.commit_group

    def commit_and_record(connection: sqlite3.Connection, items: Sequence[Any], now: int) -> Any:
        sizes.append(len(items))
        return commit(connection, items, now)

    monkeypatch.setattr(group, "commit_group", commit_and_record)
    return sizes


async def test_every_commit_reaches_the_disk(database: Database) -> None:
    pragmas = ("journal_mode", "synchronous", "busy_timeout")
    values = await database.apply(
        lambda c: [c.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas]
    )
    assert values == ["wal", 2, 5_000]  # 2 is FULL.


async def test_other_connections_read_what_is_committed(database: Database, tmp_path: Path) -> None:
    assert await database.write(put, "a", "b") == 2
    with sqlite3.connect(tmp_path / "test.db") as other:
        assert other.execute("SELECT count(*) FROM things").fetchone()[0] == 2
    other.close()
    assert await database.read(names_in) == ["a", "b"]


async def test_units_that_wait_together_share_a_commit(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = record_group_sizes(monkeypatch)
    await asyncio.gather(*(database.write(put, f"n{i}") for i in range(100)))
    assert sum(sizes) == 100
    assert len(sizes) <= 2  # The first unit may be committed alone.


async def test_a_single_unit_is_committed_without_waiting_for_others(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = record_group_sizes(monkeypatch)
    await database.write(put, "a")
    await database.write(put, "b")
    assert sizes == [1, 1]


async def test_a_unit_that_may_wait_shares_the_next_commit(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writes, "PATIENCE_SECONDS", 60.0)
    sizes = record_group_sizes(monkeypatch)
    patient = [database.write_batched(put_all, name, may_wait=True) for name in "ab"]
    assert await database.read(names_in) == []
    assert await asyncio.gather(database.write(put, "c"), *patient) == [1, "A", "B"]
    assert sizes == [3]


async def test_a_unit_that_may_wait_is_committed_alone_after_a_moment(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = record_group_sizes(monkeypatch)
    async with asyncio.timeout(60):
        assert await database.write_batched(put_all, "a", may_wait=True) == "A"
        assert await database.write_batched(put_all, "b", may_wait=True) == "B"
    assert sizes == [1, 1]


async def test_close_commits_units_that_may_wait_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writes, "PATIENCE_SECONDS", 60.0)
    database = await open_database(tmp_path)
    patient = database.write_batched(put_all, "a", may_wait=True)
    async with asyncio.timeout(60):
        await database.close()
        assert await patient == "A"


async def test_a_group_has_at_most_group_max_units(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = record_group_sizes(monkeypatch)
    writes = [database.write(put, f"n{i}") for i in range(lines.GROUP_MAX + 10)]
    await asyncio.gather(*writes)
    assert max(sizes) == lines.GROUP_MAX
    assert sum(sizes) == lines.GROUP_MAX + 10


async def test_a_batched_unit_is_called_once_for_a_group(database: Database) -> None:
    calls: list[list[str]] = []

    async def unit(tx: Transaction, names: Sequence[str]) -> list[str]:
        calls.append(list(names))
        return await put_all(tx, names)

    writes: list[Awaitable[object]] = [database.write_batched(unit, n) for n in ("a", "b")]
    writes.append(database.write(put, "x"))
    writes.append(database.write_batched(unit, "c"))
    assert await asyncio.gather(*writes) == ["A", "B", 1, "C"]
    assert calls == [["a", "b", "c"]]


async def test_a_batch_that_returns_too_few_results_is_run_item_by_item(database: Database) -> None:
    async def return_one_result(tx: Transaction, names: Sequence[str]) -> list[str]:
        return (await put_all(tx, names))[:1]

    writes = [database.write_batched(return_one_result, name) for name in ("a", "b")]
    assert await asyncio.gather(*writes) == ["A", "B"]


async def test_functions_after_a_commit_are_called_in_order(database: Database) -> None:
    calls: list[object] = []

    async def unit(tx: Transaction, name: str) -> None:
        await put(tx, name)
        tx.after_commit(calls.append, name)

    await asyncio.gather(*(database.write(unit, name) for name in ("a", "b")))
    assert calls == ["a", "b"]


async def test_a_commit_that_fails_calls_nothing_after_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    async def unit(tx: Transaction) -> None:
        tx.after_commit(calls.append, "wrong")

    def full(*_: Any) -> None:
        raise disk_error("database or disk is full")

    monkeypatch.setattr(group, "commit_group", full)
    with pytest.raises(StorageError, match="disk is full"):
        await database.write(unit)
    assert calls == []


async def test_a_unit_may_await_only_its_transaction(database: Database) -> None:
    class Other:
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def unit(tx: Transaction) -> None:
        await tx.select("SELECT name FROM things", {})
        await Other()

    with pytest.raises(AssertionError, match="awaited"):
        await database.write(unit)
    with pytest.raises(AssertionError, match="awaited"):
        await database.read(unit)
    assert await database.read(names_in) == []


@pytest.mark.parametrize("fails", ["group", "unit"])
async def test_write_always_is_retried_until_the_disk_has_room(
    database: Database, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    commit, full = (
        group.commit_group,
        disk_error("database or disk is full"),
    )
    failures = [full, full]

    def failing(connection: sqlite3.Connection, items: Sequence[Any], now: int) -> Any:
        if not failures:
            return commit(connection, items, now)
        if fails == "group":
            raise failures.pop()
        for item in items:
            item.error = full
        failures.pop()
        return []

    monkeypatch.setattr(group, "commit_group", failing)
    monkeypatch.setattr(writes, "RETRY_SECONDS", 0)
    always, once = database.write_always(put, "answer"), database.write(put, "other")
    with pytest.raises(StorageError, match="full"):
        await once
    assert await always == 1
    assert await database.read(names_in) == ["answer"]


async def test_close_fails_a_write_always_that_is_still_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = await open_database(tmp_path)

    def failing(*_: object) -> None:
        raise disk_error("database or disk is full")

    monkeypatch.setattr(group, "commit_group", failing)
    always = asyncio.ensure_future(database.write_always(put, "answer"))
    with pytest.raises(StorageError, match="full"):
        await database.write(put, "other")
    async with asyncio.timeout(60):
        await database.close()
        with pytest.raises(StorageError, match="full"):
            await always


async def test_close_ends_on_a_disk_that_fails_more_slowly_than_units_are_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = await open_database(tmp_path)
    commits = 0

    def failing(_connection: sqlite3.Connection, items: Sequence[Any], _now: int) -> None:
        nonlocal commits
        commits += 1
        if commits > 20:  # For a test that ends.
            for item in items:
                item.always = False
        raise disk_error()

    monkeypatch.setattr(group, "commit_group", failing)
    monkeypatch.setattr(lines, "UNIT_ROWS", lines.GROUP_ROWS)  # Each unit is a group.
    # Each commit takes longer than that: what failed is due again while the next one fails.
    monkeypatch.setattr(writes, "RETRY_SECONDS", 0)
    always = [asyncio.ensure_future(database.write_always(put, name)) for name in "abc"]
    async with asyncio.timeout(20):
        await database.close()
        results = await asyncio.gather(*always, return_exceptions=True)
    assert [type(result) for result in results] == [StorageError] * 3
    assert commits <= 6
    await database.open()
    assert database.queued == 0, "a unit whose caller was told of a failure runs later"
    await database.close()


async def test_only_the_owner_may_read_a_new_database(database: Database, tmp_path: Path) -> None:
    await database.write(put, "a")
    files = sorted(tmp_path.glob("test.db*"))  # noqa: ASYNC240  three names
    assert len(files) == 3
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


async def run_checkpoint(database: Database) -> None:
    """Run the planned checkpoint now."""
    assert database._checkpoint_timer is not None
    database._checkpoint_timer.cancel()
    database._start_checkpoint()
    assert database._checkpoint is not None
    await database._checkpoint


async def test_a_checkpoint_after_a_commit_writes_the_database_file(
    database: Database, tmp_path: Path
) -> None:
    file = tmp_path / "test.db"
    before = file.read_bytes()
    await database.write(put, "a")
    await run_checkpoint(database)
    assert file.read_bytes() != before
    assert b"a" in file.read_bytes()
    assert database._checkpoint_timer is None, "only the next commit plans another checkpoint"


async def test_after_a_failed_checkpoint_the_next_commit_plans_another(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_connection: sqlite3.Connection) -> None:
        raise disk_error()

    monkeypatch.setattr(database_module, "checkpoint", fails)
    await database.write(put, "a")
    await run_checkpoint(database)
    assert database._checkpoint_timer is None
    assert await database.read(names_in) == ["a"]


async def test_a_database_that_is_opened_again_plans_checkpoints(database: Database) -> None:
    await database.write(put, "a")
    await database.close()
    await database.open()
    await database.write(put, "b")
    assert database._checkpoint_timer is not None
    assert not database._checkpoint_timer.cancelled(), "it is the one from before"


async def test_close_commits_the_queue_and_refuses_later_writes(tmp_path: Path) -> None:
    database = await open_database(tmp_path)
    writes = [database.write(put, f"n{i}") for i in range(1_000)]
    await database.close()
    assert await asyncio.gather(*writes) == [1] * 1_000
    with pytest.raises(StorageError, match="closed"):
        database.write(put, "late")
    with sqlite3.connect(tmp_path / "test.db") as other:
        assert other.execute("SELECT count(*) FROM things").fetchone()[0] == 1_000
    other.close()
    await database.close()


async def test_readers_that_cannot_be_opened_do_not_count_towards_the_maximum(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(_path: str) -> Any:
        raise disk_error("unable to open database file")

    with monkeypatch.context() as patched:
        patched.setattr(readers_module, "connect", fails)
        for _ in range(readers_module.READERS + 1):
            with pytest.raises(StorageError, match="unable to open"):
                async with asyncio.timeout(60):
                    await database.read(names_in)
    async with asyncio.timeout(60):
        assert await database.read(names_in) == []


@pytest.mark.parametrize("name", ["no/such/folder/test.db", "."])
async def test_a_path_that_cannot_be_opened_is_a_storage_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError, match="cannot open"):
        await Database(str(tmp_path / name)).open()


async def test_every_error_of_sqlite_on_the_writer_is_a_storage_error(database: Database) -> None:
    with pytest.raises(StorageError, match="no such table"):
        await database.apply(lambda c: c.execute("SELECT * FROM nowhere"))


async def test_the_wal_shrinks_after_a_long_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.store.sqlite.connection.WAL_KEPT_BYTES", 100_000)
    database = await open_database(tmp_path)
    wal = tmp_path / "test.db-wal"
    reader = sqlite3.connect(tmp_path / "test.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM things").fetchone()
    await database.write(put, "x" * 2_000_000)
    peak = wal.stat().st_size
    reader.close()
    await run_checkpoint(database)
    await database.write(put, "small")
    size = wal.stat().st_size
    await database.close()
    assert peak > 1_000_000
    assert size <= 100_000


async def test_a_connection_whose_opening_is_canceled_leaves_no_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, may_end, threads = asyncio.get_running_loop(), threading.Event(), list[threading.Thread]()
    join = threading.Thread.join

    def open_slowly(*_: object, **__: object) -> sqlite3.Connection:
        threads.append(threading.current_thread())
        loop.call_soon_threadsafe(opening.cancel)
        may_end.wait(60)
        raise sqlite3.OperationalError("too late")

    def join_at_last(self: threading.Thread, timeout: float | None = None) -> None:
        may_end.set()
        join(self, timeout)

    monkeypatch.setattr(connection, "_open", open_slowly)
    monkeypatch.setattr(threading.Thread, "join", join_at_last)
    opening = asyncio.create_task(connection.connect("test.db"))
    with pytest.raises(asyncio.CancelledError):
        await opening
    is_alive = threads[0].is_alive()
    may_end.set()
    assert not is_alive
