"""Ownership of an SQLite file: a lock that the kernel releases when its process dies."""

import fcntl
import os
import sqlite3
from pathlib import Path
from typing import IO

from service.model.errors import StorageError
from service.store.sqlite.database import Database


class FileLock:
    """Ownership of a database file, by `flock` on a file beside it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._file: IO[bytes] | None = None
        self._data_version = 0

    @property
    def is_held(self) -> bool:
        """True while this process has the lock."""
        return self._file is not None

    def acquire(self) -> bool:
        """Take the lock if no process has it. StorageError if its file cannot be opened."""
        path = Path(f"{self._database.path}-worker")
        try:
            file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "rb+")
        except OSError as error:
            raise StorageError(f"cannot open {path}: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return False
        self._file = file
        return True

    def release(self) -> None:
        """Let another process have the lock."""
        if self._file is not None:
            self._file.close()
            self._file = None

    async def other_process_committed(self) -> bool:
        """True if another process has committed since the last call; False at the first."""
        before, self._data_version = self._data_version, await self._database.apply(_data_version)
        return before not in (0, self._data_version)


def _data_version(connection: sqlite3.Connection) -> int:
    """Return a number that changes when another connection commits (SQLite, PRAGMA)."""
    return int(connection.execute("PRAGMA data_version").fetchone()[0])
