"""A gate that delays a subscriber's answers, and helpers for deliveries and workers."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest

from service.delivery.dispatch import Dispatcher
from service.session import Session
from tests.faults import rows
from tests.harness import SUBSCRIBER_URL, Harness

T = TypeVar("T")
# Where the rows of a generation are.
TABLES = (
    "generations",
    "generation_bodies",
    "generation_metadata",
    "exchanges",
    "callbacks",
    "callback_bodies",
    "events",
    "deliveries",
    "attempts",
)


class Gate:
    """A subscriber's answer that is sent once `is_open` is set; counts the requests for it.

    requests: all so far. waiting: those without an answer. most_waiting: the highest `waiting`.
    """

    def __init__(self, answer: Any = 200) -> None:
        self.answer = answer
        self.is_open = asyncio.Event()
        self.requests = 0
        self.waiting = 0
        self.most_waiting = 0
        self._new_request = asyncio.Event()

    async def __call__(self) -> Any:
        self.requests += 1
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        self._new_request.set()
        try:
            await self.is_open.wait()
        finally:
            self.waiting -= 1
        return self.answer

    def time_out(self) -> None:
        """Answer all that wait now, and none that come later."""
        self.is_open.set()
        self.is_open.clear()

    async def wait_for(self, count: int) -> None:
        """Wait until there were `count` requests in all."""
        while self.requests < count:
            self._new_request.clear()
            await self._new_request.wait()


async def deliveries(world: Harness, **query: Any) -> list[dict[str, Any]]:
    """Return the deliveries of the default tenant, oldest first."""
    page = await world.get("/v1/deliveries", order="asc", **query)
    rows: list[dict[str, Any]] = page["data"]
    return rows


async def delivery(world: Harness, **query: Any) -> dict[str, Any]:
    """Return the only delivery, with its attempts."""
    [only] = await deliveries(world, **query)
    return await world.get(f"/v1/deliveries/{only['id']}")


def queue_answers(world: Harness, *answers: Any, url: str = SUBSCRIBER_URL) -> None:
    """Add the next answers of the subscriber at `url`; after them it answers 200."""
    world.subscribers.answers[url].extend(answers)


async def take_over(world: Harness) -> Any:
    """Start another application that takes over the database; return the old one, not stopped."""
    old = world.app
    worker = old.worker
    assert worker is not None
    await worker.ownership.release()
    world.app = world.new_app()
    await world.app.start(worker=False)
    return old


async def tick_until_asked(world: Harness, gate: Gate) -> None:
    """Tick until an attempt waits at the gate, which outlives its tick.

    A tick that is too short for its steps on a busy machine gets nowhere, so each has more time.
    """
    seconds = 0.2
    while not gate.waiting:
        assert (await world.app.worker.tick(seconds)).attempted == 0
        seconds *= 2


class Counting:
    """A receiver that counts the attempts under way at once."""

    under_way = most = 0

    async def __call__(self) -> int:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        for _ in range(20):  # So that others could begin meanwhile.
            await asyncio.sleep(0)  # noqa: TID251  it waits for no time
        self.under_way -= 1
        return 200


async def by_hand(world: Harness, step: Coroutine[Any, Any, T]) -> T:
    """Do a step of due work with the right to work, but without a session; return its result."""
    ownership = world.app.worker.ownership
    assert await ownership.acquire()
    try:
        return await step
    finally:
        await ownership.release()


@asynccontextmanager
async def attach_worker(world: Harness) -> AsyncIterator[Dispatcher]:
    """Attach the worker: committed deliveries reach the lanes in memory, with no loop running."""
    worker = world.app.worker
    assert await worker.right.begin_loops(lambda: None)
    dispatcher = worker.dispatcher
    try:
        yield dispatcher
        await dispatcher.settle()
    finally:
        await worker.right.end_loops()


async def count_rows(world: Harness, *tables: str) -> dict[str, int]:
    """Count the rows of these tables, or of all that a generation has rows in."""
    counts = {}
    for table in tables or TABLES:
        [row] = await rows(world, f"SELECT count(*) AS count FROM {table}")  # noqa: S608
        counts[table] = row["count"]
    return counts


async def check_erased(world: Harness) -> None:
    """Check that no table has anything of a generation but the places of its events."""
    counts = await count_rows(world)
    assert counts == {**dict.fromkeys(TABLES, 0), "events": counts["events"]}
    for event in await rows(world, "SELECT * FROM events"):
        names = ("tenant", "type", "generation_id", "body")
        assert [event[name] for name in names] == ["", "", None, b""]


def count_calls(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """Return a list that gets the time of each call of a method of sessions from now on."""
    times: list[int] = []
    method = getattr(Session, name)

    async def counted(session: Session, now: int) -> Any:
        times.append(now)
        return await method(session, now)

    monkeypatch.setattr(Session, name, counted)
    return times
