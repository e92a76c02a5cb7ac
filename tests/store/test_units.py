"""What units and writes promise, on both databases; what only one of them has is tested beside."""

import asyncio
import gc
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from service.model.errors import StorageBusyError, StorageError
from service.store.database import Transaction
from service.store.item import Item
from service.store.postgres import Database as ServerDatabase
from service.store.sqlite import group
from service.store.sqlite.database import Database as FileDatabase
from service.store.writes import Database
from tests import engine

VIOLATION = (sqlite3.IntegrityError, asyncpg.UniqueViolationError)
TABLE = "CREATE TABLE things (name TEXT PRIMARY KEY)"

pytestmark = pytest.mark.parametrize("database_engine", engine.ENGINES, indirect=True)


@asynccontextmanager
async def opened(folder: Path, **options: Any) -> AsyncIterator[Any]:
    """A database of the engine of this test."""
    kind = FileDatabase if engine.schemas is None else ServerDatabase
    database = kind(engine.database_of(folder), clock=lambda: 7, **options)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def with_things(folder: Path, **options: Any) -> AsyncIterator[Any]:
    """A database with a table of its own."""
    async with opened(folder, **options) as database:
        if engine.schemas is not None:
            engine.schemas.use_up(folder)
        await database.write(create)
        yield database


async def create(tx: Transaction) -> None:
    await tx.select(TABLE, {})


@pytest.fixture
async def database(database_engine: str, tmp_path: Path) -> AsyncIterator[Database]:
    async with with_things(tmp_path) as database:
        yield database


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


async def test_only_the_units_that_fail_are_rolled_back(database: Database) -> None:
    async def put_and_raise(tx: Transaction) -> None:
        await put(tx, "never stored")
        raise LookupError

    async def broken_sql(tx: Transaction) -> None:
        await tx.select("SELECT nonsense FROM nowhere", {})

    results = await asyncio.gather(
        database.write(put, "before"),
        database.write(put_and_raise),
        database.write(broken_sql),
        database.write(put, "after"),
        return_exceptions=True,
    )
    with pytest.raises(VIOLATION):
        await database.write(put, "before")
    assert results[0] == results[3] == 1
    assert isinstance(results[1], LookupError)
    assert isinstance(results[2], StorageError), "the database lacks the table"
    assert await database.read(names_in) == ["after", "before"]


async def test_a_batch_that_fails_is_run_item_by_item(database: Database) -> None:
    await database.write(put, "b")
    writes = [database.write_batched(put_all, name) for name in ("a", "b", "c")]
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert results[0] == "A"
    assert isinstance(results[1], VIOLATION)
    assert results[2] == "C"
    assert await database.read(names_in) == ["a", "b", "c"]


async def test_a_unit_that_is_rolled_back_calls_nothing_after_the_commit(
    database: Database,
) -> None:
    calls: list[object] = []

    async def fails(tx: Transaction) -> None:
        tx.after_commit(calls.append, "alone")
        raise LookupError

    async def batch(tx: Transaction, names: Sequence[str]) -> list[None]:
        for name in names:
            tx.after_commit(calls.append, name)
        await put(tx, *names)
        return [None] * len(names)

    await database.write(put, "b")
    writes = [database.write_batched(batch, name) for name in ("a", "b")]
    await asyncio.gather(database.write(fails), *writes, return_exceptions=True)
    assert calls == ["a"]


async def test_commits_go_on_if_a_function_after_a_commit_raises(database: Database) -> None:
    calls: list[object] = []

    def fails() -> None:
        raise RuntimeError("after the commit")

    async def unit(tx: Transaction) -> str:
        tx.after_commit(fails)
        tx.after_commit(calls.append, "next")
        return "stored"

    async with asyncio.timeout(60):
        assert await database.write(unit) == "stored"
        assert await database.write(put, "a") == 1
    assert calls == ["next"]


async def test_a_full_queue_refuses_writes_at_once(tmp_path: Path) -> None:
    async with with_things(tmp_path, queue_max=2) as database:
        waiting = [database.write(put, name) for name in ("a", "b")]
        with pytest.raises(StorageBusyError):
            database.write(put, "c")
        with pytest.raises(StorageBusyError):
            database.write_batched(put_all, "c")
        always = database.write_always(put, "d")
        assert database.queued == 3
        assert await asyncio.gather(*waiting, always) == [1, 1, 1]
        assert await database.write(put, "c") == 1


async def test_write_always_raises_what_the_unit_raises(database: Database) -> None:
    await database.write(put, "same")
    with pytest.raises(VIOLATION):
        await database.write_always(put, "same")


async def test_what_comes_behind_others_sees_what_all_of_them_have_written(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "GROUP_CHANGES_MAX", 1)  # A group on SQLite leaves the second one.
    others = [database.write(put, name) for name in "ab"]
    assert await database.write_behind(names_in) == ["a", "b"]
    assert await asyncio.gather(*others) == [1, 1]


async def test_what_comes_behind_others_is_stored_though_the_database_closes(
    tmp_path: Path,
) -> None:
    async with with_things(tmp_path) as database:
        other = database.write(put, "a")
        behind = asyncio.ensure_future(database.write_behind(put, "b"))
        await asyncio.sleep(0)  # noqa: TID251  it has begun before the end
        await database.close()
        assert (await other, await behind) == (1, 1)
        await database.open()
        assert await database.read(names_in) == ["a", "b"]


async def test_a_canceled_caller_does_not_stop_the_others(database: Database) -> None:
    canceled = asyncio.ensure_future(database.write(put, "a"))
    other = database.write(put, "b")
    canceled.cancel()
    assert await other == 1
    assert "b" in await database.read(names_in)


async def test_readers_cannot_write(database: Database) -> None:
    async def writes(tx: Transaction) -> None:
        await put(tx, "no")

    with pytest.raises(StorageError, match=r"read-?only"):
        await database.read(writes)
    async with asyncio.timeout(60):
        names = await asyncio.gather(*(database.read(names_in) for _ in range(20)))
    assert names == [[]] * 20


async def test_units_get_the_time_of_their_transaction(database: Database) -> None:
    async def now(tx: Transaction) -> int:
        return tx.now

    assert await database.write(now) == await database.read(now) == 7


@pytest.mark.usefixtures("database")
async def test_an_error_of_which_no_caller_is_left_is_not_logged_as_forgotten() -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    item = Item(names_in, (), always=True)  # Who waited for it was cancelled, as at a stop.
    item.resolve(StorageError("the disk is full"))
    del item
    gc.collect()
    assert told == []
