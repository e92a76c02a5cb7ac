"""Groups of units: one transaction for all, and the ways in which it can fail."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.model.errors import StorageError
from service.store.sqlite import group
from service.store.sqlite.database import Database
from service.store.sqlite.group import Transaction
from tests.faults import disk_error


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(str(tmp_path / "test.db"), clock=lambda: 7)
    await opened.open()
    await opened.apply(lambda c: c.execute("CREATE TABLE things (name TEXT PRIMARY KEY, size INT)"))
    yield opened
    await opened.close()


async def put(tx: Transaction, name: str, size: int = 0) -> str:
    await tx.select("INSERT INTO things VALUES (:name, :size)", {"name": name, "size": size})
    return name.upper()


async def put_all(tx: Transaction, names: Sequence[str]) -> list[str]:
    return [await put(tx, name) for name in names]


async def put_and_raise(tx: Transaction, name: str) -> None:
    await put(tx, name)
    raise LookupError(name)


async def put_and_call(tx: Transaction, name: str, calls: list[str]) -> None:
    await put(tx, name)
    tx.after_commit(calls.append, name)


async def stored_names(database: Database) -> list[str]:
    async def read(tx: Transaction) -> list[str]:
        return [row["name"] for row in await tx.select("SELECT name FROM things", {})]

    return sorted(await database.read(read))


async def trace(database: Database) -> list[str]:
    """Return a list that gets every statement the writer executes from now on."""
    statements: list[str] = []
    await database.apply(lambda c: c.set_trace_callback(statements.append))
    return statements


async def results(*writes: Any) -> list[Any]:
    return list(await asyncio.gather(*writes, return_exceptions=True))


async def test_a_group_that_succeeds_is_one_transaction_without_savepoints(
    database: Database,
) -> None:
    statements = await trace(database)
    writes = [database.write(put, name) for name in "abc"]
    writes += [database.write_batched(put_all, name) for name in "de"]
    assert await results(*writes) == ["A", "B", "C", "D", "E"]
    control = [s for s in statements if s.split()[0] in ("BEGIN", "COMMIT", "SAVEPOINT")]
    assert control == ["BEGIN IMMEDIATE", "COMMIT"]


async def test_a_unit_that_raises_is_left_out_and_the_others_are_stored_once(
    database: Database,
) -> None:
    calls: list[str] = []
    *alone, d, e = await results(
        database.write(put_and_call, "a", calls),
        database.write(put_and_raise, "b"),
        database.write(put_and_call, "c", calls),
        database.write_batched(put_all, "d"),
        database.write_batched(put_all, "e"),
    )
    assert [type(result) for result in alone] == [type(None), LookupError, type(None)]
    assert (d, e) == ("D", "E")
    assert await stored_names(database) == ["a", "c", "d", "e"]
    assert calls == ["a", "c"]


async def test_a_failed_group_is_run_again_in_one_second_transaction(database: Database) -> None:
    statements = await trace(database)
    await results(database.write(put, "a"), database.write(put_and_raise, "b"))
    control = [s for s in statements if not s.startswith("INSERT")]
    assert control == [
        *("BEGIN IMMEDIATE", "ROLLBACK"),
        *("BEGIN IMMEDIATE", "SAVEPOINT unit", "RELEASE unit"),
        *("SAVEPOINT unit", "ROLLBACK TO unit", "RELEASE unit", "COMMIT"),
    ]


@pytest.mark.parametrize("position", [0, 1, 2])
async def test_a_violated_constraint_fails_only_its_own_unit(
    database: Database, position: int
) -> None:
    await database.write(put, "existing")
    names = ["a", "b"]
    names.insert(position, "existing")
    outcomes = await results(*(database.write(put, name) for name in names))
    assert [isinstance(outcome, sqlite3.IntegrityError) for outcome in outcomes] == [
        name == "existing" for name in names
    ]
    assert await stored_names(database) == ["a", "b", "existing"]


async def test_a_value_that_sqlite_cannot_store_fails_only_its_own_item(
    database: Database,
) -> None:
    async def put_sizes(tx: Transaction, sizes: Sequence[int]) -> list[str]:
        return [await put(tx, f"size {size % 10}", size) for size in sizes]

    outcomes = await results(
        *(database.write_batched(put_sizes, size) for size in (1, 2**64 + 2, 3))
    )
    assert [type(outcome) for outcome in outcomes] == [str, OverflowError, str]
    assert await stored_names(database) == ["size 1", "size 3"]


@pytest.mark.parametrize("sql", ["SELECT value FROM json_each('{')", "SELECT CAST(x'ff' AS TEXT)"])
async def test_a_damaged_row_fails_only_the_unit_that_reads_it(
    database: Database, sql: str
) -> None:
    async def read(tx: Transaction) -> None:
        await tx.select(sql, {})

    async with asyncio.timeout(60):
        damaged, stored = await results(database.write_always(read), database.write(put, "a"))
    assert isinstance(damaged, sqlite3.OperationalError)
    assert stored == "A"
    assert await database.write_problem() is None
    assert await stored_names(database) == ["a"]


@pytest.mark.parametrize(
    ("sql", "error"),
    [
        ("SELECT CAST(x'ff' AS TEXT)", sqlite3.OperationalError),
        ("SELECT value FROM json_each('{')", sqlite3.OperationalError),
        ("SELECT * FROM nowhere", StorageError),
        ("SELECT missing FROM things", StorageError),
    ],
)
async def test_reads_searches_and_writes_fail_alike(
    database: Database, sql: str, error: type[Exception]
) -> None:
    async def unit(tx: Transaction) -> None:
        await tx.select(sql, {})

    asked = database.read(unit), database.search("tenant", unit), database.write(unit)
    assert [type(outcome) for outcome in await results(*asked)] == [error] * 3


async def test_if_the_disk_is_full_nothing_of_the_group_is_stored(database: Database) -> None:
    calls: list[str] = []
    await database.apply(lambda c: c.execute("PRAGMA max_page_count=1").fetchall())
    large = "x" * 100_000
    outcomes = await results(
        database.write(put_and_call, "a", calls),
        database.write(put, large),
        database.write(put_and_call, "c", calls),
    )
    assert [type(outcome) for outcome in outcomes] == [StorageError] * 3
    assert await stored_names(database) == []
    assert calls == []
    await database.apply(lambda c: c.execute("PRAGMA max_page_count=100000").fetchall())
    assert await database.write(put, large) == large.upper()


@contextmanager
def locked(path: str) -> Any:
    """Hold the write lock of the database, as another process can."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


