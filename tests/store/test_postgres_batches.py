"""Commits on PostgreSQL: batches of a unit, how much one may write, and writers that hang."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from service.model.errors import StorageBusyError
from service.model.event import Event
from service.store import deliveries, write_queue, writes
from service.store.database import Transaction
from service.store.postgres import Database
from service.store.postgres.database import BATCHES_MAX, WRITERS_MAX
from service.store.postgres.transaction import BATCH_CHARGE_MAX, TooManyRowsError
from service.store.postgres.transaction import Transaction as PostgresTransaction
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
    await until(lambda: bool(database._held_units))
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


class Fan:
    """A batched unit that charges rows for each of its items: (tenant, rows)."""

    def __init__(self) -> None:
        self.tries: list[int] = []
        self.batches: list[list[str]] = []  # Those that were not ended for their rows.

    async def unit(self, tx: Transaction, items: Sequence[tuple[str, int]]) -> list[str]:
        self.tries.append(len(items))
        for tenant, rows in items:
            tx.charge({tenant: rows})
        self.batches.append([tenant for tenant, _ in items])
        return self.batches[-1]

    def write(self, database: Database, tenant: str, rows: int) -> Any:
        return database.write_batched(self.unit, (tenant, rows), tenant=tenant)


async def test_a_batch_of_too_many_rows_runs_with_fewer_items_and_the_others_later(
    database: Database,
) -> None:
    fan = Fan()
    writes = [fan.write(database, "t", 1_000) for _ in range(100)]
    assert await asyncio.gather(*writes) == ["t"] * 100
    assert fan.tries[0] == 100
    assert max(map(len, fan.batches)) * 1_000 <= BATCH_CHARGE_MAX
    assert fan.tries[-10:] == [1] * 10  # By then it is known how many rows each writes.


async def test_a_batch_that_charges_item_by_item_is_tried_a_few_times(database: Database) -> None:
    """Its unit ends just above BATCH_CHARGE_MAX each time, and never tells how many rows it has."""
    fan = Fan()
    tenants = [f"t{number}" for number in range(500)]
    writes = [fan.write(database, tenant, 11) for tenant in tenants]
    assert await asyncio.gather(*writes) == tenants
    assert len(fan.tries) - len(fan.batches) == 1
    assert max(map(len, fan.batches)) * 11 <= BATCH_CHARGE_MAX


async def test_a_batch_is_charged_for_all_tenants_before_it_ends() -> None:
    of_ping: dict[str, Any] = {"type": "ping", "generation_id": None, "created_at": 0, "body": b""}
    events = [Event(id=f"evt_{n}", tenant=f"t{n}", **of_ping) for n in range(100)]
    nobody: Any = None  # It ends before it makes a delivery for a subscriber.
    targets = [(event, nobody, 0) for event in events for _ in range(BATCH_CHARGE_MAX // 50)]
    tx = PostgresTransaction(None, 0, frozenset())
    tx.has_many_items = True
    with pytest.raises(TooManyRowsError) as raised:
        await deliveries.insert(tx, targets)
    assert raised.value.rows == 2 * BATCH_CHARGE_MAX


async def test_the_end_commits_what_a_batch_of_too_many_rows_has_left(database: Database) -> None:
    fan = Fan()
    writes = [fan.write(database, "t", 1_000) for _ in range(10)]
    await database.close()
    assert [write.done() for write in writes] == [True] * 10
    await database.open()


async def test_one_item_may_write_more_rows_than_a_batch(database: Database) -> None:
    fan = Fan()
    writes = [fan.write(database, "t", 2 * BATCH_CHARGE_MAX) for _ in range(3)]
    assert await asyncio.gather(*writes) == ["t"] * 3
    assert [len(batch) for batch in fan.batches] == [1] * 3


async def test_tenants_have_turns_by_the_rows_that_their_units_write(database: Database) -> None:
    fan = Fan()
    before = [fan.write(database, "many", 1_000), fan.write(database, "few", 1)]
    await asyncio.gather(*before)
    fan.batches.clear()
    many = [fan.write(database, "many", 1_000) for _ in range(20)]
    await asyncio.gather(*many, *(fan.write(database, "few", 1) for _ in range(50)))
    # The first that is taken; another connection may begin the next one before.
    [mixed] = [batch for batch in fan.batches if "few" in batch]
    assert (mixed.count("many"), mixed.count("few")) == (1, 50)


class Hanging:
    """A unit that hangs until `may_end` is set, as one that waits for a row."""

    def __init__(self) -> None:
        self.begun = 0
        self.may_end = asyncio.Event()

    async def unit(self, _tx: Transaction) -> None:
        self.begun += 1
        await self.may_end.wait()

    async def begin(self, database: Database, count: int) -> list[Any]:
        """Let so many of these units hang in their transactions."""
        total = self.begun + count
        writes = [database.write(self.unit) for _ in range(count)]
        await until(lambda: self.begun == total)
        return writes


@pytest.fixture
async def hanging() -> AsyncIterator[Hanging]:
    hanging = Hanging()
    yield hanging
    hanging.may_end.set()


async def give_up(*writes: Any) -> None:
    """Wait until the callers of these writes have stopped waiting."""
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert [isinstance(result, StorageBusyError) for result in results] == [True] * len(writes)


async def refuse(database: Database, *writes: Any) -> None:
    """Let the time pass after which no caller waits, and expect that these have been refused."""
    loop = asyncio.get_running_loop()
    with pytest.MonkeyPatch.context() as patched:
        later = loop.time() + write_queue.WAIT_SECONDS
        patched.setattr(loop, "time", lambda: later)
        database._queue.end_waits()
    await give_up(*writes)


async def test_commits_that_hang_refuse_no_write_while_a_writer_is_free(
    database: Database, hanging: Hanging
) -> None:
    await refuse(database, *await hanging.begin(database, WRITERS_MAX - 1))
    assert database._queue.is_stalled
    assert await database.write(increment) == 0
    assert await database.write_problem() is None


async def test_a_commit_that_hangs_is_no_problem_beside_one_that_ended_later(
    database: Database, hanging: Hanging
) -> None:
    [write] = await hanging.begin(database, 1)
    assert await database.write(increment) == 0
    await refuse(database, write)
    assert not database._queue.is_stalled


async def test_readiness_tries_a_commit_while_others_hang_and_a_writer_is_free(
    database: Database, hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await database.write(increment) == 0
    await refuse(database, *await hanging.begin(database, 1))
    monkeypatch.setattr(writes, "write_trial", hanging.unit)
    trial = asyncio.ensure_future(database.write_problem())
    await until(lambda: hanging.begun == 2)
    await refuse(database)
    assert await trial == write_queue.STALLED


async def test_writes_are_refused_while_every_writer_hangs(
    database: Database, hanging: Hanging
) -> None:
    await refuse(database, *await hanging.begin(database, WRITERS_MAX))
    with pytest.raises(StorageBusyError, match="in time"):
        database.write(increment)
    assert await database.write_problem() == write_queue.STALLED


async def test_what_is_never_given_up_hides_no_writers_that_hang(
    database: Database, hanging: Hanging
) -> None:
    """Upstream's answers to submissions wait for as long as it takes."""
    always: list[Any] = [database.write_always(hanging.unit) for _ in range(WRITERS_MAX)]
    await until(lambda: hanging.begun == WRITERS_MAX)
    await refuse(database, database.write(increment))
    with pytest.raises(StorageBusyError, match="in time"):
        database.write(increment)
    assert not any(write.done() for write in always)


