"""The database: one commit stream in groups, bad units alone in their failure, bounds, an end."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from service.model.errors import StorageBusyError, StorageError
from service.store.sqlite import database as module
from service.store.sqlite.database import Database, Transaction


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await fresh(tmp_path)
    yield opened
    await opened.close()


async def fresh(folder: Path, **options: Any) -> Database:
    made = Database(str(folder / "test.db"), clock=lambda: 7, **options)
    await made.open()
    await made.apply(lambda c: c.execute("CREATE TABLE things (name TEXT PRIMARY KEY) STRICT"))
    return made


async def put(tx: Transaction, *names: str) -> int:
    for name in names:
        await tx.select("INSERT INTO things VALUES (:name)", {"name": name})
    return len(names)


async def put_all(tx: Transaction, names: Sequence[str]) -> list[str]:
    await put(tx, *names)
    return [name.upper() for name in names]


async def names_in(tx: Transaction) -> list[str]:
    rows = await tx.select("SELECT name FROM things ORDER BY name", {})
    return [row["name"] for row in rows]


def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the groups that are committed from now on."""
    sizes: list[int] = []
    commit = module._commit_group

    def counted(connection: sqlite3.Connection, items: Sequence[Any], now: int) -> Any:
        sizes.append(len(items))
        return commit(connection, items, now)

    monkeypatch.setattr(module, "_commit_group", counted)
    return sizes


async def test_every_commit_reaches_the_disk(database: Database) -> None:
    pragmas = ("journal_mode", "synchronous", "busy_timeout")
    found = await database.apply(
        lambda c: [c.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas]
    )
    assert found == ["wal", 2, 5_000]  # 2 is FULL.


async def test_what_is_written_is_there_for_others(database: Database, tmp_path: Path) -> None:
    assert await database.write(put, "a", "b") == 2
    with sqlite3.connect(tmp_path / "test.db") as other:
        assert other.execute("SELECT count(*) FROM things").fetchone()[0] == 2
    other.close()
    assert await database.read(names_in) == ["a", "b"]


