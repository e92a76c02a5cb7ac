"""Connections that SQLite opened for reading only: they are opened anew once the disk is well."""

import asyncio
import contextlib
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from service.model.errors import StorageError
from service.store import subscribers, writes
from service.store.sqlite.database import Database
from service.store.sqlite.group import Transaction
from service.store.sqlite.ownership import FileLock


class Disk:
    """A disk that may be read-only. SQLite falls back to reading, as it does by itself there."""

    def __init__(self) -> None:
        self.is_read_only = False
        self.opened = 0
        self._connect = sqlite3.connect

    def connect(self, path: str, **options: Any) -> sqlite3.Connection:
        self.opened += 1
        if self.is_read_only:
            path = path.replace("mode=rw", "mode=ro&readonly_shm=1")
        connection: sqlite3.Connection = self._connect(path, **options)
        return connection


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(sqlite3, "connect", disk.connect)
    monkeypatch.setattr(writes, "RETRY_SECONDS", 0)
    return disk


async def crash_image(folder: Path) -> Path:
    """Return a database with its write-ahead log, as a process leaves it that was killed."""
    database = Database(str(folder / "running.db"))
    await database.open()
    await database.migrate()
    for suffix in ("", "-wal", "-shm"):
        shutil.copy(folder / f"running.db{suffix}", folder / f"killed.db{suffix}")
    await database.close()
    return folder / "killed.db"


@pytest.fixture
async def database(tmp_path: Path, disk: Disk) -> AsyncIterator[Database]:
    """A database that was opened while its disk was read-only."""
    path = await crash_image(tmp_path)
    disk.is_read_only = True
    opened = Database(str(path))
    await opened.open()
    yield opened
    await opened.close()


async def bump(tx: Transaction) -> None:
    await subscribers.bump_revision(tx)


async def revision(database: Database) -> int:
    return await database.read(subscribers.get_revision)


async def test_commits_succeed_again_after_the_disk_was_read_only(
    database: Database, disk: Disk
) -> None:
    before = await revision(database)  # By a reader that is opened for reading only, too.
    with pytest.raises(StorageError, match="readonly"):
        await database.write(bump)
    disk.is_read_only = False
    await database.write(bump)
    assert await revision(database) == before + 1


async def test_no_unit_that_has_to_be_stored_is_lost_while_the_disk_is_read_only(
    database: Database, disk: Disk
) -> None:
    before = await revision(database)
    always = asyncio.ensure_future(database.write_always(bump))
    for _ in range(3):
        with pytest.raises(StorageError, match="readonly"):
            await database.write(bump)
    disk.is_read_only = False
    async with asyncio.timeout(60):
        await always
    assert await revision(database) == before + 1


async def test_the_right_to_work_outlives_connections_that_are_opened_anew(
    tmp_path: Path, disk: Disk
) -> None:
    path = await crash_image(tmp_path)
    database, other = Database(str(path)), Database(str(path))
    async with contextlib.AsyncExitStack() as stack:
        for each in (database, other):
            await each.open()
            stack.push_async_callback(each.close)
        await check_the_right_to_work(database, other, disk)


async def check_the_right_to_work(database: Database, other: Database, disk: Disk) -> None:
    lock = FileLock(database)
    assert await lock.acquire()
    assert not await lock.other_process_committed()
    opened = disk.opened
    await database.apply(lambda c: c.execute("PRAGMA query_only=ON"))
    with pytest.raises(StorageError, match="readonly"):
        await database.write(bump)
    await other.write(bump)
    await database.write(bump)
    assert disk.opened > opened
    assert lock.is_held
    assert not await FileLock(other).acquire()
    assert await lock.other_process_committed(), "a commit between two connections is missed"
    assert not await lock.other_process_committed()


async def test_a_database_whose_file_is_gone_is_not_replaced_by_another(
    database: Database, disk: Disk
) -> None:
    path, moved = database.path, f"{database.path}-moved"
    with pytest.raises(StorageError, match="readonly"):
        await database.write(bump)
    disk.is_read_only = False
    os.rename(path, moved)  # noqa: PTH104  pathlib is not for asynchronous functions
    for _ in range(3):
        with pytest.raises(StorageError, match="deleted or replaced"):
            await database.write(bump)
    with pytest.raises(FileNotFoundError):
        os.stat(path)  # noqa: PTH116
    os.rename(moved, path)  # noqa: PTH104
    await database.write(bump)
