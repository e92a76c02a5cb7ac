"""A session: what a worker remembers ends with its right to work, and the rows stand behind it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from service.app import App
from service.model.clock import HOUR, MINUTE
from service.model.errors import StorageError
from service.session import Session
from tests.faults import storage_failure
from tests.harness import Harness, opened
from tests.journeys.gates import Gate, delivery, queue_answers, tick_until_asked

ONE: dict[str, Any] = {"event_types": ["generation.submitted"]}


@asynccontextmanager
async def another_process(world: Harness) -> AsyncIterator[App]:
    """Within, requests of `world` go to another process on the same database."""
    mine, world.app = world.app, world.new_app()
    await world.app.start(worker=False)
    try:
        yield world.app
    finally:
        await world.app.stop()
        world.app = mine
        await hear(mine)


async def hear(app: App) -> None:
    """Let the process hear what others committed: PostgreSQL sends it before its next answer."""
    locks = getattr(app.worker.ownership, "_locks", None)
    if locks is not None and not locks.connection.is_closed():
        await locks.connection.execute("SELECT 1")


async def begin(world: Harness) -> None:
    """Take over, and look at the rows for the first time."""
    assert await world.app.worker._take_over()
    await world.app.worker.session.watch(world.clock())


async def wait_until(world: Harness, is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not is_so():
            await world.get("/v1/events")


async def test_a_look_wakes_every_loop_that_of_a_tick_too(tmp_path: Path) -> None:
    """It reads the rows of others, which may be due before the time that the loops sleep for."""
    async with opened(tmp_path) as world:
        await begin(world)
        signals = msgspec.structs.astuple(world.app.context.signals)
        for signal in signals:
            signal.clear()
        await world.app.worker.tick(60)
        assert all(signal.is_set() for signal in signals)


async def test_nothing_is_handed_to_a_session_that_could_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resume = Session.resume

    def fail(session: Session, **options: Any) -> None:
        resume(session, **options)
        raise StorageError("disk I/O error")

    async with opened(tmp_path) as world:
        await world.subscribe(**ONE)
        worker = world.app.worker
        with monkeypatch.context() as patched:
            patched.setattr(Session, "resume", fail)
            with pytest.raises(StorageError):
                await worker._take_over()
        await world.generate()
        assert not worker.dispatcher.lanes
        async with another_process(world):
            await world.run()
        await world.run()
        assert len(world.subscribers.webhooks) == 1


async def test_a_commit_is_handed_to_the_session_that_works_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE)
        worker = world.app.worker
        assert await worker._take_over()
        refill = worker.context.inbox.refill  # As a unit notes it before its commit.
        first = worker.session
        await worker.end_session()
        assert await worker._take_over()
        await world.generate()
        refill(subscriber["id"])
        assert (list(first.dispatcher.lanes), len(worker.dispatcher.lanes)) == ([], 1)
        await worker.dispatcher.settle()
        await worker.end_session()
        assert worker.context.inbox.lanes is None


async def test_what_is_under_way_at_the_end_of_a_session_is_due_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        gate = Gate()
        queue_answers(world, gate)
        await world.subscribe(**ONE)
        worker = world.app.worker
        assert await worker._take_over()
        await world.generate()
        await gate.wait_for(1)
        await worker.end_session()
        assert (gate.waiting, worker.dispatcher.lanes) == (0, {})
        stored = await delivery(world)
        assert (stored["status"], stored["attempts"]) == ("pending", [])
        await world.run()
        assert (await delivery(world))["status"] == "delivered"


async def test_what_another_process_commits_during_a_take_over_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(**ONE)
        worker, look = world.app.worker, Session.look

        async def look_then_miss(session: Session, now: int) -> int:
            next_at = await look(session, now)
            async with another_process(world):
                await world.generate()
            return next_at

        with monkeypatch.context() as patched:
            patched.setattr(Session, "look", look_then_miss)
            await begin(world)
        await worker.session.watch(world.clock())
        await worker.dispatcher.run_due(world.clock())
        await worker.dispatcher.settle()
        assert len(world.subscribers.webhooks) == 1
        await worker.end_session()


@pytest.mark.parametrize("milliseconds", [MINUTE - 1, MINUTE])
async def test_a_full_look_at_the_rows_finds_within_a_minute_what_was_not_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, milliseconds: int
) -> None:
    monkeypatch.setattr("service.store.postgres.ownership.LOOK_SECONDS", 3_600)
    async with opened(tmp_path) as world:
        await world.subscribe(**ONE)
        worker = world.app.worker
        await begin(world)
        worker.context.inbox.lanes = None  # Whatever the reason may be.
        await world.generate()
        world.clock.now += milliseconds
        await worker.session.watch(world.clock())
        await worker.dispatcher.run_due(world.clock())
        await worker.dispatcher.settle()
        assert len(world.subscribers.webhooks) == (milliseconds == MINUTE)
        await worker.end_session()


async def test_what_others_commit_is_found_though_the_clock_was_set_back(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(**ONE)
        worker = world.app.worker
        await begin(world)
        world.clock.now -= HOUR
        async with another_process(world):
            await world.generate()
        await worker.session.watch(world.clock())
        await worker.dispatcher.run_due(world.clock())
        await worker.dispatcher.settle()
        assert len(world.subscribers.webhooks) == 1
        await worker.end_session()


async def test_a_look_that_failed_is_repeated_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(**ONE)
        worker = world.app.worker
        await begin(world)
        async with another_process(world):
            await world.generate()

        async def fail(*_: object) -> None:
            raise StorageError("disk I/O error")

        with monkeypatch.context() as patched:
            patched.setattr(worker.dispatcher, "scan", fail)
            with pytest.raises(StorageError):
                await worker.session.watch(world.clock())
        await worker.session.watch(world.clock())
        await worker.dispatcher.run_due(world.clock())
        await worker.dispatcher.settle()
        assert len(world.subscribers.webhooks) == 1
        await worker.end_session()


STEPS = ("submitted", "polled", "expire_due", "replayed", "_clean", "run_due", "watch")


@pytest.mark.parametrize("name", STEPS)
async def test_a_step_that_fails_ends_neither_the_others_nor_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    failed = asyncio.Event()

    async def fail(_now: int) -> int | None:
        failed.set()
        raise storage_failure()

    async with opened(tmp_path) as world:
        worker, new_session = world.app.worker, world.app.worker.right.new_session

        def new_failing_session() -> Session:
            session = new_session()
            assert [step.__name__ for step, _ in session.loops] == list(STEPS)
            session.loops = tuple(
                (fail if step.__name__ == name else step, signal) for step, signal in session.loops
            )
            return session

        monkeypatch.setattr(worker.right, "new_session", new_failing_session)
        worker.start()
        await failed.wait()
        await world.subscribe(**ONE)
        await world.generate()
        await wait_until(world, lambda: world.subscribers.webhooks)
        assert worker.problem is None


async def test_a_tick_in_an_earlier_session_knows_what_others_changed(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        gate = Gate()
        queue_answers(world, gate, gate)
        subscriber = await world.subscribe(**ONE)
        await world.generate()
        worker = world.app.worker
        await tick_until_asked(world, gate)
        session = worker.session
        async with another_process(world):
            path = f"/v1/subscribers/{subscriber['id']}"
            answer = await world.client.patch(path, json={"status": "paused"})
            assert answer.status_code == 200
        await world.generate()
        await worker.tick(0.2)
        assert worker.session is session
        assert gate.requests == 1, "a subscriber that was paused gets a webhook"
        gate.is_open.set()
        await wait_until(world, lambda: not worker.ownership.is_held)


async def test_a_tick_waits_until_the_rest_of_another_one_has_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a release would leave locks of a server that nobody knows of."""
    letting_go, goes_on, gate = asyncio.Event(), asyncio.Event(), Gate()
    ends: list[str] = []
    async with opened(tmp_path) as world:
        queue_answers(world, gate)
        await world.subscribe(**ONE)
        await world.generate()
        worker, release = world.app.worker, world.app.worker.ownership.release

        async def release_slowly() -> None:
            ends.append("begun")
            letting_go.set()
            await goes_on.wait()
            await release()
            ends.append("done")

        await tick_until_asked(world, gate)
        with monkeypatch.context() as patched:
            patched.setattr(worker.ownership, "release", release_slowly)
            gate.is_open.set()
            await letting_go.wait()
            tick = asyncio.create_task(worker.tick(60))
            await world.get("/v1/events")
            goes_on.set()
            await tick
        assert ends == ["begun", "done"] * 2
        assert not worker.ownership.is_held


async def test_a_step_that_fails_in_a_tick_ends_neither_the_others_nor_the_tick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(**ONE)
        await world.generate()

        async def fail(_now: int) -> int | None:
            raise OverflowError

        monkeypatch.setattr(world.app.worker.poller, "expire_due", fail)
        done = await world.app.worker.tick(60)
        assert done.more
        assert len(world.subscribers.webhooks) == 1
        assert not world.app.worker.ownership.is_held
