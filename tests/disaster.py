"""What can go wrong between a test and its world: answers held back, processes that die."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

import httpx

from service.app import App
from service.store.sqlite.database import Transaction
from tests.harness import Harness, Reply


class Held:
    """An answer of upstream's that is on its way until `release`."""

    def __init__(self, answer: httpx.Response | Exception) -> None:
        self._answer = answer
        self._released = asyncio.Event()
        self.asked = asyncio.Event()

    @property
    def reply(self) -> Reply:
        """The answer, to be put among an upstream's replies."""
        waits: Callable[[httpx.Request], Awaitable[httpx.Response]] = self._wait
        return cast("Reply", waits)  # httpx awaits what a handler returns.

    def release(self) -> None:
        """Let the answer arrive."""
        self._released.set()

    async def _wait(self, _request: httpx.Request) -> httpx.Response:
        self.asked.set()
        await self._released.wait()
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


async def crash(world: Harness) -> App:
    """Die as by `kill -9`: drop what is under way, and start anew on the same file.

    What waited to be written is lost with the process. Returns the application that died; its
    connections are closed, as a dead process's are.
    """
    dead = world.app
    parts = dead.parts
    under_way = [*parts.submitter.in_flight.values(), *parts.poller.in_flight.values()]
    under_way += [*parts.deliverer._tasks]
    dead.database._queue.clear()
    dead.database._enqueue = _gone  # type: ignore[method-assign]
    for task in under_way:
        task.cancel()
    await asyncio.gather(*under_way, return_exceptions=True)
    await dead.stop()
    world.app = world.new_app()
    await world.app.start(worker=False)
    return dead


def _gone(*_args: object, **_options: object) -> Awaitable[Any]:
    raise asyncio.CancelledError  # A dead process writes nothing.


async def rows(world: Harness, sql: str, **values: object) -> list[Mapping[str, Any]]:
    """Rows as they are stored."""

    async def unit(tx: Transaction) -> list[Mapping[str, Any]]:
        return [dict(row) for row in await tx.select(sql, values)]

    return await world.app.database.read(unit)


async def story(world: Harness, generation_id: str) -> list[tuple[str, str]]:
    """A generation's timeline as pairs of a type and what is most telling of it."""
    answer = await world.get(f"/v1/generations/{generation_id}/timeline")
    entries = answer["data"]
    return [(entry["type"], _telling(entry["detail"])) for entry in entries]


def _telling(detail: Mapping[str, Any]) -> str:
    names = ("outcome", "verdict", "type", "status_code")
    return next((str(detail[name]) for name in names if name in detail), "")


async def status_of(world: Harness, generation_id: str) -> str:
    """The status of a generation."""
    found: str = (await world.get(f"/v1/generations/{generation_id}"))["status"]
    return found
