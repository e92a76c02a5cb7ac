"""A worker that cannot start yet: it waits for the disk, or for another worker to stop."""

import asyncio
import errno
import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.generations.poll import Poller
from service.model.errors import StorageError
from tests.harness import SUBSCRIBER_URL, Harness, opened
from tests.journeys.gates import Gate, queue_answers, tick_until_asked
from tests.journeys.test_drives import works


async def wait_until_working(world: Harness) -> None:
    """Wait until the worker works; fail if its task ends."""
    worker = world.app.worker
    assert worker is not None
    assert worker.task is not None
    while not (worker.ownership.is_held and worker.dispatcher.is_open):
        assert not worker.task.done(), worker.task.exception()
        await world.get("/v1/events")


async def until(world: Harness, is_so: Callable[[], bool]) -> None:
    """Wait until it is so, while requests come."""
    async with asyncio.timeout(30):
        while not is_so():
            await world.get("/v1/events")


async def stop_worker(world: Harness) -> None:
    worker = world.app.worker
    assert worker is not None
    assert worker.task is not None
    worker.stop()
    await asyncio.wait_for(worker.task, 60)


async def test_a_worker_that_lost_its_right_stands_by_and_works_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.worker.STANDBY_SECONDS", 0)
    async with opened(tmp_path) as world:
        worker = world.app.worker
        worker.start()
        await wait_until_working(world)
        lost = worker.session
        await worker.ownership.release()  # As PostgreSQL does when it ends the connection.
        async with asyncio.timeout(30):
            while worker.session is lost:
                await world.get("/v1/events")
        assert not lost.dispatcher.is_open
        await wait_until_working(world)
        await world.subscribe()
        await world.generate()
        while not world.subscribers.webhooks:
            await world.get("/v1/events")
        await stop_worker(world)


async def test_a_step_that_backs_off_does_not_delay_the_next_try_for_the_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = asyncio.Event()

    async def fail(_now: int) -> int | None:
        failed.set()
        raise OverflowError

    monkeypatch.setattr("service.worker.STANDBY_SECONDS", 0)
    monkeypatch.setattr("service.worker.log_failure", lambda *_: 3_600.0)
    async with opened(tmp_path) as world:
        worker = world.app.worker
        with monkeypatch.context() as patched:
            patched.setattr(worker.poller, "expire_due", fail)
            worker.start()
            await failed.wait()
        lost = worker.session
        await worker.ownership.release()
        async with asyncio.timeout(30):
            while worker.session is lost:
                await world.get("/v1/events")
        await wait_until_working(world)
        await stop_worker(world)


async def test_a_worker_takes_over_once_the_tick_of_its_own_process_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, waiting, take_over = Gate(), list[int](), Poller.take_over

    async def note(poller: Poller, now: int) -> None:
        waiting.append(gate.waiting)
        await take_over(poller, now)

    monkeypatch.setattr(Poller, "take_over", note)
    async with opened(tmp_path) as world:
        queue_answers(world, gate)
        await world.subscribe()
        await world.generate()
        worker = world.app.worker
        tick = asyncio.create_task(worker.tick(60))
        await gate.wait_for(1)
        worker.start()
        for _ in range(20):
            await world.get("/v1/events")
        assert worker.dispatcher.is_open
        gate.is_open.set()
        assert (await tick).attempted == 1
        await wait_until_working(world)
        assert waiting == [0]
        assert len(world.subscribers.webhooks) == 1, "the worker repeats what the tick does"
        await stop_worker(world)


async def test_a_worker_that_takes_over_during_a_stop_starts_no_attempt(tmp_path: Path) -> None:
    async with opened(tmp_path, shutdown_seconds=60) as world:
        gate, worker = Gate(), world.app.worker
        queue_answers(world, *[gate] * 20)
        await world.subscribe(event_types=["generation.submitted"])
        for _ in range(20):
            await world.generate()
        tick = asyncio.create_task(worker.tick(60))
        await gate.wait_for(1)
        worker.start()
        while not worker.right._lock._waiters:
            await world.get("/v1/events")
        stopping = asyncio.create_task(world.app.stop())
        while not worker.right.has_loops:
            await world.app.database.schema_problem()
        # An attempt that began before the stop may still be on its way to the gate.
        while gate.requests < worker.dispatcher.slots.in_use:
            await world.app.database.schema_problem()
        started = gate.requests
        gate.is_open.set()
        await stopping
        await tick
        assert gate.requests == started < 20
        await world.app.start(worker=False)


