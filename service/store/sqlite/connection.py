"""A connection to SQLite with a thread of its own, as aiosqlite has it, and its settings."""

import contextlib
import os
import sqlite3
from collections.abc import Callable
from typing import TypeVar

import aiosqlite

T = TypeVar("T")

BUSY_MS = 5_000
# Then the writer itself takes the log into the database and begins it anew. A longer log grows for
# longer, and a file that grows is slower to sync.
WAL_PAGES_MAX = 4_000


class Connection(aiosqlite.Connection):
    """aiosqlite's thread and queue, with one more way in: a function over the raw connection."""

    async def begin(self) -> None:
        """Start the thread and connect."""
        try:
            await self
        except sqlite3.Error:
            self._thread.join()  # Told to stop already; it must not outlive the event loop.
            raise

    async def apply(self, do: Callable[..., T], *args: object) -> T:
        """Run `do(connection, *args)` on the connection's thread, in one hop."""
        result: T = await self._execute(do, self._conn, *args)  # type: ignore[no-untyped-call]
        return result


def _connector(path: str, *, writes: bool) -> Callable[[], sqlite3.Connection]:
    def connect() -> sqlite3.Connection:
        if writes:  # For its owner alone: SQLite gives the files beside it the same mode.
            with contextlib.suppress(OSError):
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        connection.row_factory = sqlite3.Row
        connection.execute(f"PRAGMA busy_timeout={BUSY_MS}")
        if writes:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute(f"PRAGMA wal_autocheckpoint={WAL_PAGES_MAX}")
        else:
            connection.execute("PRAGMA query_only=ON")
        connection.execute("PRAGMA cache_size=-8000")
        return connection

    return connect


async def connect(path: str, *, writes: bool) -> Connection:
    """Open the database; sqlite3.Error where that cannot be done."""
    connection = Connection(_connector(path, writes=writes), 64)
    await connection.begin()
    return connection


def checkpoint(connection: sqlite3.Connection) -> None:
    """Take what is committed from the log into the database, without stopping the writer.

    (https://sqlite.org/wal.html section 2.1). Left to a commit, whoever waits for it would wait for
    this too.
    """
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
