"""Shards on PostgreSQL that are given up, whatever is cancelled meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.store.postgres import Database, ShardLocks, locks
from service.store.shards import ALL
from tests import engine
from tests.store.test_postgres import opened
from tests.store.test_shards import locked

pytestmark = pytest.mark.usefixtures("postgres")


@pytest.fixture
async def database(postgres: engine.Schemas, tmp_path: Path) -> AsyncIterator[Database]:
    async with opened(postgres, tmp_path) as database:
        await database.migrate()
        yield database


class Hanging:
    """A question to the server that gets no answer."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()

    async def __call__(self, *_: object) -> None:
        self.begun.set()
        await asyncio.Event().wait()


async def until_nothing_is_locked(database: Database) -> None:
    async with asyncio.timeout(30):
        while await locked(database):
            pass


async def test_shards_that_are_given_up_are_free_though_that_is_cancelled(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    letting_go, ticking = Hanging(), ShardLocks(database)
    assert await ticking.acquire(ALL)
    monkeypatch.setattr(locks.Locks, "leave", letting_go)
    releasing = asyncio.create_task(ticking.release())
    await letting_go.begun.wait()
    releasing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await releasing
    await until_nothing_is_locked(database)
    assert not ticking.is_held


async def test_shards_are_free_though_a_release_is_cancelled_while_it_waits_for_a_beat(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking, ticking = Hanging(), ShardLocks(database)
    assert await ticking.acquire(ALL)
    monkeypatch.setattr(locks.Locks, "read_view", looking)
    beat = asyncio.create_task(ticking.beat())
    await looking.begun.wait()
    releasing = asyncio.create_task(ticking.release())
    while not ticking._round_lock._waiters:
        await database.schema_problem()
    releasing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await releasing
    await until_nothing_is_locked(database)
    assert not ticking.is_held
    beat.cancel()
    await asyncio.wait([beat])
