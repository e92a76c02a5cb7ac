"""The readers: handed over in turn, one kept for short reads, searches with a limit."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.model.errors import SearchTooLongError, StorageBusyError, StorageError
from service.store import turns
from service.store.sqlite import readers as readers_module
from service.store.sqlite.connection import connect
from service.store.sqlite.file import File
from service.store.sqlite.readers import READERS, SEARCHES_MAX, Readers

COUNT = """
WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers LIMIT 50000)
SELECT count(*) FROM numbers
"""


@pytest.fixture
async def readers(tmp_path: Path) -> AsyncIterator[Readers]:
    path = str(tmp_path / "test.db")
    file = File(path)
    file.open()
    writer = await connect(path, descriptor=file.descriptor)
    opened = Readers(file)
    yield opened
    await opened.close()
    await writer.close()
    file.close()


def one(_connection: sqlite3.Connection) -> int:
    return 1


class Hold:
    """A read that ends when `release` is called."""

    def __init__(self) -> None:
        self._released = threading.Event()
        self.release = self._released.set

    def __call__(self, _connection: sqlite3.Connection) -> str:
        assert self._released.wait(60)
        return "held"


async def let_run() -> None:
    for _ in range(10):
        await asyncio.sleep(0)  # noqa: TID251  the others' turn


async def test_a_reader_waits_its_turn_behind_no_loop_of_reads(readers: Readers) -> None:
    loop_count = 2 * READERS
    reads = [0] * loop_count
    are_running = asyncio.Event()

    async def read_in_a_loop(number: int) -> None:
        while True:
            await readers.read(one)
            reads[number] += 1
            if min(reads) == 10:
                are_running.set()

    loops = [asyncio.create_task(read_in_a_loop(number)) for number in range(loop_count)]
    try:
        async with asyncio.timeout(60):
            await are_running.wait()
        before = sum(reads)
        async with asyncio.timeout(60):
            reader = await readers._take(None)  # Its thread may be late: it is no part of turns.
        assert sum(reads) - before <= 4 * loop_count
        readers._give_back(reader)
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)


async def test_searches_of_all_tenants_leave_a_reader_for_short_reads(readers: Readers) -> None:
    hold = Hold()
    searches = [asyncio.create_task(readers.search(f"t{n}", hold)) for n in range(READERS + 2)]
    await let_run()
    try:
        async with asyncio.timeout(60):
            assert await readers.read(one) == 1
    finally:
        hold.release()
    assert await asyncio.gather(*searches) == ["held"] * len(searches)


async def test_a_tenant_searches_on_one_reader_at_a_time(readers: Readers) -> None:
    hold = Hold()
    searches = [asyncio.create_task(readers.search("one", hold)) for _ in range(5)]
    await let_run()
    try:
        async with asyncio.timeout(60):
            assert await readers.search("another", one) == 1
    finally:
        hold.release()
    assert await asyncio.gather(*searches) == ["held"] * 5


@pytest.mark.parametrize("tenant", ["0", "another"])
async def test_a_search_does_not_wait_without_end(
    readers: Readers, monkeypatch: pytest.MonkeyPatch, tenant: str
) -> None:
    hold = Hold()
    held = [asyncio.create_task(readers.search(str(n), hold)) for n in range(SEARCHES_MAX)]
    await let_run()
    monkeypatch.setattr(turns, "TURN_SECONDS", 0)
    try:
        with pytest.raises(StorageBusyError):
            await readers.search(tenant, one)
    finally:
        hold.release()
    assert await asyncio.gather(*held) == ["held"] * SEARCHES_MAX
    assert await readers.search(tenant, one) == 1


async def test_a_read_does_not_wait_without_end(
    readers: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = Hold()
    held = [asyncio.create_task(readers.read(hold)) for _ in range(READERS)]
    await let_run()
    monkeypatch.setattr(readers_module, "TURN_SECONDS", 0)
    try:
        with pytest.raises(StorageBusyError):
            await readers.read(one)
    finally:
        hold.release()
    assert await asyncio.gather(*held) == ["held"] * READERS
    assert await readers.read(one) == 1


async def test_a_search_whose_caller_hung_up_still_counts(readers: Readers) -> None:
    hold = Hold()
    gone = asyncio.create_task(readers.search("one", hold))
    await let_run()
    gone.cancel()
    next_one = asyncio.create_task(readers.search("one", one))
    await asyncio.gather(gone, return_exceptions=True)
    await let_run()
    assert not next_one.done()
    hold.release()
    assert await next_one == 1


async def test_a_caller_that_is_gone_while_it_waits_leaves_its_reader_to_others(
    readers: Readers,
) -> None:
    hold = Hold()
    held = [asyncio.create_task(readers.read(hold)) for _ in range(READERS)]
    await let_run()
    waiting = asyncio.create_task(readers.read(one))
    await let_run()
    waiting.cancel()
    hold.release()
    await asyncio.gather(*held)
    async with asyncio.timeout(60):
        assert await asyncio.gather(*(readers.read(one) for _ in range(READERS))) == [1] * READERS


async def test_a_search_ends_after_its_steps_and_a_short_read_has_no_limit(
    readers: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers_module, "SEARCH_STEPS_MAX", 100_000)

    def count(connection: sqlite3.Connection) -> int:
        return int(connection.execute(COUNT).fetchone()[0])

    with pytest.raises(SearchTooLongError):
        await readers.search("one", count)
    assert await readers.read(count) == 50_000


async def test_no_reader_is_opened_after_the_close(readers: Readers) -> None:
    hold = Hold()
    held = [asyncio.create_task(readers.read(hold)) for _ in range(READERS)]
    await let_run()
    closing = asyncio.create_task(readers.close())
    await let_run()
    late = asyncio.create_task(readers.read(one))
    hold.release()
    await closing
    assert await asyncio.gather(*held) == ["held"] * READERS
    for reading in (late, readers.read(one), readers.search("one", one)):
        with pytest.raises(StorageError, match="closed"):
            await reading
    assert readers._free == [None] * READERS
