"""Stopping and ticks keep their time, whatever hangs; no test here waits for real seconds."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from urllib.parse import urlsplit

import httpx
import pytest

from service import app as app_module
from service import right
from service.cli.stopping import Stop
from service.model.errors import StorageError
from service.upstream import wire
from tests.faults import rows
from tests.harness import Harness, opened
from tests.journeys.gates import Gate, delivery, queue_answers, tick_until_asked

ONE: dict[str, Any] = {"event_types": ["generation.submitted"]}


class HangingUpstream:
    """Answers no submission until `answers` is set."""

    def __init__(self, world: Harness) -> None:
        self.asked, self.answers = asyncio.Event(), asyncio.Event()
        self._create = world.app.context.client.create
        world.app.context.client.create = self.create  # type: ignore[method-assign]

    async def create(self, path: str, body: dict[str, Any]) -> wire.Answer:
        self.asked.set()
        await self.answers.wait()
        return await self._create(path, body)


@asynccontextmanager
async def put_off_submission(path: Path, **overrides: Any) -> AsyncIterator[Harness]:
    """Within, a submission is due that upstream has put off."""
    async with opened(path, **overrides) as world:
        world.upstream.create_replies.append(httpx.Response(503, json={}))
        await world.generate()
        world.clock.advance(5)
        yield world


async def test_a_submission_that_hangs_holds_a_stop_no_longer_than_its_deadline(
    tmp_path: Path,
) -> None:
    async with put_off_submission(tmp_path, shutdown_seconds=0) as world:
        upstream = HangingUpstream(world)
        world.app.worker.start()
        await upstream.asked.wait()
        await world.app.stop()
        assert not world.app.worker.submitter.in_flight
        assert not world.app.worker.ownership.is_held
        assert not world.app.worker.has_failed
        with pytest.raises(StorageError, match="closed"):
            world.app.database.write(None)
        await world.app.start(worker=False)


async def test_our_own_end_is_not_held_against_a_receiver(tmp_path: Path) -> None:
    async with opened(tmp_path, shutdown_seconds=0) as world:
        gate = Gate()
        queue_answers(world, gate)
        await world.subscribe(**ONE)
        world.app.worker.start()
        await world.generate()
        await gate.wait_for(1)
        await world.app.stop()
        world.app = world.new_app()
        await world.app.start(worker=False)
        stored = await delivery(world)
        assert (stored["status"], stored["attempts"]) == ("pending", [])


async def stop_and_start(world: Harness, gate: Gate) -> None:
    """Stop a service whose receiver answers during the stop, then start another one."""
    stopping = asyncio.create_task(world.app.stop())
    await asyncio.wait([stopping], timeout=0)
    gate.is_open.set()
    await stopping
    world.app = world.new_app()
    await world.app.start(worker=False)


async def test_work_under_way_may_finish_until_the_deadline(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        gate = Gate()
        queue_answers(world, gate)
        await world.subscribe(**ONE)
        world.app.worker.start()
        await world.generate()
        await gate.wait_for(1)
        await stop_and_start(world, gate)
        assert (await delivery(world))["status"] == "delivered"


@pytest.mark.parametrize("owner", ["loops", "tick"])
async def test_a_stop_records_attempts_that_the_database_could_not_store_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: str
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise StorageError("the disk is full")

    async with opened(tmp_path, shutdown_seconds=60) as world:
        gate, worker = Gate(), world.app.worker
        queue_answers(world, gate)
        await world.subscribe(**ONE)
        await world.generate()
        if owner == "loops":
            worker.start()
            await gate.wait_for(1)
        else:
            await tick_until_asked(world, gate)
        with monkeypatch.context() as patched:
            patched.setattr(world.app.database, "write_batched", fail)
            gate.is_open.set()
            while not worker.dispatcher.unrecorded:
                await world.get("/v1/events")
        await world.app.stop()
        world.app = world.new_app()
        await world.app.start(worker=False)
        assert (await delivery(world))["status"] == "delivered"
        await world.run()
        assert gate.requests == 1


async def test_a_stop_tries_again_to_record_an_attempt_until_it_has_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(right, "RECORD_AGAIN_SECONDS", 0)
    async with opened(tmp_path, shutdown_seconds=60) as world:
        gate, worker, tries = Gate(), world.app.worker, list[int]()
        write = world.app.database.write_batched

        def fail_thrice(*args: Any, **more: Any) -> Any:
            tries.append(1)
            if len(tries) <= 3:
                raise StorageError("the disk is full")
            return write(*args, **more)

        monkeypatch.setattr(world.app.database, "write_batched", fail_thrice)
        queue_answers(world, gate)
        await world.subscribe(**ONE)
        worker.start()
        await world.generate()
        await gate.wait_for(1)
        await stop_and_start(world, gate)
        assert (await delivery(world))["status"] == "delivered"


async def test_who_waits_to_record_an_attempt_hears_of_a_stop_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise StorageError("the disk is full")

    monkeypatch.setattr(right, "RECORD_AGAIN_SECONDS", 3_600)
    async with opened(tmp_path, shutdown_seconds=60) as world:
        gate, worker = Gate(), world.app.worker
        queue_answers(world, gate)
        await world.subscribe(**ONE)
        await world.generate()
        await tick_until_asked(world, gate)
        with monkeypatch.context() as patched:
            patched.setattr(world.app.database, "write_batched", fail)
            gate.is_open.set()
            while not worker.dispatcher.unrecorded:
                await world.get("/v1/events")
            for _ in range(3):  # By now its rest waits to try again.
                await world.get("/v1/events")
        await world.app.stop()
        world.app = world.new_app()
        await world.app.start(worker=False)
        assert (await delivery(world))["status"] == "delivered"


async def test_a_worker_keeps_its_right_until_its_submissions_have_ended(tmp_path: Path) -> None:
    async with opened(tmp_path, shutdown_seconds=60) as world:
        upstream, worker = HangingUpstream(world), world.app.worker
        worker.start()
        creating = asyncio.create_task(world.generate())
        await upstream.asked.wait()
        while not worker.ownership.is_held:
            await world.get("/v1/events")
        worker.stop()
        for _ in range(5):  # By now all loops have ended.
            await world.get("/v1/events")
        assert worker.problem is None
        assert worker.ownership.is_held
        upstream.answers.set()
        await creating
        await world.app.stop()
        await world.app.start(worker=False)


@pytest.mark.parametrize("edge", ["raises", "hangs"])
async def test_a_stop_closes_the_database_whatever_else_cannot_be_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edge: str
) -> None:
    monkeypatch.setattr(app_module, "CLOSE_SECONDS", 0)

    async def close() -> None:
        if edge == "raises":
            raise RuntimeError("no such luck")
        await asyncio.Event().wait()

    async with opened(tmp_path) as world:
        monkeypatch.setattr(world.subscribers, "close", close, raising=False)
        monkeypatch.setattr(world.app.context.client, "close", close)
        await world.app.stop()
        with pytest.raises(StorageError, match="closed"):
            world.app.database.write(None)
        await world.app.start(worker=False)


@pytest.mark.parametrize("edge", ["its body arrives", "it is stored", "its work is done"])
async def test_a_callback_that_a_stop_cancels_is_answered_so_that_it_comes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edge: str
) -> None:
    waits, answers = asyncio.Event(), list[Any]()

    async def hang(*_: object, **__: object) -> Any:
        waits.set()
        await asyncio.Event().wait()

    async def receive() -> Any:
        if edge == "its body arrives":
            await hang()
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Any) -> None:
        answers.append(message)

    async with opened(tmp_path) as world:
        await world.generate()
        if edge == "it is stored":
            monkeypatch.setattr(world.app.database, "write_batched", hang)
        if edge == "its work is done":
            monkeypatch.setattr(world.app._receiver, "_drive", hang)
        path = urlsplit(world.upstream.callback_url()).path
        scope = {"type": "http", "method": "POST", "path": path, "headers": []}
        request = asyncio.create_task(world.app(scope, receive, send))
        await waits.wait()
        world.app.begin_stop()
        request.cancel()  # As the server does at the deadline.
        await request
        stored = (await rows(world, "SELECT count(*) AS count FROM callbacks"))[0]["count"]
    headers = dict(answers[0]["headers"])
    assert headers[b"x-request-id"].startswith(b"req_")
    if edge == "its work is done":  # It is stored, and a tick or another process does the work.
        assert (answers[0]["status"], stored) == (200, 1)
    else:
        assert (answers[0]["status"], stored) == (503, 0)
        assert headers[b"retry-after"] == b"1"


async def test_a_stopped_application_can_start_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate()
        await world.app.stop()
        await world.app.start(worker=False)
        await world.generate()
        await world.run()
        assert not world.app.context.stopping.is_set()


async def test_a_tick_ends_on_time_though_a_submission_hangs(tmp_path: Path) -> None:
    async with put_off_submission(tmp_path) as world:
        upstream, worker = HangingUpstream(world), world.app.worker
        async with asyncio.timeout(60):
            seconds = 0.2
            while not upstream.asked.is_set():  # On a busy machine a look may take 0.2 s.
                assert (await worker.tick(seconds)).more
                seconds *= 2
        assert worker.submitter.in_flight  # It is not cancelled: it would be lost.
        upstream.answers.set()
        while worker.ownership.is_held:
            await world.get("/v1/events")
        assert len(world.upstream.creates) == 2
        assert not worker.submitter.in_flight


async def test_a_tick_ends_on_time_though_a_step_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = asyncio.Event()

    async def hang(_now: int) -> int | None:
        await goes_on.wait()
        return None

    async with opened(tmp_path) as world:
        worker = world.app.worker
        monkeypatch.setattr(worker.poller, "expire_due", hang)
        try:
            async with asyncio.timeout(60):
                assert (await worker.tick(0.2)).more
        finally:
            goes_on.set()
        while worker.ownership.is_held:
            await world.get("/v1/events")


async def test_an_attempt_that_outlives_its_tick_is_recorded_by_its_session(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        gate = Gate()
        queue_answers(world, gate)
        await world.subscribe(**ONE)
        await world.generate()
        worker = world.app.worker
        await tick_until_asked(world, gate)
        session = worker.session
        assert (await worker.tick(0.2)).attempted == 0  # In the same session: nothing is repeated.
        assert worker.session is session
        gate.is_open.set()
        while worker.ownership.is_held:
            await world.get("/v1/events")
        assert (await delivery(world))["status"] == "delivered"
        assert gate.requests == 1


async def test_all_that_may_finish_has_nine_tenths_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began, threads = [], Mock()  # A real one would end this process.
    monkeypatch.setattr(threading, "Thread", threads)
    stop = Stop(5.0, lambda: began.append(stop.work_ends_at))
    now = asyncio.get_running_loop().time()
    stop.begin()
    stop.begin()
    [ends_at] = began
    assert ends_at is not None
    assert now + 4.5 <= ends_at <= asyncio.get_running_loop().time() + 4.5
    [(has_begun, seconds)] = [each.kwargs["args"] for each in threads.call_args_list]
    assert (has_begun.is_set(), seconds) == (True, 5.0)
