"""A connection to SQLite with its settings; aiosqlite runs it on a thread of its own."""

import contextlib
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import aiosqlite

from service.model.errors import StorageError
from service.store.database import T
from service.store.sqlite.write_byte import RawConnection, hold_byte

BUSY_MS = 5_000
# Of a new file. With pages of 4 KiB, the body of a callback, of about a kilobyte, would need an
# overflow page of its own (docs/decisions/0019).
FILE_PAGE_BYTES = 8_192
# At this size of the write-ahead log (WAL), a commit runs a checkpoint itself. It does so only if
# a reader or a burst has held up the planned checkpoints: a growing file is slower to sync.
WAL_PAGES_MAX = 4_000
INDEX_BYTES = 32_768  # Of the index of a new WAL, which SQLite makes when it opens one.
WAL_KEPT_BYTES = 16 << 20  # A WAL that a long reader made larger is cut to this when it restarts.

# Result codes (https://sqlite.org/rescode.html) after which a connection does not work again, even
# if the disk does: SQLite could open a file only for reading, as on a disk that is read-only for a
# while, or not at all, and does not try again.
_REOPEN_PRIMARY = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}
_REOPEN = {
    sqlite3.SQLITE_IOERR_SHMOPEN,
    sqlite3.SQLITE_IOERR_SHMSIZE,
    sqlite3.SQLITE_IOERR_SHMLOCK,
    sqlite3.SQLITE_IOERR_SHMMAP,
}
# Errors for something that every schema of this genhook has: the file's schema is damaged.
_LACKS = re.compile("no such (table|column|index): |table .* has no column named ")


def must_reopen(error: BaseException) -> bool:
    """Return whether the connection has to be opened anew after this error."""
    code = code_of(error)
    return code & 0xFF in _REOPEN_PRIMARY or code in _REOPEN


def is_of_unit(error: BaseException) -> bool:
    """Return whether the error is the fault of one unit, so that other units may succeed.

    Its statement, a value or a row is at fault, as JSON or text that is damaged. SQLite then has no
    code of its own for it, or it is an error of Python's module, without a code.
    """
    return code_of(error) & 0xFF in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT)


def is_storage_fault(error: BaseException | None) -> bool:
    """Return whether the disk, a lock, the file or its schema is at fault: callers get a 503."""
    if not isinstance(error, sqlite3.Error):
        return False
    return _LACKS.match(str(error)) is not None or not is_of_unit(error)


def code_of(error: BaseException) -> int:
    """Return SQLite's code; SQLITE_ERROR for an error of Python's module, which has none."""
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code


def describe_failure(error: sqlite3.Error, path: str) -> str:
    """Return SQLite's text, or that the disk is full: it says `disk I/O error` of that, too."""
    if code_of(error) & 0xFF == sqlite3.SQLITE_IOERR:
        with contextlib.suppress(OSError):
            disk = os.statvfs(Path(path).parent)
            if disk.f_bavail * disk.f_frsize < INDEX_BYTES:
                return "the disk is full"
    return str(error)


class Connection(aiosqlite.Connection):
    """An aiosqlite connection that also runs functions of the raw connection on its thread."""

    _is_dropped = False

    async def apply(self, do: Callable[..., T], *args: object) -> T:
        """Run `do(connection, *args)` on the connection's thread."""
        result: T = await self._execute(self._run, do, *args)  # type: ignore[no-untyped-call]
        return result

    async def close(self) -> None:
        """Close the connection and end its thread, also if this is cancelled."""
        try:
            await super().close()
        except BaseException:
            self._thread.join()  # It was told to stop, and must end before the event loop does.
            raise

    async def drop(self) -> None:
        """Close the raw connection. The next `apply` opens another one, but creates no file."""
        await self._execute(self._drop)  # type: ignore[no-untyped-call]

    def _run(self, do: Callable[..., T], *args: object) -> T:
        if self._is_dropped:
            self._connection = self._connector()
            self._is_dropped = False
        return do(self._conn, *args)

    def _drop(self) -> None:
        self._conn.close()
        self._is_dropped = True


def _open(path: str, *, descriptor: int | None) -> sqlite3.Connection:
    pragmas = [f"busy_timeout={BUSY_MS}", "cache_size=-8000"]
    if descriptor is None:
        pragmas.append("query_only=ON")
    else:
        pragmas += [f"page_size={FILE_PAGE_BYTES}", "journal_mode=WAL", "synchronous=FULL"]
        pragmas.append(f"wal_autocheckpoint={WAL_PAGES_MAX}")
        pragmas += [f"journal_size_limit={WAL_KEPT_BYTES}", "user_version"]  # Opens the WAL.
    connection = sqlite3.connect(
        f"{Path(path).absolute().as_uri()}?mode=rw",  # SQLite creates no file.
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
        factory=RawConnection,
    )
    connection.row_factory = sqlite3.Row
    connection.descriptor = -1 if descriptor is None else descriptor
    try:
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


async def connect(path: str, *, descriptor: int | None = None) -> Connection:
    """Open a connection to a file: with a descriptor of the file to write, else only to read.

    StorageError if that fails.
    """
    opened: list[sqlite3.Connection] = []

    def open_raw() -> sqlite3.Connection:
        opened[:] = [_open(path, descriptor=descriptor)]
        return opened[0]

    connection = Connection(open_raw, 64)
    # A server may end its event loop without a word, and the process must end then.
    connection._thread.daemon = True  # noqa: SLF001
    try:
        await connection
    except BaseException as error:
        # aiosqlite has told its thread to stop. The thread must end before the event loop does,
        # also if this coroutine was canceled, as by Ctrl-C.
        connection._thread.join()  # noqa: SLF001
        for raw in opened:  # aiosqlite forgets it.
            raw.close()
        if isinstance(error, sqlite3.Error):
            raise StorageError(f"cannot open {path}: {describe_failure(error, path)}") from error
        raise
    return connection


def checkpoint(connection: sqlite3.Connection) -> None:
    """Copy committed pages from the WAL into the database; see https://sqlite.org/wal.html, 2.1.

    If a commit ran the checkpoint, its callers would wait for both.
    """
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what the body writes, or roll it back if the body or the commit fails."""
    with hold_byte(connection):
        connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
