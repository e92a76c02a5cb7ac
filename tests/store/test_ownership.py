"""The right to work: one lock for a file, whatever its name, and none of SQLite's locks is lost."""

import asyncio
import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from service.model.errors import StorageError
from service.store.sqlite import ownership
from service.store.sqlite.database import Database
from service.store.sqlite.ownership import FileLock

Open = Callable[[Path], Awaitable[FileLock]]


@pytest.fixture
async def lock_of() -> AsyncIterator[Open]:
    """Open a database and return the lock on it."""
    databases: list[Database] = []

    async def open_lock(path: Path) -> FileLock:
        databases.append(Database(str(path)))
        await databases[-1].open()
        await databases[-1].migrate()  # SQLite takes its locks when it reads or writes.
        return FileLock(databases[-1])

    yield open_lock
    for database in databases:
        await database.close()


@pytest.mark.parametrize("link", [os.symlink, os.link])
async def test_every_name_of_a_file_leads_to_the_same_lock(
    tmp_path: Path, lock_of: Open, link: Callable[[Path, Path], None]
) -> None:
    path, other_name = tmp_path / "data.db", tmp_path / "other.db"
    first = await lock_of(path)
    assert await first.acquire()
    link(path, other_name)
    # By a hard link SQLite itself refuses to open it twice in one process.
    database = Database(str(other_name))
    database.file.descriptor = os.open(other_name, os.O_RDONLY)
    second = FileLock(database)
    assert not await second.acquire()
    assert (first.is_held, second.is_held) == (True, False)
    await first.release()
    assert await second.acquire()
    assert not await first.acquire()
    await database.close()
    assert await first.acquire()


async def test_a_file_with_hard_links_is_not_opened(tmp_path: Path) -> None:
    path, other_name = tmp_path / "data.db", tmp_path / "other.db"
    database = Database(str(path))
    await database.open()
    await database.close()
    os.link(path, other_name)
    for name in (path, other_name):
        async with contextlib.AsyncExitStack() as stack:
            other = Database(str(name))
            stack.push_async_callback(other.close)  # Or else its threads would never end.
            with pytest.raises(StorageError, match="2 names"):
                await other.open()
    other_name.unlink()
    await database.open()
    await database.close()


async def test_elsewhere_the_lock_is_beside_the_file_to_which_links_lead(
    tmp_path: Path, lock_of: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "LOCKS_THE_DATABASE", False)
    path, link = tmp_path / "data.db", tmp_path / "link.db"
    first = await lock_of(path)
    assert await first.acquire()
    link.symlink_to(path)
    second = await lock_of(link)
    assert not await second.acquire()
    await first.release()
    assert await second.acquire()
    await second.release()


async def test_a_lock_that_cannot_be_tried_is_an_error_and_not_another_owner(
    tmp_path: Path, lock_of: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    lock = await lock_of(tmp_path / "data.db")
    monkeypatch.setattr("fcntl.flock", fail)
    with pytest.raises(StorageError, match="cannot lock"):
        await lock.acquire()
    assert not lock.is_held


WRITE = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=0)
connection.execute("PRAGMA locking_mode=EXCLUSIVE")
try:
    connection.execute("CREATE TABLE things (name TEXT)")
except sqlite3.OperationalError as error:
    print(error)
"""


async def test_the_locks_of_sqlite_outlive_a_stop_of_the_worker(
    tmp_path: Path, lock_of: Open
) -> None:
    """A process without SQLite's locks is invisible: another one could delete its WAL."""
    path = tmp_path / "data.db"
    lock = await lock_of(path)
    assert await lock.acquire()
    await lock.release()
    command = [sys.executable, "-c", WRITE, str(path)]
    other = await asyncio.to_thread(subprocess.check_output, command, text=True, timeout=60)
    assert other == "database is locked\n"
