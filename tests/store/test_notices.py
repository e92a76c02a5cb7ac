"""Notices of commits on PostgreSQL: one at a time, and the next one has all that came meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.store.postgres import notices
from service.store.postgres.notices import Notices
from tests.store.test_postgres import until


class BusyPool:
    """A pool whose connections are all taken until `free` is set."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.asked = 0
        self.sent: list[set[int]] = []

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        self.asked += 1
        await self.free.wait()
        yield self

    async def execute(self, _sql: str, mask: str) -> None:
        self.sent.append({shard for shard in range(64) if int(mask, 16) >> shard & 1})


@pytest.fixture
async def pool() -> BusyPool:  # Within an event loop, as it has an event.
    return BusyPool()


async def plan(sender: Notices, pool: Any, *shards: int) -> None:
    """Plan notices, each after the time of the one before."""
    for shard in shards:
        sender.plan(pool, shard)
        for _ in range(10):
            await asyncio.sleep(0)  # noqa: TID251


async def test_one_notice_waits_for_a_connection_and_the_next_has_all_shards_since(
    pool: BusyPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "NOTICE_SECONDS", 0)
    sender = Notices()
    await plan(sender, pool, 1, 2, 3)
    assert pool.asked == 1
    pool.free.set()
    await until(lambda: len(pool.sent) == 2)
    assert pool.sent == [{1}, {2, 3}]
    await plan(sender, pool, 4)
    assert pool.sent[2:] == [{4}]
    await sender.close(pool)  # type: ignore[arg-type]
    assert len(pool.sent) == 3


async def test_the_end_waits_for_what_is_planned_and_for_what_came_while_one_was_sent(
    pool: BusyPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "NOTICE_SECONDS", 0)
    sender = Notices()
    await plan(sender, pool, 1, 2)
    monkeypatch.setattr(notices, "NOTICE_SECONDS", 60)
    closing = asyncio.create_task(sender.close(pool))  # type: ignore[arg-type]
    await plan(sender, pool, 3)
    pool.free.set()
    async with asyncio.timeout(20):
        await closing
    assert pool.sent == [{1}, {2, 3}]
