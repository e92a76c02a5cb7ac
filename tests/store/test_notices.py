"""Notices of commits on PostgreSQL: one at a time, and the next one has all that came meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from service.store.postgres import notices
from service.store.postgres.notices import Notices
from tests import engine
from tests.logs import Console
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

    async def execute(self, _sql: str, text: str) -> None:
        shards, sender = notices.read_notice(text)
        assert sender == 1
        self.sent.append(shards)


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
    sender = Notices("genhook-1")
    await plan(sender, pool, 1, 2, 3)
    assert pool.asked == 1
    pool.free.set()
    await until(lambda: len(pool.sent) == 2)
    assert pool.sent == [{1}, {2, 3}]
    await plan(sender, pool, 4)
    assert pool.sent[2:] == [{4}]
    await sender.close()
    assert len(pool.sent) == 3


async def test_the_end_waits_for_what_is_planned_and_for_what_came_while_one_was_sent(
    pool: BusyPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "NOTICE_SECONDS", 0)
    sender = Notices("genhook-1")
    await plan(sender, pool, 1, 2)
    monkeypatch.setattr(notices, "NOTICE_SECONDS", 60)
    closing = asyncio.create_task(sender.close())
    await plan(sender, pool, 3)
    pool.free.set()
    async with asyncio.timeout(20):
        await closing
    assert pool.sent == [{1}, {2, 3}]


async def test_a_schema_with_a_long_name_has_a_channel(postgres: engine.Schemas) -> None:
    heard = asyncio.get_running_loop().create_future()
    connection = await asyncpg.connect(postgres.url)
    try:
        async with connection.transaction():
            name = "s" * 63
            await connection.execute(f"CREATE SCHEMA {name}; SET LOCAL search_path TO {name}")
            channel = await connection.fetchval(f"SELECT {notices.CHANNEL_SQL}")
            await connection.execute(notices._NOTIFY, "5")
            await connection.execute(f"DROP SCHEMA {name}")
            await connection.add_listener(channel, lambda *args: heard.set_result(args[3]))
        async with asyncio.timeout(60):
            assert await heard == "5"
    finally:
        await connection.close()


async def test_a_notice_that_the_server_refuses_keeps_no_other_from_being_sent(
    pool: BusyPool, monkeypatch: pytest.MonkeyPatch, console: Console
) -> None:
    async def refuse(_sql: str, _mask: str) -> None:
        raise asyncpg.InvalidParameterValueError("channel name too long")

    console.configure("warning")
    monkeypatch.setattr(notices, "NOTICE_SECONDS", 0)
    pool.free.set()
    sender = Notices("genhook-1")
    with monkeypatch.context() as patched:
        patched.setattr(pool, "execute", refuse)
        await plan(sender, pool, 1)
    await plan(sender, pool, 2)
    await sender.close()
    assert pool.sent == [{2}]
    assert [line["event"] for line in console.lines()] == ["notice.failed"]


async def test_a_notice_that_is_cancelled_before_it_begins_keeps_no_end_and_no_other_waiting(
    pool: BusyPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "NOTICE_SECONDS", 0)
    pool.free.set()
    sender = Notices("genhook-1")
    sender.plan(pool, 1)  # type: ignore[arg-type]
    assert sender._sending is not None
    sender._sending.cancel()
    await sender.close()
    await plan(sender, pool, 2)
    async with asyncio.timeout(20):
        await sender.close()
    assert pool.sent == [{1, 2}]
