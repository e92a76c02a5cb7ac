"""Faults that a test can cause, and helpers to read what the service stored."""

import asyncio
import re
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

import httpx

from service.app import App
from service.store.database import Transaction
from tests import engine
from tests.harness import Harness, Reply


class DelayedAnswer:
    """An answer that upstream sends only after `release`; a request for it sets `requested`."""

    def __init__(self, answer: httpx.Response | Exception) -> None:
        self._answer = answer
        self._released = asyncio.Event()
        self.requested = asyncio.Event()

    @property
    def reply(self) -> Reply:
        """The reply to add to the upstream's replies."""
        wait: Callable[[httpx.Request], Awaitable[httpx.Response]] = self._wait
        return cast("Reply", wait)  # httpx awaits the result of an asynchronous handler.

    def release(self) -> None:
        """Send the answer."""
        self._released.set()

    async def _wait(self, _request: httpx.Request) -> httpx.Response:
        self.requested.set()
        await self._released.wait()
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


async def crash(world: Harness) -> App:
    """End the service as `kill -9` would, and start it again on the same database.

    Tasks under way and queued writes are lost, and connections are closed. Returns the application
    that died.
    """
    dead = world.app
    worker = dead.worker
    under_way = [*worker.submitter.in_flight.values(), *worker.poller.in_flight.values()]
    under_way += [*worker.dispatcher._tasks]
    dead.database._queue.clear()
    dead.database._enqueue = _cancel_write
    for task in under_way:
        task.cancel()
    await asyncio.gather(*under_way, return_exceptions=True)
    await dead.stop()
    world.app = world.new_app()
    await world.app.start(worker=False)
    return dead


def _cancel_write(*_args: object, **_options: object) -> Awaitable[Any]:
    raise asyncio.CancelledError  # A dead process writes nothing.


def disk_error(message: str = "disk I/O error") -> sqlite3.OperationalError:
    """Return an error that SQLite raises because of the disk."""
    error = sqlite3.OperationalError(message)
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR
    return error


def storage_failure() -> Exception:
    """Return what a statement raises when the disk, or the way to the server, fails."""
    if engine.schemas is None:
        return disk_error()
    return ConnectionResetError("connection lost")


async def execute(world: Harness, sql: str, **values: object) -> None:
    """Execute a statement in a transaction of its own."""

    async def unit(tx: Transaction) -> None:
        await tx.select(sql, values)

    await world.app.database.write(unit)


_WHOLE_ROWS = re.compile(r"SELECT [\w, *]+ FROM (\w+)(?: WHERE (?:(?!ORDER|GROUP|LIMIT)[^()])*)?")
_KEYS = {
    "generations": "id",
    "deliveries": "tenant, id",
    "callbacks": "tenant, id",
    "events": "id",
    "subscribers": "id",
    "attempts": "delivery_id, number",
    "exchanges": "generation_id, kind, number",
}


async def rows(world: Harness, sql: str, **values: object) -> list[Mapping[str, Any]]:
    """Select rows from the service's database; whole ones of a table in the order of its key."""
    table = _WHOLE_ROWS.fullmatch(sql)
    if table is not None:
        sql = f"{sql} ORDER BY {_KEYS.get(table[1], '1')}"  # Else PostgreSQL promises no order.

    async def unit(tx: Transaction) -> list[Mapping[str, Any]]:
        return [dict(row) for row in await tx.select(sql, values)]

    selected: list[Mapping[str, Any]] = await world.app.database.read(unit)
    return selected


async def timeline_of(world: Harness, generation_id: str) -> list[tuple[str, str]]:
    """Return the timeline of a generation as pairs of type and result."""
    answer = await world.get(f"/v1/generations/{generation_id}/timeline")
    entries = answer["data"]
    return [(entry["type"], _result(entry["detail"])) for entry in entries]


def _result(detail: Mapping[str, Any]) -> str:
    names = ("outcome", "verdict", "type", "status_code")
    return next((str(detail[name]) for name in names if name in detail), "")


async def status_of(world: Harness, generation_id: str) -> str:
    """Return the status of a generation."""
    status: str = (await world.get(f"/v1/generations/{generation_id}"))["status"]
    return status