async def test_a_locked_database_fails_the_group_and_the_next_one_is_stored(
    database: Database,
) -> None:
    await database.apply(lambda c: c.execute("PRAGMA busy_timeout=0").fetchall())
    with locked(database.path):
        outcomes = await results(database.write(put, "a"), database.write(put, "b"))
    assert [type(outcome) for outcome in outcomes] == [StorageError] * 2
    assert await stored_names(database) == []
    assert await database.write(put, "a") == "A"


async def test_a_read_during_which_sqlite_rolls_back_tells_its_own_error(
    database: Database,
) -> None:
    async def fail(tx: Transaction) -> None:
        await tx.select("ROLLBACK", {})  # As SQLite does by itself after some errors of the disk.
        raise disk_error()

    with pytest.raises(StorageError, match="disk I/O error"):
        await database.read(fail)
    assert await stored_names(database) == []


async def test_the_unit_of_a_canceled_caller_is_still_stored(database: Database) -> None:
    writes = [asyncio.ensure_future(database.write(put, name)) for name in "abc"]
    writes[1].cancel()
    with suppress(asyncio.CancelledError):
        await writes[1]
    assert await results(writes[0], writes[2]) == ["A", "C"]
    assert await stored_names(database) == ["a", "b", "c"]


async def test_write_always_is_stored_when_another_unit_of_its_group_fails(
    database: Database,
) -> None:
    always, other = await results(
        database.write_always(put, "a"), database.write(put_and_raise, "b")
    )
    assert always == "A"
    assert isinstance(other, LookupError)
    assert await stored_names(database) == ["a"]


async def put_many(tx: Transaction, names: Sequence[str]) -> list[int]:
    rows = [{"name": f"{name}{i}"} for name in names for i in range(group.GROUP_CHANGES_MAX // 4)]
    sql = "INSERT INTO things VALUES (:name, 0)"
    for row in rows:
        await tx.select(sql, row)
    return [tx.now] * len(names)


async def put_many_alone(tx: Transaction, name: str) -> None:
    await put_many(tx, [name])


@pytest.mark.parametrize("small", [put, put_and_raise])
async def test_a_group_writes_so_many_rows_of_one_kind_and_leaves_the_others_for_the_next(
    database: Database, monkeypatch: pytest.MonkeyPatch, small: Any
) -> None:
    monkeypatch.setattr(group, "GROUP_CHANGES_MAX", 40)
    monkeypatch.setattr(group, "FIRST_ITEMS", 1)
    ended: list[str] = []

    async def note(write: Any, name: str) -> None:
        with suppress(LookupError):
            await write
        ended.append(name)

    calls = [note(database.write_batched(put_many, f"a{i}-"), "batched") for i in range(6)]
    calls += [note(database.write(put_many_alone, f"b{i}-"), "alone") for i in range(6)]
    calls.append(note(database.write(small, "c"), "small"))
    await asyncio.gather(*calls)
    assert ended.index("small") == 8  # Behind four of each kind: the first group has it.
    assert sorted(ended) == ["alone"] * 6 + ["batched"] * 6 + ["small"]
    assert len(await stored_names(database)) == 12 * 10 + (small is put)


async def test_a_group_is_measured_while_it_runs(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "time", SimpleNamespace(perf_counter=count(step=10).__next__))
    learned: list[float] = []
    monkeypatch.setattr(
        database._queue._waiting, "learn", lambda items: learned.extend(i.seconds for i in items)
    )
    monkeypatch.setattr(group, "GROUP_CHANGES_MAX", 40)
    await asyncio.gather(*(database.write_batched(put_many, name) for name in "ab"))
    assert learned == [10, 0]
