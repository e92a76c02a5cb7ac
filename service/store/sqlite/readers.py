"""The connections that read. Callers get them in turn.

A reader that becomes free goes to the caller that has waited longest, so no caller overtakes
another by asking again at once. Searches, which may take long, leave one reader to short reads.
Each tenant searches on one reader at a time, for a limited number of steps.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable

from service.model.errors import SearchTooLongError, StorageBusyError, StorageError
from service.store.database import T
from service.store.sqlite.connection import Connection, code_of, connect, is_storage_fault
from service.store.sqlite.file import File
from service.store.turns import TURN_SECONDS, Turns, ignore_error

READERS = 3
SEARCHES_MAX = READERS - 1  # One reader is kept for short reads, such as keys and lanes.
# Steps of SQLite's virtual machine: about a second of a core. Lists look at `pages.SCANNED_MAX`
# rows for a page, with fewer than 100 steps for each filter of a row.
SEARCH_STEPS_MAX = 20_000_000
_STEPS_BETWEEN_CHECKS = 10_000


class Readers:
    """The readers of one database file. Each is opened when it is needed first."""

    def __init__(self, file: File) -> None:
        self._file = file
        # The last one used is taken first, so that others are opened only for reads in parallel.
        self._free: list[Connection | None] = [None] * READERS
        self._turns = asyncio.Semaphore(READERS)  # Fair: who waits longest goes first.
        self._searches = Turns(SEARCHES_MAX)
        self._is_closed = False

    async def read(self, do: Callable[..., T], *args: object) -> T:
        """Run `do(connection, *args)` on a reader. It should take a few milliseconds at most.

        StorageBusyError if none is free within TURN_SECONDS.
        """
        reader = await self._take(TURN_SECONDS)
        try:
            if self._is_closed:
                raise StorageError("the database is closed")
            if reader is None:
                if problem := self._file.find_problem():  # The file is another database now.
                    raise StorageError(problem)
                reader = await connect(self._file.path)
            return await reader.apply(do, *args)
        except sqlite3.Error as error:
            self._file.note(error)
            if is_storage_fault(error):
                raise StorageError(f"the database failed: {error}") from error
            raise
        finally:
            self._give_back(reader)

    async def search(self, tenant: str, do: Callable[..., T], *args: object) -> T:
        """Run `do(connection, *args)`, which may take long, when it is the tenant's turn.

        SearchTooLongError after SEARCH_STEPS_MAX; StorageBusyError if its turn does not come. If
        the caller is canceled, the search still runs to its end and is the tenant's only one until
        then: a client that hangs up gains nothing.
        """
        search = asyncio.ensure_future(self._search(tenant, do, *args))
        search.add_done_callback(ignore_error)
        return await asyncio.shield(search)

    async def _search(self, tenant: str, do: Callable[..., T], *args: object) -> T:
        async with self._searches.turn(tenant):
            return await self.read(_limited, do, *args)

    async def close(self) -> None:
        """Close every reader, after the reads under way. Later reads raise StorageError."""
        self._is_closed = True
        async with self.kept_closed():
            pass

    @contextlib.asynccontextmanager
    async def kept_closed(self) -> AsyncIterator[None]:
        """Close every reader, after the reads under way; none is opened during the block."""
        with contextlib.ExitStack() as stack:
            for _ in range(READERS):
                reader = await self._take(None)
                stack.callback(self._give_back, None)
                if reader:
                    await reader.close()
            yield

    async def _take(self, seconds: float | None) -> Connection | None:
        """Wait for a reader, at most so long. A connection that is not open yet is None."""
        if self._turns.locked():  # A timer starts only for a wait.
            try:
                async with asyncio.timeout(seconds):
                    await self._turns.acquire()
            except TimeoutError:
                raise StorageBusyError("too many reads wait for the database") from None
        else:
            await self._turns.acquire()
        return self._free.pop()

    def _give_back(self, reader: Connection | None) -> None:
        self._free.append(reader)
        self._turns.release()


def _limited(connection: sqlite3.Connection, do: Callable[..., T], *args: object) -> T:
    """Run `do(connection, *args)`; SearchTooLongError if it takes more than SEARCH_STEPS_MAX."""
    checks = 0

    def is_too_long() -> bool:
        nonlocal checks
        checks += 1
        return checks > SEARCH_STEPS_MAX // _STEPS_BETWEEN_CHECKS

    connection.set_progress_handler(is_too_long, _STEPS_BETWEEN_CHECKS)
    try:
        return do(connection, *args)
    except sqlite3.OperationalError as error:
        if code_of(error) == sqlite3.SQLITE_INTERRUPT:
            raise SearchTooLongError("the search took too many steps") from error
        raise
    finally:
        connection.set_progress_handler(None, 0)
