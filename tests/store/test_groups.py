"""A group of units: one transaction, and each way in which it can fail."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from service.model.errors import StorageError
from service.store.sqlite.database import Database, Transaction


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


async def put_and_note(tx: Transaction, name: str, noted: list[str]) -> None:
    await put(tx, name)
    tx.after_commit(noted.append, name)


async def names(database: Database) -> list[str]:
    async def read(tx: Transaction) -> list[str]:
        return [row["name"] for row in await tx.select("SELECT name FROM things", {})]

    return sorted(await database.read(read))


async def traced(database: Database) -> list[str]:
    """The statements that the writer executes from now on."""
    statements: list[str] = []
    await database.apply(lambda c: c.set_trace_callback(statements.append))
    return statements


async def results(*writes: Any) -> list[Any]:
    return list(await asyncio.gather(*writes, return_exceptions=True))


async def test_a_group_without_a_fault_is_one_transaction_without_savepoints(
    database: Database,
) -> None:
    statements = await traced(database)
    writes = [database.write(put, name) for name in "abc"]
    writes += [database.write_batched(put_all, name) for name in "de"]
    assert await results(*writes) == ["A", "B", "C", "D", "E"]
    control = [s for s in statements if s.split()[0] in ("BEGIN", "COMMIT", "SAVEPOINT")]
    assert control == ["BEGIN IMMEDIATE", "COMMIT"]


async def test_a_unit_that_raises_is_left_out_and_the_others_are_stored_once(
    database: Database,
) -> None:
    noted: list[str] = []
    outcome = await results(
        database.write(put_and_note, "a", noted),
        database.write(put_and_raise, "b"),
        database.write(put_and_note, "c", noted),
        database.write_batched(put_all, "d"),
        database.write_batched(put_all, "e"),
    )
    assert [type(one) for one in outcome[:3]] == [type(None), LookupError, type(None)]
    assert outcome[3:] == ["D", "E"]
    assert await names(database) == ["a", "c", "d", "e"]
    assert noted == ["a", "c"]


async def test_a_failed_group_is_committed_in_one_second_transaction(database: Database) -> None:
    statements = await traced(database)
    await results(database.write(put, "a"), database.write(put_and_raise, "b"))
    control = [s for s in statements if not s.startswith("INSERT")]
    assert control == [
        *("BEGIN IMMEDIATE", "ROLLBACK"),
        *("BEGIN IMMEDIATE", "SAVEPOINT unit", "RELEASE unit"),
        *("SAVEPOINT unit", "ROLLBACK TO unit", "RELEASE unit", "COMMIT"),
    ]


@pytest.mark.parametrize("at", [0, 1, 2])
async def test_a_constraint_fails_for_its_own_unit_alone(database: Database, at: int) -> None:
    await database.write(put, "taken")
    units = ["a", "b"]
    units.insert(at, "taken")
    outcome = await results(*(database.write(put, name) for name in units))
    assert [isinstance(one, sqlite3.IntegrityError) for one in outcome] == [
        name == "taken" for name in units
    ]
    assert await names(database) == ["a", "b", "taken"]


async def test_a_value_that_no_column_takes_fails_for_its_own_item_alone(
    database: Database,
) -> None:
    async def put_sizes(tx: Transaction, sizes: Sequence[int]) -> list[str]:
        return [await put(tx, f"size {size % 10}", size) for size in sizes]

    outcome = await results(
        *(database.write_batched(put_sizes, size) for size in (1, 2**64 + 2, 3))
    )
    assert [type(one) for one in outcome] == [str, OverflowError, str]
    assert await names(database) == ["size 1", "size 3"]


async def test_a_disk_that_is_full_in_the_middle_stores_nothing_of_the_group(
    database: Database,
) -> None:
    noted: list[str] = []
    await database.apply(lambda c: c.execute("PRAGMA max_page_count=1").fetchall())
    large = "x" * 100_000
    outcome = await results(
        database.write(put_and_note, "a", noted),
        database.write(put, large),
        database.write(put_and_note, "c", noted),
    )
    assert [type(one) for one in outcome] == [StorageError] * 3
    assert await names(database) == []
    assert noted == []
    await database.apply(lambda c: c.execute("PRAGMA max_page_count=100000").fetchall())
    assert await database.write(put, large) == large.upper()


@contextmanager
def locked(path: str) -> Any:
    """Another process writes for a long time."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


async def test_a_busy_database_fails_the_group_and_the_next_one_is_stored(
    database: Database,
) -> None:
    await database.apply(lambda c: c.execute("PRAGMA busy_timeout=0").fetchall())
    with locked(database.path):
        outcome = await results(database.write(put, "a"), database.write(put, "b"))
    assert [type(one) for one in outcome] == [StorageError] * 2
    assert await names(database) == []
    assert await database.write(put, "a") == "A"


async def test_a_caller_that_is_cancelled_loses_only_its_own_answer(database: Database) -> None:
    writes = [asyncio.ensure_future(database.write(put, name)) for name in "abc"]
    writes[1].cancel()
    with suppress(asyncio.CancelledError):
        await writes[1]
    assert await results(writes[0], writes[2]) == ["A", "C"]
    assert await names(database) == ["a", "b", "c"]


async def test_what_must_be_stored_survives_a_group_that_fails_beside_it(
    database: Database,
) -> None:
    outcome = await results(database.write_always(put, "a"), database.write(put_and_raise, "b"))
    assert outcome[0] == "A"
    assert isinstance(outcome[1], LookupError)
    assert await names(database) == ["a"]