async def test_units_that_wait_together_share_a_commit(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = groups(monkeypatch)
    await asyncio.gather(*(database.write(put, f"n{i}") for i in range(100)))
    assert sum(sizes) == 100
    assert len(sizes) <= 2  # The first may have left alone.


async def test_a_lone_unit_does_not_wait_for_company(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = groups(monkeypatch)
    await database.write(put, "a")
    await database.write(put, "b")
    assert sizes == [1, 1]


async def test_a_group_has_a_greatest_size(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = groups(monkeypatch)
    writes = [database.write(put, f"n{i}") for i in range(module.GROUP_MAX + 10)]
    await asyncio.gather(*writes)
    assert max(sizes) == module.GROUP_MAX
    assert sum(sizes) == module.GROUP_MAX + 10


async def test_a_unit_that_fails_takes_nobody_with_it(database: Database) -> None:
    async def half(tx: Transaction) -> None:
        await put(tx, "half")
        raise LookupError

    async def broken(tx: Transaction) -> None:
        await tx.select("SELECT nonsense FROM nowhere", {})

    results = await asyncio.gather(
        database.write(put, "before"),
        database.write(half),
        database.write(broken),
        database.write(put, "before"),  # A second one: the primary key refuses it.
        database.write(put, "after"),
        return_exceptions=True,
    )
    assert results[0] == results[4] == 1
    assert isinstance(results[1], LookupError)
    assert isinstance(results[2], StorageError)
    assert isinstance(results[3], sqlite3.IntegrityError)
    assert await database.read(names_in) == ["after", "before"]


async def test_batched_units_of_one_group_share_one_call(database: Database) -> None:
    calls: list[list[str]] = []

    async def unit(tx: Transaction, names: Sequence[str]) -> list[str]:
        calls.append(list(names))
        return await put_all(tx, names)

    writes: list[Awaitable[object]] = [database.write_batched(unit, n) for n in ("a", "b")]
    writes.append(database.write(put, "x"))
    writes.append(database.write_batched(unit, "c"))
    assert await asyncio.gather(*writes) == ["A", "B", 1, "C"]
    assert calls == [["a", "b", "c"]]


async def test_a_batch_that_fails_is_tried_one_by_one(database: Database) -> None:
    await database.write(put, "b")
    writes = [database.write_batched(put_all, name) for name in ("a", "b", "c")]
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert results[0] == "A"
    assert isinstance(results[1], sqlite3.IntegrityError)
    assert results[2] == "C"
    assert await database.read(names_in) == ["a", "b", "c"]


async def test_a_batch_that_answers_too_few_is_tried_one_by_one(database: Database) -> None:
    async def forgetful(tx: Transaction, names: Sequence[str]) -> list[str]:
        return (await put_all(tx, names))[:1]

    writes = [database.write_batched(forgetful, name) for name in ("a", "b")]
    assert await asyncio.gather(*writes) == ["A", "B"]


async def test_what_follows_a_commit_runs_after_it_and_in_order(database: Database) -> None:
    seen: list[object] = []

    async def unit(tx: Transaction, name: str) -> None:
        await put(tx, name)
        tx.after_commit(seen.append, name)

    await asyncio.gather(*(database.write(unit, name) for name in ("a", "b")))
    assert seen == ["a", "b"]


async def test_nothing_follows_a_unit_that_was_rolled_back(database: Database) -> None:
    seen: list[object] = []

    async def fails(tx: Transaction) -> None:
        tx.after_commit(seen.append, "alone")
        raise LookupError

    async def batch(tx: Transaction, names: Sequence[str]) -> list[None]:
        for name in names:
            tx.after_commit(seen.append, name)
        await put(tx, *names)
        return [None] * len(names)

    await database.write(put, "b")
    writes = [database.write_batched(batch, name) for name in ("a", "b")]
    await asyncio.gather(database.write(fails), *writes, return_exceptions=True)
    assert seen == ["a"]


async def test_nothing_follows_a_commit_that_fails(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    async def unit(tx: Transaction) -> None:
        tx.after_commit(seen.append, "wrong")

    def full(*_: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(module, "_commit_group", full)
    with pytest.raises(StorageError, match="disk is full"):
        await database.write(unit)
    assert seen == []


async def test_what_follows_a_commit_may_fail_without_ending_the_stream(
    database: Database,
) -> None:
    seen: list[object] = []

    def fails() -> None:
        raise RuntimeError("a follow-up")

    async def unit(tx: Transaction) -> str:
        tx.after_commit(fails)
        tx.after_commit(seen.append, "next")
        return "stored"

    async with asyncio.timeout(10):
        assert await database.write(unit) == "stored"
        assert await database.write(put, "a") == 1
    assert seen == ["next"]


async def test_a_unit_that_waits_for_something_else_is_refused(database: Database) -> None:
    class Elsewhere:
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def dawdles(tx: Transaction) -> None:
        await tx.select("SELECT name FROM things", {})
        await Elsewhere()

    with pytest.raises(AssertionError, match="waited"):
        await database.write(dawdles)
    with pytest.raises(AssertionError, match="waited"):
        await database.read(dawdles)
    assert await database.read(names_in) == []


async def test_a_full_queue_says_so_at_once(tmp_path: Path) -> None:
    database = await fresh(tmp_path, queue_max=2)
    try:
        waiting = [database.write(put, name) for name in ("a", "b")]
        with pytest.raises(StorageBusyError):
            database.write(put, "c")
        with pytest.raises(StorageBusyError):
            database.write_batched(put_all, "c")
        owed = database.write_always(put, "d")
        assert database.queued == 3
        assert await asyncio.gather(*waiting, owed) == [1, 1, 1]
        assert await database.write(put, "c") == 1
    finally:
        await database.close()


@pytest.mark.parametrize("how", ["group", "unit"])
async def test_what_nobody_will_say_again_is_stored_once_the_disk_takes_it(
    database: Database, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    commit, full = module._commit_group, sqlite3.OperationalError("database or disk is full")
    failures = [full, full]

    def failing(connection: sqlite3.Connection, items: Sequence[Any], now: int) -> Any:
        if not failures:
            return commit(connection, items, now)
        if how == "group":
            raise failures.pop()
        for item in items:
            item.error = full
        failures.pop()
        return []

    monkeypatch.setattr(module, "_commit_group", failing)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0)
    lasting, plain = database.write_always(put, "answer"), database.write(put, "other")
    with pytest.raises(StorageError, match="full"):
        await plain
    assert await lasting == 1
    assert await database.read(names_in) == ["answer"]


async def test_what_a_unit_raises_itself_is_told_and_not_tried_again(database: Database) -> None:
    await database.write(put, "same")
    with pytest.raises(sqlite3.IntegrityError):
        await database.write_always(put, "same")


async def test_close_tells_whoever_still_waits_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = await fresh(tmp_path)

    def failing(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(module, "_commit_group", failing)
    lasting = asyncio.ensure_future(database.write_always(put, "answer"))
    with pytest.raises(StorageError, match="full"):
        await database.write(put, "other")
    await database.close()
    with pytest.raises(StorageError, match="closed"):
        await lasting


async def test_a_new_database_is_for_its_owner_alone(database: Database, tmp_path: Path) -> None:
    await database.write(put, "a")
    files = sorted(tmp_path.glob("test.db*"))  # noqa: ASYNC240  three names
    assert len(files) == 3
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


async def at_once(database: Database) -> None:
    """the checkpoint that is due soon."""
    assert database._checkpoint_timer is not None
    database._checkpoint_timer.cancel()
    database._start_checkpoint()
    assert database._checkpoint is not None
    await database._checkpoint


async def test_the_log_is_taken_into_the_database_beside_the_writer(
    database: Database, tmp_path: Path
) -> None:
    file = tmp_path / "test.db"
    before = file.read_bytes()
    await database.write(put, "a")
    await at_once(database)
    assert file.read_bytes() != before
    assert b"a" in file.read_bytes()
    assert database._checkpoint_timer is None, "the next commit starts the next one"


async def test_a_checkpoint_that_fails_is_tried_again_after_the_next_commit(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_connection: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(module, "checkpoint", fails)
    await database.write(put, "a")
    await at_once(database)
    assert database._checkpoint_timer is None
    assert await database.read(names_in) == ["a"]


async def test_close_finishes_the_queue_and_takes_no_more(tmp_path: Path) -> None:
    database = await fresh(tmp_path)
    writes = [database.write(put, f"n{i}") for i in range(1_000)]
    await database.close()
    assert await asyncio.gather(*writes) == [1] * 1_000
    with pytest.raises(StorageError, match="closed"):
        database.write(put, "late")
    with sqlite3.connect(tmp_path / "test.db") as other:
        assert other.execute("SELECT count(*) FROM things").fetchone()[0] == 1_000
    other.close()
    await database.close()


async def test_a_waiter_who_left_does_not_stop_the_others(database: Database) -> None:
    impatient = asyncio.ensure_future(database.write(put, "a"))
    patient = database.write(put, "b")
    impatient.cancel()
    assert await patient == 1
    assert "b" in await database.read(names_in)


async def test_readers_see_what_is_committed_and_cannot_write(database: Database) -> None:
    async def writes(tx: Transaction) -> None:
        await put(tx, "no")

    with pytest.raises(StorageError, match="readonly"):
        await database.read(writes)
    async with asyncio.timeout(10):
        many = await asyncio.gather(*(database.read(names_in) for _ in range(20)))
    assert many == [[]] * 20


async def test_a_reader_that_cannot_be_opened_costs_no_slot(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(_path: str, *, writes: bool) -> Any:
        assert not writes
        raise sqlite3.OperationalError("unable to open database file")

    with monkeypatch.context() as patched:
        patched.setattr(module, "connect", fails)
        for _ in range(module.READERS + 1):
            with pytest.raises(StorageError, match="unable to open"):
                async with asyncio.timeout(10):
                    await database.read(names_in)
    async with asyncio.timeout(10):
        assert await database.read(names_in) == []


async def test_units_are_told_the_time_of_their_transaction(database: Database) -> None:
    async def now(tx: Transaction) -> int:
        return tx.now

    assert await database.write(now) == await database.read(now) == 7


@pytest.mark.parametrize("name", ["no/such/folder/test.db", "."])
async def test_a_path_that_cannot_be_opened_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError, match="cannot open"):
        await Database(str(tmp_path / name)).open()
