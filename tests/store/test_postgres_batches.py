"""Batches on PostgreSQL: how many of a unit are committed at once, and how much one may write."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from service.store.database import Transaction
from service.store.postgres import Database
from service.store.postgres.database import BATCHES_MAX
from tests.store.test_postgres import database, increment, number, until

__all__ = ["database"]  # The fixture.


class Held:
    """A batched unit whose commits hang until `may_end` is set."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.may_end = asyncio.Event()

    async def unit(self, _tx: Transaction, names: Sequence[str]) -> list[str]:
        self.batches.append(list(names))
        await self.may_end.wait()
        return list(names)


async def fill(database: Database, held: Held) -> list[Any]:
    """Let as many batches of a unit hang as may be committed at once, and one more item wait."""
    unit = held.unit
    writes = []
    for count in range(BATCHES_MAX):
        writes.append(database.write_batched(unit, str(count)))
        await until(lambda count=count: len(held.batches) > count)  # type: ignore[misc]
    writes.append(database.write_batched(unit, "waits"))
    await until(lambda: bool(database._full))
    return writes


async def test_a_unit_that_waits_for_its_own_batches_holds_up_no_other(database: Database) -> None:
    held = Held()
    writes = await fill(database, held)
    try:
        async with asyncio.timeout(10):
            assert await database.write(increment) == 0
        assert [len(batch) for batch in held.batches] == [1, 1]
    finally:
        held.may_end.set()
    assert await asyncio.gather(*writes) == ["0", "1", "waits"]


async def test_more_of_a_unit_that_waits_for_its_own_batches_is_not_looked_at(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look takes, and puts back, all that waits."""
    held, looks = Held(), 0
    writes = await fill(database, held)
    take = database._queue.take

    def count_and_take() -> Any:
        nonlocal looks
        looks += 1
        return take()

    monkeypatch.setattr(database._queue, "take", count_and_take)
    for count in range(20):
        writes.append(database.write_batched(held.unit, f"more {count}"))
        for _ in range(3):
            await asyncio.sleep(0)  # noqa: TID251
    held.may_end.set()
    assert looks == 0
    await asyncio.gather(*writes)
    assert [len(batch) for batch in held.batches] == [1, 1, 21]


async def test_the_end_commits_what_waits_for_other_batches_of_its_unit(database: Database) -> None:
    held = Held()
    writes = [*await fill(database, held), database.write(increment)]
    closing = asyncio.create_task(database.close())
    await asyncio.sleep(0)  # noqa: TID251
    held.may_end.set()
    async with asyncio.timeout(20):
        await closing
    assert await asyncio.gather(*writes) == ["0", "1", "waits", 0]
    await database.open()
    assert await database.read(number) == 1
