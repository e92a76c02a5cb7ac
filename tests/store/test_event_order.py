"""The order of events on PostgreSQL: what is committed late is skipped by no pull and no replay."""

import asyncio
import random  # noqa: TID251  from a seed
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from service.model.event import Event
from service.model.ids import first_id
from service.model.replay import Replay
from service.model.subscriber import Subscriber
from service.store import events, pages, replays, retention
from service.store.database import Transaction
from service.store.postgres import Database
from service.store.postgres import database as database_module
from service.store.postgres import order as order_module
from service.store.postgres.order import Order
from service.store.postgres.side import PostgresSide
from service.store.sqlite.database import Database as File
from tests import engine
from tests.store.test_postgres import connected, database, opened, until

__all__ = ["database"]  # The fixture.

START, WRITERS, STEPS = 1_795_000_000_000, 8, 120
SINCE = START - 60_000
INSERT = "INSERT INTO events (id, tenant, type, body) VALUES ($1, 't', 'ping', '')"
REPLAY = Replay(
    id="rpl_1",
    tenant="t",
    subscriber_id="sub_1",
    since_at=SINCE,
    until_at=START + 60_000,
    event_types=["ping"],
    only_dead=False,
    rate_per_second=None,
    dry_run=True,
    status="running",
    due_at=None,
    created_at=START,
)
SUBSCRIBER = Subscriber(
    id="sub_1",
    tenant="t",
    url="https://receiver.example/",
    retry_schedule_seconds=[0],
    created_at=START,
    updated_at=START,
)


def id_at(number: int) -> str:
    """Return the id of an event that is so many milliseconds after the first one."""
    return first_id("evt", START + number).ljust(36, "0")


def event(number: int) -> Event:
    return Event(
        id=id_at(number), tenant="t", type="ping", generation_id=None, created_at=0, body=b"{}"
    )


class Pull:
    """A reader that goes on where it was, a few events at a time."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.seen: list[str] = []

    async def once(self) -> None:
        page = pages.Page(after=self.seen[-1] if self.seen else None, ascending=True, limit=7)
        rows, _ = await events.read_page(self.database, page, "t")
        self.seen += [row["id"] for row in rows]

    async def to_the_end(self, length: int) -> None:
        while len(self.seen) < length:
            before = len(self.seen)
            await self.once()
            assert len(self.seen) > before, "an event was skipped"


async def replayed(database: Any) -> set[str]:
    """Return the ids of the events that a replay sends which begins now."""
    cursor, last_seq = await replays.read_bounds(database, SINCE)

    async def read(tx: Transaction) -> set[str]:
        replay = replace(REPLAY, cursor=cursor)
        seqs = await replays.matching_seqs(tx, replay, SUBSCRIBER, last_seq, 1_000)
        rows = await tx.select("SELECT id, seq FROM events", {})
        return {row["id"] for row in rows if row["seq"] in seqs}

    ids: set[str] = await database.read(read)
    return ids


@pytest.fixture
async def writers(database: Database) -> AsyncIterator[list[Any]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(connected(database)) for _ in range(WRITERS)]


@pytest.mark.parametrize("seed", range(5))
async def test_eight_writers_that_commit_in_any_order_hide_nothing_from_a_pull_or_a_replay(
    database: Database, writers: list[Any], seed: int
) -> None:
    rng, numbers, pull = random.Random(seed), count(), Pull(database)
    free, committed = list(writers), set[str]()
    open_: list[tuple[Any, Any, str]] = []
    for step in range(STEPS):
        is_over = step > STEPS - 2 * WRITERS
        if open_ and (not free or is_over or rng.random() < 0.5):
            connection, transaction, id_ = open_.pop(rng.randrange(len(open_)))
            await transaction.commit()
            free.append(connection)
            committed.add(id_)
        elif free and not is_over:
            connection, id_ = free.pop(), id_at(next(numbers))
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute(INSERT, id_)
            open_.append((connection, transaction, id_))
        if rng.random() < 0.4:
            await pull.once()
        if rng.random() < 0.2:
            assert await replayed(database) == committed
    assert not open_
    await pull.to_the_end(len(committed))
    assert len(pull.seen) == len(set(pull.seen))
    assert set(pull.seen) == committed


async def test_a_pull_beside_eight_processes_that_write_at_once_gets_every_event_once(
    database: Database, postgres: engine.Schemas, tmp_path: Path
) -> None:
    numbers = count()
    async with AsyncExitStack() as stack:
        writing = [
            await stack.enter_async_context(opened(postgres, tmp_path, connections=5))
            for _ in range(WRITERS)
        ]

        async def write(writer: Database) -> None:
            for _ in range(25):
                await writer.write(events.insert, [event(next(numbers))])

        pull, writes = Pull(database), asyncio.gather(*map(write, writing))
        while not writes.done():
            await pull.once()
        await writes
    await pull.to_the_end(25 * WRITERS)
    assert len(set(pull.seen)) == len(pull.seen) == 25 * WRITERS


async def test_an_event_that_is_committed_while_a_page_is_read_waits_for_its_place(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that continued after it would skip one that is committed later, but is older."""
    extend, late = Order.extend, [2]

    async def extend_then_commit(order: Order, pool: Any) -> None:
        await extend(order, pool)
        if late:
            await database.write(events.insert, [event(late.pop())])

    monkeypatch.setattr(Order, "extend", extend_then_commit)
    pull = Pull(database)
    await pull.once()
    assert pull.seen == []
    await database.write(events.insert, [event(1)])
    await pull.once()
    assert pull.seen == [id_at(1), id_at(2)]


