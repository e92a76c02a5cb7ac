"""Receivers that hold what they get until a test lets them go, and short ways to look around."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from service.delivery.dispatch import Deliverer
from tests.harness import SUBSCRIBER_URL, Harness


class Gate:
    """An answer that is given once the gate is opened; knows how many wait for it."""

    def __init__(self, answer: Any = 200) -> None:
        self.answer = answer
        self.is_open = asyncio.Event()
        self.arrived = 0
        self.held = 0
        self.most_held = 0
        self._more = asyncio.Event()

    async def __call__(self) -> Any:
        self.arrived += 1
        self.held += 1
        self.most_held = max(self.most_held, self.held)
        self._more.set()
        try:
            await self.is_open.wait()
        finally:
            self.held -= 1
        return self.answer

    async def wait_for(self, count: int) -> None:
        """Wait until so many have arrived in all."""
        while self.arrived < count:
            self._more.clear()
            await self._more.wait()


async def deliveries(world: Harness, **query: Any) -> list[dict[str, Any]]:
    """The deliveries of the default tenant, oldest first."""
    found: list[dict[str, Any]] = (await world.get("/v1/deliveries", order="asc", **query))["data"]
    return found


async def delivery(world: Harness, **query: Any) -> dict[str, Any]:
    """The only delivery, with its attempts."""
    [only] = await deliveries(world, **query)
    return await world.get(f"/v1/deliveries/{only['id']}")


def answer(world: Harness, *answers: Any, url: str = SUBSCRIBER_URL) -> None:
    """What the receiver at `url` answers, in order; 200 after that."""
    world.subscribers.answers[url].extend(answers)


async def crash(world: Harness) -> Any:
    """Start another process on the same file; the old one is gone, as far as the file knows."""
    old = world.app
    worker = old.worker
    assert worker is not None
    worker.ownership.release()
    world.app = world.new_app()
    await world.app.start(worker=False)
    return old


@asynccontextmanager
async def attached(world: Harness) -> AsyncIterator[Deliverer]:
    """What is committed is handed over in memory, as in a worker that runs; no loop does."""
    worker, deliverer = world.app.worker, world.app.parts.deliverer
    assert worker is not None
    assert worker.ownership.acquire()
    worker.attach()
    try:
        yield deliverer
        await deliverer.settle()
    finally:
        worker.ownership.release()