async def test_a_unit_whose_batches_all_hang_is_refused_while_nothing_is_committed(
    database: Database,
) -> None:
    """Callbacks alone never use every writer."""
    held = Held()
    try:
        await refuse(database, *await fill(database, held))
        with pytest.raises(StorageBusyError, match="in time"):
            database.write_batched(held.unit, "refused")
        assert await database.write(increment) == 0
    finally:
        held.may_end.set()


async def test_writes_go_on_once_a_commit_ends(database: Database) -> None:
    held = Held()
    try:
        await refuse(database, *await fill(database, held))
        assert database._queue.is_stalled
    finally:
        held.may_end.set()
    await until(lambda: not database._queue.is_stalled)
    assert await database.write_batched(held.unit, "stored") == "stored"


async def test_units_whose_callers_were_refused_before_they_began_never_run(
    database: Database, hanging: Hanging
) -> None:
    """They are taken from the queue, and wait for a writer."""
    writes = [database.write(hanging.unit, held_bytes=1) for _ in range(20)]
    await until(lambda: hanging.begun == WRITERS_MAX)
    assert database.queued == 0
    await refuse(database, *writes)
    hanging.may_end.set()
    assert await database.write_behind(increment) == 0
    assert hanging.begun == WRITERS_MAX
    assert database._queue._held_bytes == 0


async def test_what_comes_behind_a_commit_that_hangs_is_not_looked_for_until_its_end(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, queue, looks = Held(), database._queue, 0
    take = queue.take

    def count_look() -> Sequence[Any]:
        nonlocal looks
        looks += 1
        return take()

    hanging = database.write_batched(held.unit, "a")
    await until(lambda: bool(held.batches))
    monkeypatch.setattr(queue, "take", count_look)
    behind = database.write_behind(increment)
    for _ in range(20):
        await asyncio.sleep(0)  # noqa: TID251  the stream's turn
    looks_meanwhile = looks
    held.may_end.set()
    assert (await hanging, await behind) == ("a", 0)
    assert looks_meanwhile == 1


async def test_items_of_a_batch_that_fails_after_they_were_refused_are_not_run_one_by_one(
    database: Database,
) -> None:
    batches: list[list[int]] = []
    may_end = asyncio.Event()

    async def unit(_tx: Transaction, names: Sequence[int]) -> list[int]:
        batches.append(list(names))
        await may_end.wait()
        raise LookupError

    writes = [database.write_batched(unit, n) for n in range(3)]
    await until(lambda: bool(batches))
    await refuse(database, *writes)
    may_end.set()
    assert await database.write_behind(increment) == 0
    assert batches == [[0, 1, 2]]
