"""Closing a database: no connection and no thread is left, whatever is cancelled meanwhile."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from service.app import App
from service.store.postgres import Database as Server
from service.store.sqlite import connection, schema
from service.store.sqlite.connection import connect
from service.store.sqlite.database import Database
from service.store.sqlite.readers import READERS
from tests import engine
from tests.harness import settings


class Hold:
    """A function that holds the thread of a connection until `release`."""

    def __init__(self) -> None:
        self.is_held = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._released = threading.Event()
        self.release = self._released.set

    def __call__(self, _connection: sqlite3.Connection) -> None:
        self._loop.call_soon_threadsafe(self.is_held.set)
        assert self._released.wait(60)


def threads() -> set[threading.Thread]:
    """Return the threads of connections."""
    return {each for each in threading.enumerate() if "_connection_worker_thread" in each.name}


def left(before: set[threading.Thread]) -> list[threading.Thread]:
    """Return the threads that do not end although they were told to."""
    new = threads() - before
    for thread in new:
        thread.join(10)
    return [thread for thread in new if thread.is_alive()]


def release_at_join(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    """Release it as soon as somebody waits for the end of a thread."""
    join = threading.Thread.join

    def join_at_last(self: threading.Thread, timeout: float | None = None) -> None:
        hold.release()
        join(self, timeout)

    monkeypatch.setattr(threading.Thread, "join", join_at_last)


async def let_run() -> None:
    for _ in range(10):
        await asyncio.sleep(0)  # noqa: TID251  the others' turn


async def nothing(_tx: Any) -> None: ...


def first(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT 1").fetchone()[0])


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(str(tmp_path / "test.db"))
    await opened.open()
    yield opened
    await opened.close()


CANCELLED = [["commit-stream"], ["checkpoint"], ["closing"], ["commit-stream", "checkpoint"]]


@pytest.mark.parametrize("names", [*CANCELLED, ["commit-stream", "checkpoint", "closing"]])
async def test_closing_leaves_no_thread_whatever_is_cancelled(
    tmp_path: Path, names: list[str]
) -> None:
    before, database, hold = threads(), Database(str(tmp_path / "test.db")), Hold()
    await database.open()
    await database.read(nothing)  # So that there is a reader.
    held = asyncio.create_task(database.apply(hold))
    await hold.is_held.wait()
    written = asyncio.ensure_future(database.write(nothing))
    database._start_checkpoint()
    await let_run()
    closing = asyncio.create_task(database.close(), name="closing")
    await let_run()
    for task in asyncio.all_tasks():
        if task.get_name() in names:
            task.cancel()
    await let_run()
    hold.release()
    await asyncio.wait([closing, held])
    assert left(before) == []
    assert (database.file.descriptor, closing.cancelled()) == (-1, "closing" in names)
    written.cancel()


async def test_a_connection_ends_its_thread_though_its_closing_is_cancelled_twice(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, hold = threads(), Hold()
    release_at_join(hold, monkeypatch)
    reader = await connect(database.path)
    held = asyncio.create_task(reader.apply(hold))
    await hold.is_held.wait()
    closing = asyncio.create_task(reader.close())
    await let_run()
    closing.cancel()
    await let_run()
    closing.cancel()
    await asyncio.wait([closing])
    is_alive = any(thread.is_alive() for thread in threads() - before)
    hold.release()
    assert (is_alive, closing.cancelled()) == (False, True)
    await held


async def test_readers_are_still_lent_after_a_closing_was_cancelled(database: Database) -> None:
    hold, readers = Hold(), database._readers
    held = asyncio.create_task(readers.read(hold))
    await hold.is_held.wait()
    async with asyncio.timeout(60):
        for _ in range(READERS):
            closing = asyncio.create_task(readers.kept_closed().__aenter__())
            await let_run()
            closing.cancel()
            await asyncio.wait([closing])
            assert await readers.read(first) == 1
        hold.release()
        await held


async def test_a_connection_that_was_opened_too_late_is_closed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, hold, open_raw = list[sqlite3.Connection](), Hold(), connection._open
    release_at_join(hold, monkeypatch)

    def open_late(path: str, *, descriptor: int | None) -> sqlite3.Connection:
        opened.append(raw := open_raw(path, descriptor=descriptor))
        hold(raw)
        return raw

    monkeypatch.setattr(connection, "_open", open_late)
    opening = asyncio.create_task(connect(database.path))
    await hold.is_held.wait()
    opening.cancel()
    await asyncio.wait([opening])
    with pytest.raises(sqlite3.ProgrammingError, match="closed database"):
        opened[0].execute("SELECT 1")


def test_a_loop_that_ends_during_a_migration_closes_the_database(
    tmp_path: Path, bare_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, app, migrate, close = threads(), App(settings(tmp_path)), schema.migrate, Database.close

    async def start() -> Hold:
        hold = Hold()

        def migrate_slowly(raw: sqlite3.Connection) -> list[str]:
            hold(raw)
            return migrate(raw)

        async def close_at_last(database: Database) -> None:
            asyncio.get_running_loop().call_soon(hold.release)
            await close(database)

        monkeypatch.setattr(schema, "migrate", migrate_slowly)
        monkeypatch.setattr(Database, "close", close_at_last)
        asyncio.get_running_loop().create_task(app.start())
        await hold.is_held.wait()
        return hold

    hold = asyncio.run(start())  # Its end cancels every task.
    hold.release()
    assert (left(before), app.database.file.descriptor) == ([], -1)


async def test_a_server_is_left_though_its_commits_were_cancelled(
    postgres: engine.Schemas, tmp_path: Path
) -> None:
    database = Server(postgres.database_of(tmp_path))
    await database.open()
    for task in asyncio.all_tasks():
        if task.get_name() == "commit-stream":
            task.cancel()
    await database.close()
    assert database._pool._connections._closed
