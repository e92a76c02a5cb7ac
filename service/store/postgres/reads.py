"""Reads: each on a snapshot, within seconds, and searches so that short reads have a connection."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any
from weakref import WeakValueDictionary

import asyncpg

from service.model.errors import SearchTooLongError, StorageError
from service.store.database import T
from service.store.postgres.connection import taken

READ_SECONDS = 5.0  # Until a caller hears that the database does not answer.
SEARCH_SECONDS = 4.0  # Of one statement of a search.
SEARCH_SECONDS_MAX = 30.0  # With the wait for its turn.


class Turns:
    """Who may read: a number of reads at a time, fewer searches, one of them for each tenant."""

    def __init__(self, reads_max: int) -> None:
        self._reads = asyncio.Semaphore(reads_max)
        self._searches = asyncio.Semaphore(max(1, reads_max - 1))
        self._tenants: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def read(self, pool: Any) -> AsyncIterator[Any]:
        """A connection with a snapshot, when there is one."""
        async with (
            self._reads,
            taken(pool) as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            yield connection

    @contextlib.asynccontextmanager
    async def search(self, pool: Any, tenant: str) -> AsyncIterator[Any]:
        """The same for a search of a tenant. SearchTooLongError if a statement takes too long."""
        turn = self._tenants.setdefault(tenant, asyncio.Lock())
        async with turn, self._searches, self.read(pool) as connection:
            milliseconds = round(SEARCH_SECONDS * 1_000)
            await connection.execute(f"SET LOCAL statement_timeout = {milliseconds}")
            try:
                yield connection
            except asyncpg.QueryCanceledError as error:
                raise SearchTooLongError("the search took too long") from error


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of work, or raise StorageError after so many seconds.

    A server that hangs does not answer the request to stop either: the caller does not wait for it.
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
            task.add_done_callback(_retrieve_error)


def _retrieve_error(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()
