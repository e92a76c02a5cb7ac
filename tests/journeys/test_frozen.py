"""AWS Lambda freezes the process between two events: no submission may be under way then."""

import asyncio
import importlib
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import pytest

from service.app import App
from service.model.errors import StorageError
from service.ticks import WorkCounts
from tests.harness import ADMIN_KEY, PUBLIC_URL, Harness
from tests.journeys.gates import Gate, queue_answers, tick_until_asked
from tests.journeys.test_drives import (
    beside,
    driven,
    driving,
    submit_without_a_drive,
    until_told,
    works,
)
from tests.journeys.test_stop import HangingUpstream


@pytest.fixture
def function(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The function of Lambda, which runs on the event loop of the test."""
    loops: list[asyncio.AbstractEventLoop] = []
    with monkeypatch.context() as patched:
        patched.setenv("GENHOOK_SECRET_KEYS", secrets.token_hex(32))
        patched.setenv("GENHOOK_ADMIN_KEY", ADMIN_KEY)
        patched.setenv("GENHOOK_WORKER", "off")
        patched.setattr(asyncio, "set_event_loop", loops.append)
        patched.setattr("mangum.Mangum", Mock())
        patched.setattr("service.app.configure_log", Mock())
        handler = importlib.import_module("service.serverless").handler
    yield handler
    for loop in loops:
        loop.close()
    del sys.modules["service.serverless"]


def context() -> Any:
    return Mock(get_remaining_time_in_millis=lambda: 60_000)


async def put_off(world: Harness, client: httpx.AsyncClient, app: App) -> None:
    """Let a process store a submission that upstream puts off, and make it due."""
    world.upstream.create_replies.append(httpx.Response(503, json={}))
    answer = await client.post(
        f"{PUBLIC_URL}/v1/generations",
        json={"model": "imagen4", "input": {"prompt": "a small harbour"}},
        headers={"authorization": f"Bearer {ADMIN_KEY}", "prefer": "respond-async"},
    )
    assert answer.status_code == 202
    await app.worker.submitter.settle()
    world.clock.advance(30)


async def test_a_function_is_not_frozen_in_a_drive_that_follows_its_tick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: Any
) -> None:
    async with driven(tmp_path) as world, beside(world) as other:
        gate, worker, function._app = Gate(), world.app.worker, world.app
        await world.subscribe()
        queue_answers(world, gate)
        await submit_without_a_drive(world)
        await tick_until_asked(world, gate)

        async def tick(_seconds: float) -> WorkCounts:
            return WorkCounts(more=True)  # Its attempt is under way.

        monkeypatch.setattr(worker, "tick", tick)
        await put_off(world, other, other._transport.app)  # type: ignore[attr-defined]
        await until_told(world)
        upstream = HangingUpstream(world)
        ticking = asyncio.create_task(function._tick(context()))
        gate.is_open.set()
        async with asyncio.timeout(60):
            await upstream.asked.wait()
        await world.get("/v1/events")
        assert not ticking.done()
        upstream.answers.set()
        await ticking
        assert not worker.submitter.in_flight
        await driving(world.app)
        assert not works(world.app)


async def test_a_function_is_not_frozen_in_a_submission_of_a_tick_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: Any
) -> None:
    async with driven(tmp_path, drive_seconds=0.0) as world:
        worker, function._app = world.app.worker, world.app
        await put_off(world, world.client, world.app)
        upstream = HangingUpstream(world)

        async def fail(_now: int) -> tuple[int, int | None]:
            await upstream.asked.wait()  # By the step before.
            raise StorageError("disk I/O error")

        monkeypatch.setattr(worker.poller, "run_due", fail)
        ticking = asyncio.create_task(function._tick(context()))
        async with asyncio.timeout(60):
            await upstream.asked.wait()
        await world.get("/v1/events")
        assert not ticking.done()
        upstream.answers.set()
        with pytest.raises(StorageError):
            await ticking
        assert not worker.submitter.in_flight
