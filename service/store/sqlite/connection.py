"""A connection to SQLite with its settings; aiosqlite runs it on a thread of its own."""

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial

import aiosqlite

from service.model.errors import StorageError
from service.store.database import T

BUSY_MS = 5_000
# At this size of the write-ahead log (WAL), a commit runs a checkpoint itself. That is only for a
# reader or a burst that held the planned ones up: a growing file is slower to sync.
WAL_PAGES_MAX = 8_000
WAL_KEPT_BYTES = 16 << 20  # A WAL that a long reader made larger is cut to this when it restarts.


class Connection(aiosqlite.Connection):
    """An aiosqlite connection that also runs functions of the raw connection on its thread."""

    async def apply(self, do: Callable[..., T], *args: object) -> T:
        """Run `do(connection, *args)` on the connection's thread."""
        result: T = await self._execute(do, self._conn, *args)  # type: ignore[no-untyped-call]
        return result


def _open(path: str, *, writes: bool) -> sqlite3.Connection:
    pragmas = [f"busy_timeout={BUSY_MS}", "cache_size=-8000"]
    if writes:
        pragmas += ["journal_mode=WAL", "synchronous=FULL", f"wal_autocheckpoint={WAL_PAGES_MAX}"]
        pragmas.append(f"journal_size_limit={WAL_KEPT_BYTES}")
        # Only the owner may read the file. SQLite gives the WAL files the same mode.
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    else:
        pragmas.append("query_only=ON")
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    connection.row_factory = sqlite3.Row
    for pragma in pragmas:
        connection.execute(f"PRAGMA {pragma}")
    return connection


async def connect(path: str, *, writes: bool) -> Connection:
    """Open the database. StorageError if that fails."""
    connection = Connection(partial(_open, path, writes=writes), 64)
    try:
        await connection
    except sqlite3.Error as error:
        # aiosqlite has stopped the thread, which must end before the event loop does.
        connection._thread.join()  # noqa: SLF001
        raise StorageError(f"cannot open {path}: {error}") from error
    return connection


def checkpoint(connection: sqlite3.Connection) -> None:
    """Copy committed pages from the WAL into the database; see https://sqlite.org/wal.html, 2.1.

    If a commit ran the checkpoint, its callers would wait for both.
    """
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what the body writes, or roll it back if the body or the commit fails."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