async def test_a_tick_leaves_the_session_to_a_worker_that_began_after_another_tick(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        gate = Gate()
        queue_answers(world, gate)
        await world.subscribe()
        await world.generate()
        worker = world.app.worker
        await tick_until_asked(world, gate)  # The rest of it is a task of its own.
        gate.is_open.set()
        while works(world.app):
            await world.get("/v1/events")
        worker.start()
        await wait_until_working(world)
        session = worker.session
        await worker.tick(60)
        assert worker.session is session
        assert worker.dispatcher.is_open
        assert works(world.app)
        await stop_worker(world)


async def test_a_worker_that_takes_over_from_a_tick_finds_what_was_committed_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While requests outlive a tick, deliveries are handed to nobody."""
    monkeypatch.setattr("service.store.postgres.ownership.LOOK_SECONDS", 3_600)
    async with opened(tmp_path, shutdown_seconds=0) as world:
        gate, worker = Gate(), world.app.worker
        queue_answers(world, gate)
        await world.subscribe(event_types=["generation.submitted"])
        await world.generate()
        await tick_until_asked(world, gate)
        session, url = worker.session, f"{SUBSCRIBER_URL}2"
        await world.subscribe(url, event_types=["generation.submitted"])
        await world.generate()
        worker.start()
        await wait_until_working(world)
        assert worker.session is session
        async with asyncio.timeout(30):
            while not world.subscribers.webhooks_to(url):
                await world.get("/v1/events")
        gate.is_open.set()
        await stop_worker(world)


@pytest.mark.sqlite_only("it makes the lock of a file fail")
async def test_a_worker_starts_once_its_lock_can_be_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("service.worker.STANDBY_SECONDS", 0)
    async with opened(tmp_path) as world:
        flock = fcntl.flock
        monkeypatch.setattr(fcntl, "flock", fail)
        worker = world.app.worker
        assert worker is not None
        worker.start()
        await world.subscribe()
        assert not worker.ownership.is_held
        monkeypatch.setattr(fcntl, "flock", flock)
        await wait_until_working(world)
        await world.generate()
        while not world.subscribers.webhooks:
            await world.get("/v1/events")
        await stop_worker(world)


async def test_a_worker_starts_once_the_disk_works_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.worker.STANDBY_SECONDS", 0)
    failures = [StorageError("the database failed: disk I/O error")] * 3
    take_over = Poller.take_over

    async def fail_three_times(poller: Poller, now: int) -> None:
        if failures:
            raise failures.pop()
        await take_over(poller, now)

    monkeypatch.setattr(Poller, "take_over", fail_three_times)
    async with opened(tmp_path) as world:
        worker = world.app.worker
        assert worker is not None
        worker.start()
        await wait_until_working(world)
        assert failures == []
        await stop_worker(world)


@pytest.mark.sqlite_only("workers on PostgreSQL share the work")
async def test_a_second_worker_stands_by_until_the_first_one_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.worker.STANDBY_SECONDS", 0)
    async with opened(tmp_path) as working, opened(tmp_path) as waiting:
        assert working.app.worker is not None
        assert waiting.app.worker is not None
        working.app.worker.start()
        await wait_until_working(working)
        waiting.app.worker.start()
        for _ in range(20):
            await waiting.get("/v1/events")
        assert not waiting.app.worker.ownership.is_held
        assert waiting.app.worker.problem is None
        await waiting.run()
        assert not waiting.app.worker.ownership.is_held
        await stop_worker(working)
        await wait_until_working(waiting)
        await stop_worker(waiting)


async def readiness(world: Harness) -> tuple[int, str]:
    answer = await world.client.get("/readyz")
    return answer.status_code, answer.json()["checks"]["worker"]


@pytest.mark.sqlite_only("it makes the lock of a file fail")
async def test_a_worker_that_cannot_begin_is_not_ready_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def fail(descriptor: int, operation: int) -> None:
        if operation != fcntl.LOCK_UN:
            raise OSError(errno.EIO, "Input/output error")
        flock(descriptor, operation)

    monkeypatch.setattr("service.worker.STANDBY_SECONDS", 0)
    async with opened(tmp_path) as world:
        worker = world.app.worker
        with monkeypatch.context() as patched:
            patched.setattr(fcntl, "flock", fail)
            worker.start()
            await until(world, lambda: worker.problem is not None)
            status, reason = await readiness(world)
            assert status == 503
            assert reason.startswith("The worker has not begun to work for 0 seconds: cannot lock ")
        await until(world, lambda: worker.problem is None)
        with monkeypatch.context() as patched:
            patched.setattr(fcntl, "flock", fail)
            await worker.ownership.release()
            for _ in range(20):
                assert await readiness(world) == (200, "ok"), "it may begin again soon"
            patched.setattr("service.worker.BEGIN_SECONDS", 0)
            await until(world, lambda: "cannot lock " in (worker.problem or ""))
        await until(world, lambda: worker.problem is None)
        await stop_worker(world)


async def test_a_worker_whose_first_try_hangs_is_not_ready_but_one_that_waits_for_a_tick_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        worker, hangs, may_go_on = world.app.worker, asyncio.Event(), asyncio.Event()
        acquire = worker.ownership.acquire

        async def hang(shards: Any = None) -> bool:
            hangs.set()
            await may_go_on.wait()
            return await acquire(shards)

        monkeypatch.setattr(worker.ownership, "acquire", hang)
        monkeypatch.setattr("service.worker.BEGIN_SECONDS", 0)
        tick = asyncio.create_task(worker.tick(1))
        await hangs.wait()
        worker.start()
        for _ in range(3):
            assert await readiness(world) == (200, "ok")
        tick.cancel()
        await asyncio.wait([tick])
        status, reason = await readiness(world)
        assert status == 503
        assert reason.endswith("the database does not answer.")
        may_go_on.set()
        await wait_until_working(world)
        await stop_worker(world)


@pytest.mark.sqlite_only("workers on PostgreSQL share the work")
async def test_a_worker_that_stands_by_is_ready_for_however_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.worker.BEGIN_SECONDS", 0)
    async with opened(tmp_path) as working, opened(tmp_path) as waiting:
        working.app.worker.start()
        await wait_until_working(working)
        tries, acquire = asyncio.Event(), waiting.app.worker.ownership.acquire

        async def try_to_acquire(shards: Any = None) -> bool:
            tries.set()
            return await acquire(shards)

        monkeypatch.setattr("service.worker.STANDBY_SECONDS", 60)
        monkeypatch.setattr(waiting.app.worker.ownership, "acquire", try_to_acquire)
        waiting.app.worker.start()
        await tries.wait()
        await waiting.get("/v1/events")
        assert await readiness(waiting) == (200, "ok")
        await stop_worker(waiting)
        await stop_worker(working)


async def test_a_worker_that_waited_for_a_long_tick_is_ready_while_it_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        worker, loop, gate = world.app.worker, asyncio.get_running_loop(), Gate()
        acquire, time = worker.ownership.acquire, loop.time

        async def hang(shards: Any = None) -> bool:
            await gate()
            return await acquire(shards)

        monkeypatch.setattr(worker.ownership, "acquire", hang)
        tick = asyncio.create_task(worker.tick(1))
        await gate.wait_for(1)
        worker.start()
        await world.get("/v1/events")
        with monkeypatch.context() as a_minute_later:
            a_minute_later.setattr(loop, "time", lambda: time() + 60)
            tick.cancel()
            await asyncio.wait([tick])
            await gate.wait_for(2)
            assert worker.problem is None
        gate.is_open.set()
        await wait_until_working(world)
        await stop_worker(world)
