"""Reads: each on a snapshot, with a time limit. Searches leave a connection to short reads."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import asyncpg

from service.model.errors import SearchTooLongError, StorageError
from service.store.database import T
from service.store.postgres.connection import Pool, transaction_of
from service.store.turns import Turns, ignore_error

READ_SECONDS = 5.0  # Then the caller gets a StorageError.
SEARCH_SECONDS = 4.0  # Of one statement of a search.
LOCK_SECONDS = 2.0  # For a lock of another program: StorageError, since the search is not to blame.


class Reads:
    """Limits reads: `reads_max` at a time, fewer searches, and one search for each tenant."""

    def __init__(self, reads_max: int) -> None:
        self._reads = asyncio.Semaphore(reads_max)
        self._searches = Turns(max(1, reads_max - 1))

    async def read(self, pool: Pool, work: Callable[[Any], Awaitable[T]]) -> T:
        """Return the result of `work(connection)`, with a snapshot, once a connection is free."""
        try:
            return await self._read(pool, work)
        except asyncpg.InvalidCachedStatementError:  # A migration has run since it was prepared.
            return await self._read(pool, work)

    async def _read(self, pool: Pool, work: Callable[[Any], Awaitable[T]]) -> T:
        snapshot = {"isolation": "repeatable_read", "readonly": True}
        async with self._reads, transaction_of(pool, **snapshot) as connection:
            return await work(connection)

    async def search(self, pool: Pool, tenant: str, work: Callable[[Any], Awaitable[T]]) -> T:
        """Like `read`, for a search of a tenant, in its turn.

        SearchTooLongError if a statement takes too long; StorageError if nothing answers in time.
        """
        async with self._searches.turn(tenant):
            return await within(READ_SECONDS, self.read(pool, partial(_search, work)))


async def _search(work: Callable[[Any], Awaitable[T]], connection: Any) -> T:
    limits = (("statement", SEARCH_SECONDS), ("lock", LOCK_SECONDS))
    sets = (f"SET LOCAL {name}_timeout = {round(seconds * 1_000)}" for name, seconds in limits)
    await connection.execute("; ".join(sets))
    try:
        return await work(connection)
    except asyncpg.QueryCanceledError as error:
        raise SearchTooLongError("the search took too long") from error


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of work, or raise StorageError after so many seconds.

    A server that hangs does not answer the request to cancel either, so nobody waits for that.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            raise StorageError("the database did not answer in time")
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            task.add_done_callback(ignore_error)
