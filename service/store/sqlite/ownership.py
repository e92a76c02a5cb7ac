"""Ownership of an SQLite file: a lock that the kernel releases when its process dies."""

import fcntl
import os
import sqlite3
from collections.abc import Callable, Collection

from service.model.errors import StorageError
from service.store.shards import ALL, NONE
from service.store.sqlite.byte_locks import IS_LINUX, list_locks
from service.store.sqlite.database import Database

# On other systems `flock` and the POSIX locks of SQLite exclude each other.
LOCKS_THE_DATABASE = IS_LINUX
UNSEEN = "another process"


class FileLock:
    """Ownership of a database file, by `flock` on the file itself.

    The lock is on the inode, so every name of the file leads to it. On other systems than Linux the
    lock is on a file beside the database, after symbolic links are resolved.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._descriptor = -1  # Of the file beside the database, if that is locked.
        self._seen: tuple[sqlite3.Connection, int] | None = None
        self.is_held = False
        self.name = f"process {os.getpid()}"
        self.refusal: str | None = None
        self.busy: Callable[[], Collection[int]] = frozenset
        # Never called: the lock is given up at the end of a session.
        self.on_lost: Callable[[frozenset[int]], None] = lambda _shards: None

    @property
    def shards(self) -> frozenset[int]:
        """All or none: one lock is for the whole file."""
        return ALL if self.is_held else NONE

    @property
    def locked(self) -> frozenset[int]:
        """As `shards`."""
        return self.shards

    async def acquire(self, _shards: Collection[int] | None = None) -> bool:
        """Take the lock if no process has it. StorageError if that cannot be determined."""
        self.is_held = self.is_held or self._lock(fcntl.LOCK_EX)
        return self.is_held

    def _lock(self, kind: int) -> bool:
        """Lock the file; False if another process has it. StorageError if neither can be told."""
        try:
            fcntl.flock(self._open(), kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise StorageError(f"cannot lock {self._database.path}: {error.strerror}") from error
        return True

    def _open(self) -> int:
        """Return the descriptor of the file to lock; open the one beside the database if needed."""
        if LOCKS_THE_DATABASE:
            return self._database.file.descriptor
        if self._descriptor < 0:
            path = f"{os.path.realpath(self._database.path)}-worker"
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        return self._descriptor

    async def release(self) -> None:
        """Let another process have the lock."""
        if self.is_held:
            fcntl.flock(self._open(), fcntl.LOCK_UN)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self.is_held = False

    async def holders(self) -> dict[str, frozenset[int]]:
        """Return the one process that works, if any, with all shards."""
        if self.is_held:
            return {self.name: ALL}
        # A shared lock is refused while another process works; it is released at once.
        if not self._lock(fcntl.LOCK_SH):
            return {_find_holder(os.fstat(self._open()).st_ino): ALL}
        fcntl.flock(self._open(), fcntl.LOCK_UN)
        return {}

    async def other_process_committed(self, _shards: Collection[int] | None = None) -> bool:
        """True if another process has committed since the last call; False at the first."""
        before, self._seen = self._seen, await self._database.apply(_data_version)
        return before is not None and before != self._seen


def _find_holder(inode: int) -> str:
    """Return the name of the process that has locked a file, as far as it can be seen from here."""
    for lock in list_locks():
        if lock.kind == "FLOCK" and lock.inode == str(inode):
            return f"process {lock.process}"
    return UNSEEN


def _data_version(connection: sqlite3.Connection) -> tuple[sqlite3.Connection, int]:
    """Return the connection, and its number that changes when another connection commits.

    Only numbers of one connection compare (https://sqlite.org/pragma.html#pragma_data_version).
    """
    return connection, int(connection.execute("PRAGMA data_version").fetchone()[0])