async def seqs(connection: Any) -> list[int | None]:
    """Return the `seq` of every event, in the order of their ids."""
    return [row[0] for row in await connection.fetch("SELECT seq FROM events ORDER BY id")]


async def test_what_is_ordered_before_the_time_is_over_stays_ordered(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a pile of events that takes longer than a read may would never be ordered."""
    monkeypatch.setattr(order_module, "BATCH", 10)
    await database.write(events.insert, [event(number) for number in range(25)])
    async with connected(database) as connection:
        async with connection.transaction():
            await connection.execute("SELECT * FROM events WHERE id = $1 FOR UPDATE", id_at(12))
            ordering = asyncio.create_task(database.order_events())
            async with asyncio.timeout(20):
                while (await seqs(connection))[0] is None:  # noqa: ASYNC110  nothing tells of it
                    await asyncio.sleep(0)  # noqa: TID251
            ordering.cancel()  # As at the end of the time.
            with pytest.raises(asyncio.CancelledError):
                await ordering
            assert await seqs(connection) == [*range(1, 11), *[None] * 15]
        await database.order_events()
        assert await seqs(connection) == [*range(1, 26)]


async def test_who_waits_for_the_order_shares_the_next_run(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that is under way would not do: it may have looked before their events came."""
    order_batch, begun, may_go_on = order_module._order_batch, 0, asyncio.Event()

    async def order_and_wait(pool: Any) -> int:
        nonlocal begun
        begun += 1
        count = await order_batch(pool)
        if begun == 1:
            await may_go_on.wait()
        return count

    monkeypatch.setattr(order_module, "_order_batch", order_and_wait)
    first = asyncio.create_task(database.order_events())
    await until(lambda: begun == 1)
    await database.write(events.insert, [event(1)])
    waiting = [asyncio.create_task(database.order_events()) for _ in range(20)]
    await asyncio.sleep(0)  # noqa: TID251  they wait
    waiting[0].cancel()  # It would have been the next, and does not keep the others from it.
    may_go_on.set()
    await asyncio.gather(first, *waiting[1:])
    async with connected(database) as connection:
        assert await seqs(connection) == [1]
    assert begun == 2
    await database.order_events()
    assert begun == 3


async def test_who_cleans_orders_the_events_that_nobody_reads(database: Database) -> None:
    await database.write(events.insert, [event(1)])
    await retention.run_due(database, retention.Sweep(), 30, START)
    async with connected(database) as connection:
        assert await seqs(connection) == [1]


async def test_the_sweep_goes_on_while_the_events_cannot_be_ordered_in_time(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(_order: Order, _pool: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Order, "extend", hang)
    monkeypatch.setattr(database, "order_events", partial(database.order_events, 0.05))
    sweep = retention.Sweep()
    await retention.run_due(database, sweep, 30, START)
    assert sweep.fold_at > START, "the usage was not added up"
    assert sweep.stages, "no row would be deleted"


async def test_a_copy_waits_until_all_events_are_ordered(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await database.write(events.insert, [event(1)])
    monkeypatch.setattr(database_module, "READ_SECONDS", 0)
    async with connected(database) as connection:
        await PostgresSide("a server", connection, database).prepare()
        assert await seqs(connection) == [1]


async def check_replay(database: Database | File, numbers: Iterable[int]) -> None:
    for number in numbers:
        await database.write(events.insert, [event(number)])
    assert await replayed(database) == {id_at(number) for number in numbers}


async def test_a_replay_begins_before_events_that_were_committed_before_an_older_one(
    database: Database, tmp_path: Path
) -> None:
    """The oldest one is the last to be committed, after an hour without any."""
    await check_replay(database, [2, 3, 1])
    file = File(str(tmp_path / "genhook.db"))
    await file.open()
    await file.migrate()
    await check_replay(file, [2, 3, 1])
    await file.close()
