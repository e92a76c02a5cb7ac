"""GENHOOK_WORKER=off: a submission or a callback works on what it has made due, within itself."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.app import App
from service.generations.budget import Budget
from service.model.errors import StorageError
from service.session import Session
from service.store import poll_rate
from service.store.postgres import notices
from service.store.shards import shard_of
from tests.harness import (
    SUBSCRIBER_URL,
    Harness,
    RunningClock,
    opened,
    settings,
    started,
    success_report,
)
from tests.journeys.gates import Counting, Gate, queue_answers, tick_until_asked
from tests.journeys.test_stop import HangingUpstream

OFF: dict[str, Any] = {"worker": "off", "poll_rate_per_second": 1_000.0, "drive_seconds": 30.0}
GENERATIONS, PROCESSES, RATE = 50, 5, 50.0


def driven(path: Path, **overrides: Any) -> AbstractAsyncContextManager[Harness]:
    """Run a service in which nothing works but requests."""
    return started(Harness(settings(path, **{**OFF, **overrides}), RunningClock()))


@asynccontextmanager
async def beside(world: Harness) -> AsyncIterator[httpx.AsyncClient]:
    """Run another process on the same database; yield a client of it without a key."""
    app = world.new_app()
    await app.start()
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            yield client
    finally:
        await app.stop()


def works(app: App) -> bool:
    return app.worker.ownership.is_held


async def test_a_submission_is_answered_after_its_first_attempts(tmp_path: Path) -> None:
    async with driven(tmp_path) as world:
        await world.subscribe()
        await world.generate()
        assert world.subscribers.event_types() == ["generation.submitted"]
        assert not works(world.app)


@pytest.mark.parametrize("trust", ["confirm", "body"])
async def test_a_callback_is_answered_after_the_outcome_and_its_first_attempts(
    tmp_path: Path, trust: str
) -> None:
    async with driven(tmp_path, callback_trust=trust) as world:
        await world.subscribe(event_types=["generation.succeeded"])
        generation = await world.generate()
        world.upstream.finish("task1")
        answer = await world.call_back()
        assert answer.status_code == 200
        assert world.subscribers.event_types() == ["generation.succeeded"]
        stored = await world.get(f"/v1/generations/{generation['id']}")
        assert stored["status"] == "succeeded"
        assert world.upstream.polls == (["task1"] if trust == "confirm" else [])


async def test_a_callback_that_is_too_large_is_asked_about_before_its_answer(
    tmp_path: Path,
) -> None:
    async with driven(tmp_path, callback_body_bytes=1_024) as world:
        await world.subscribe(event_types=["generation.succeeded"])
        await world.generate()
        world.upstream.finish("task1")
        assert (await world.call_back(content=b"x" * 2_000)).status_code == 413
        assert world.subscribers.event_types() == ["generation.succeeded"]


async def test_what_is_served_while_a_turn_begins_does_not_make_it_take_all_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def rested(_: Collection[int]) -> None:
        pass

    async with driven(tmp_path) as world:
        right, wanted = world.app.worker.right, [None, {7}]
        taken: list[Collection[int] | None] = []

        async def acquire(shards: Collection[int] | None = None) -> bool:
            taken.append(shards)
            return False

        monkeypatch.setattr(right.ownership, "acquire", acquire)
        async with right.hold(wanted.pop, rested) as session:
            assert session is None
        assert taken == [{7}]


async def test_nothing_is_driven_where_another_process_works(tmp_path: Path) -> None:
    async with driven(tmp_path) as world:
        working = world.new_app()
        await working.start(worker=False)
        assert await working.worker.ownership.acquire()
        try:
            await world.subscribe()
            await world.generate()
            world.upstream.finish("task1")
            assert (await world.call_back()).status_code == 200
            assert (world.upstream.polls, world.subscribers.webhooks) == ([], [])
        finally:
            await working.stop()


@pytest.mark.parametrize("overrides", [{"drive_seconds": 0.0}, {"worker": "embedded"}])
async def test_nothing_is_driven_unless_it_is_asked_for(
    tmp_path: Path, overrides: dict[str, Any]
) -> None:
    world = Harness(settings(tmp_path, **{**OFF, **overrides}), RunningClock())
    await world.app.start(worker=False)
    await world.subscribe()
    await world.generate()
    world.upstream.finish("task1")
    assert (await world.call_back()).status_code == 200
    assert (world.upstream.polls, world.subscribers.webhooks) == ([], [])
    assert world.app.worker.ticks.driving == []
    await world.app.stop()


async def test_who_wants_no_wait_is_answered_before_the_first_attempts(tmp_path: Path) -> None:
    async with driven(tmp_path) as world:
        await world.subscribe()
        body = {"model": "imagen4", "input": {"prompt": "a small harbour"}}
        headers = {"prefer": "respond-async"}
        answer = await world.client.post("/v1/generations", json=body, headers=headers)
        assert answer.status_code == 202
        assert world.subscribers.webhooks == []


async def test_a_callback_that_is_stored_is_answered_200_though_its_drive_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_session: Session, _now: int) -> int:
        raise StorageError("disk I/O error")

    async with driven(tmp_path) as world:
        await world.subscribe(event_types=["generation.succeeded"])
        await world.generate()
        world.upstream.finish("task1")
        with monkeypatch.context() as patched:
            patched.setattr(Session, "look", fail)
            assert (await world.call_back()).status_code == 200
        assert not works(world.app)
        assert world.upstream.polls == []
        assert (await world.call_back()).status_code == 200
        assert world.subscribers.event_types() == ["generation.succeeded"]


@pytest.mark.parametrize("edge", ["at its beginning", "between its turns"])
async def test_a_drive_whose_look_for_commits_fails_lets_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edge: str
) -> None:
    async with driven(tmp_path) as world:
        await world.generate()
        worker, look = world.app.worker, world.app.worker.ownership.other_process_committed
        looks: list[bool] = []

        async def fail(_shards: object = None) -> bool:
            looks.append(worker.ownership.is_held)
            if edge == "between its turns" and len(looks) == 1:
                worker.ticks._requested.set()  # Another request has come: the session goes on.
                return await look()
            raise StorageError("disk I/O error")

        with monkeypatch.context() as patched:
            patched.setattr(worker.ownership, "other_process_committed", fail)
            assert (await world.call_back()).status_code == 200
            await driving(world.app)
        assert looks[0]
        assert len(looks) >= (2 if edge == "between its turns" else 1)
        rest = worker.right.ending
        if rest is not None:
            await rest
        assert not works(world.app)


async def test_a_drive_ends_in_time_though_a_receiver_hangs(tmp_path: Path) -> None:
    async with driven(tmp_path, drive_seconds=0.5) as world:
        gate = Gate()
        await drive_into(world, gate)
        assert gate.waiting == 1
        assert works(world.app), "its attempt counts against the caps"
        gate.is_open.set()
        rest = world.app.worker.right.ending
        assert rest is not None
        await rest
        assert not works(world.app)
        page = await world.get("/v1/deliveries")
        assert [row["status"] for row in page["data"]] == ["delivered"]


async def test_a_submission_of_a_client_keeps_no_other_process_from_working(
    tmp_path: Path,
) -> None:
    async with driven(tmp_path, shutdown_seconds=0) as world:
        await world.generate()
        upstream = HangingUpstream(world)
        creating = asyncio.create_task(world.generate())  # In a busy process there is always one.
        await upstream.asked.wait()
        world.upstream.finish("task1")
        assert (await world.call_back()).status_code == 200
        await driving(world.app)
        assert world.app.worker.submitter.in_flight
        assert not works(world.app)
        upstream.answers.set()
        await creating


async def test_at_a_stop_an_attempt_that_a_drive_started_may_finish(tmp_path: Path) -> None:
    async with driven(tmp_path) as world:
        gate = Gate()
        queue_answers(world, gate)
        await world.subscribe()
        creating = asyncio.create_task(world.generate())
        await gate.wait_for(1)
        stopping = asyncio.create_task(world.app.stop())
        await asyncio.wait([stopping], timeout=0.3)
        assert not stopping.done()
        gate.is_open.set()
        await asyncio.gather(stopping, creating, return_exceptions=True)
        await world.app.start()
        [delivery] = (await world.get("/v1/deliveries"))["data"]
        assert (delivery["status"], delivery["attempt_count"]) == ("delivered", 1)


async def test_a_tick_that_is_cancelled_while_it_begins_keeps_no_right(tmp_path: Path) -> None:
    async with driven(tmp_path, drive_seconds=0.5) as world:
        gate = Gate()
        await drive_into(world, gate)
        right = world.app.worker.right
        rest = right.ending
        assert rest is not None
        ticking = asyncio.create_task(world.app.worker.tick(1))
        while not rest.cancelling():
            assert not rest.done()
            await asyncio.sleep(0)  # noqa: TID251  it waits for no time
        ticking.cancel()
        await asyncio.wait([ticking])
        gate.is_open.set()
        assert right.ending is not None
        await asyncio.wait([right.ending])
        assert not works(world.app)


async def test_a_tick_at_a_stop_waits_for_nobody_who_waits_for_it(tmp_path: Path) -> None:
    async with driven(tmp_path, drive_seconds=0.5, shutdown_seconds=0) as world:
        await drive_into(world, Gate())  # It stays shut: the receiver hangs.
        right = world.app.worker.right
        assert right.ending is not None
        right.stopping.set()
        async with asyncio.timeout(60):
            await world.app.worker.tick(1)
        assert works(world.app), "the attempt goes on until the process ends"


async def test_a_request_shares_the_turn_of_one_that_waits_for_a_receiver(tmp_path: Path) -> None:
    async with driven(tmp_path) as world:
        gate = Gate()
        await world.subscribe(event_types=["generation.succeeded"])
        for task in ("task1", "task2"):
            await world.generate()
            world.upstream.finish(task)
        queue_answers(world, gate)
        first = asyncio.create_task(world.call_back(success_report("task1"), 0))
        await gate.wait_for(1)
        second = asyncio.create_task(world.call_back(success_report("task2"), 1))
        async with asyncio.timeout(OFF["drive_seconds"] / 2):
            while len(world.subscribers.webhooks) < 2:
                await world.get("/v1/events")
        gate.is_open.set()
        answers = await asyncio.gather(first, second)
        assert [answer.status_code for answer in answers] == [200, 200]


async def test_a_request_does_not_wait_while_a_turn_earns_its_question(tmp_path: Path) -> None:
    async with driven(tmp_path, poll_rate_per_second=0.01, drive_seconds=60.0) as world:
        await world.subscribe()
        await world.generate()
        first = asyncio.create_task(world.call_back())
        async with asyncio.timeout(50):  # It takes 100 s to earn one, and a drive waits for 60.
            while not world.upstream.polls or world.app.worker.poller.in_flight:
                await world.get("/v1/events")
            second = asyncio.create_task(world.generate())
            while len(world.subscribers.webhooks) < 2:
                await world.get("/v1/events")
        await world.app.stop()
        assert (await first).status_code == 200
        await second
        await world.app.start()


async def test_who_works_looks_again_after_it_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process is refused at the last moment: nothing would work on its callback.

    On PostgreSQL it may still ask about its task, and is refused the subscriber's lane alone. Who
    lets go has not heard of that yet.
    """
    with pytest.MonkeyPatch.context() as late:
        late.setattr(notices, "NOTICE_SECONDS", 60)
        late.setattr("service.ticks.HEARD_SECONDS", 3)  # By then the other one has let go.
        async with driven(tmp_path) as world, beside(world) as other:
            await world.subscribe(event_types=["generation.succeeded"])
            for task in ("task1", "task2"):
                await world.generate()
                world.upstream.finish(task)
            worker = world.app.worker
            close = worker.right._close

            async def close_late() -> None:
                monkeypatch.undo()
                report = success_report("task2")
                answer = await other.post(world.upstream.callback_url(1), json=report)
                assert answer.status_code == 200
                await close()

            monkeypatch.setattr(worker.right, "_close", close_late)
            assert (await world.call_back(success_report("task1"), 0)).status_code == 200
            await asyncio.gather(driving(world.app), driving(other._transport.app))  # type: ignore[attr-defined]
            assert world.upstream.polls == ["task1", "task2"]
            assert len(world.subscribers.webhooks) == 2
            assert not works(world.app)


async def drive_into(world: Harness, gate: Gate) -> None:
    """Let an attempt of a generation's drive wait at the gate when the time of the drive is over.

    On a busy machine a drive may be too short for an attempt to begin: so others follow.
    """
    queue_answers(world, gate)
    subscriber = await world.subscribe()
    await world.generate()
    ticks = world.app.worker.ticks
    while not gate.waiting:
        ticks._drive_seconds *= 2
        await ticks.drive(shard_of(subscriber["id"]))
    ticks._drive_seconds = world.settings.drive_seconds
    await driving(world.app)
    await world.get("/v1/events")  # By now the wait for the attempt has begun.


async def submit_without_a_drive(world: Harness) -> None:
    body = {"model": "imagen4", "input": {"prompt": "a small harbour"}}
    headers = {"prefer": "respond-async"}
    answer = await world.client.post("/v1/generations", json=body, headers=headers)
    assert answer.status_code == 202
    await world.app.worker.submitter.settle()


async def call_back_until_polled(world: Harness) -> asyncio.Task[httpx.Response]:
    """Begin a callback of the first task; return once upstream is asked about it."""
    asked = asyncio.Event()
    world.upstream.on_poll = lambda _task_id: asked.set()
    calling = asyncio.create_task(world.call_back(success_report("task1"), 0))
    await asked.wait()
    return calling


async def test_a_tick_works_for_the_requests_of_its_process_while_a_receiver_hangs(
    tmp_path: Path,
) -> None:
    async with driven(tmp_path, drive_seconds=60.0) as world:
        gate = Gate()
        await world.generate()
        world.upstream.finish("task1")
        queue_answers(world, gate)
        await world.subscribe()
        await submit_without_a_drive(world)
        tick = asyncio.create_task(world.app.worker.tick(60))
        await gate.wait_for(1)
        calling = await call_back_until_polled(world)
        assert gate.waiting == 1
        assert not tick.done()
        gate.is_open.set()
        assert (await calling).status_code == 200
        await tick


async def test_a_tick_works_on_what_others_commit_while_a_receiver_hangs(tmp_path: Path) -> None:
    async with driven(tmp_path) as world, beside(world) as other:
        gate = Gate()
        await world.generate()
        world.upstream.finish("task1")
        await world.app.worker.tick(60)  # Retention is over: nothing else begins another round.
        queue_answers(world, gate)
        await world.subscribe()
        await submit_without_a_drive(world)
        tick = asyncio.create_task(world.app.worker.tick(60))
        await gate.wait_for(1)
        url = world.upstream.callback_url(0)
        assert (await other.post(url, json=success_report("task1"))).status_code == 200
        await driving(other._transport.app)  # type: ignore[attr-defined]
        gate.is_open.set()
        done = await tick
        assert (done.polled, done.more, world.upstream.polls) == (1, False, ["task1"])


@pytest.mark.sqlite_only("on PostgreSQL a notice may come later than the look")
async def test_who_let_go_late_looks_again_for_those_who_were_refused(tmp_path: Path) -> None:
    async with driven(tmp_path) as world, beside(world) as other:
        gate = Gate()
        await world.generate()
        world.upstream.finish("task1")
        queue_answers(world, gate)
        await world.subscribe()
        await submit_without_a_drive(world)
        await tick_until_asked(world, gate)
        await driving(world.app)
        url = world.upstream.callback_url(0)
        assert (await other.post(url, json=success_report("task1"))).status_code == 200
        await driving(other._transport.app)  # type: ignore[attr-defined]
        assert world.upstream.polls == []
        rest = world.app.worker.right.ending
        assert rest is not None
        gate.is_open.set()
        await rest
        await driving(world.app)
        assert world.upstream.polls == ["task1"]
        assert not works(world.app)


async def until_told(world: Harness) -> None:
    """On PostgreSQL, wait for the notice of what another process has committed."""
    ownership: Any = world.app.worker.ownership
    async with asyncio.timeout(60):
        while not getattr(ownership, "_told", True):
            await world.get("/v1/events")


async def driving(app: App) -> None:
    """Wait for the drive under way, which may look again for others after its request."""
    task = app.worker.ticks._driving
    if task is not None:
        await task


async def test_a_stop_ends_a_drive(tmp_path: Path) -> None:
    async with driven(tmp_path, shutdown_seconds=2.0) as world:
        queue_answers(world, Gate())
        await world.subscribe()
        request = asyncio.create_task(world.generate())
        while not world.subscribers.webhooks:
            await world.get("/v1/events")
        await world.app.stop()
        assert (await request)["status"] == "processing"
        await world.app.start()


async def test_fifty_at_once_in_five_processes_keep_caps_rates_and_order(tmp_path: Path) -> None:
    receiver = Counting()
    asked: list[float] = []
    async with driven(tmp_path, poll_rate_per_second=RATE) as world, AsyncExitStack() as stack:
        await world.subscribe(ordered=True, max_in_flight=2)
        others = [await stack.enter_async_context(beside(world)) for _ in range(PROCESSES - 1)]
        for number in range(GENERATIONS):
            await world.generate()
            world.upstream.finish(f"task{number + 1}")
        world.subscribers.answers[SUBSCRIBER_URL].extend([receiver] * GENERATIONS)
        world.upstream.on_poll = lambda _: asked.append(time.monotonic())
        began_at = time.monotonic()
        clients = [world.anonymous, *others]
        answers = await asyncio.gather(
            *(
                clients[number % PROCESSES].post(
                    world.upstream.callback_url(number), json=success_report(f"task{number + 1}")
                )
                for number in range(GENERATIONS)
            )
        )
        assert {answer.status_code for answer in answers} == {200}
        await driving(world.app)
        async with asyncio.timeout(60):  # A tick works on what no other process has just then.
            while len(world.subscribers.webhooks_to()) < 2 * GENERATIONS:
                await world.app.worker.tick(5)
                await world.app.database.schema_problem()  # The others run on this loop, too.
        assert len(world.upstream.polls) == GENERATIONS, "none was asked about twice"
        assert receiver.most <= 2
        assert asked[-1] - began_at >= 0.9 * (GENERATIONS - 1) / RATE
        events = [webhook.event for webhook in world.subscribers.webhooks_to()]
        for number in range(GENERATIONS):
            types = [e["type"] for e in events if e["data"]["task_id"] == f"task{number + 1}"]
            assert types == ["generation.submitted", "generation.succeeded"]


def test_a_turn_begins_with_one_question_and_ends_once_the_next_one_has_one() -> None:
    shared = Budget(10.0)
    shared.begin_turn(1_000)
    assert shared.available(1_000) == 1
    assert shared.debt_seconds(1_000) == 0
    shared.spend()
    assert shared.available(1_000) == 0
    assert shared.debt_seconds(1_000) == pytest.approx(0.1)
    assert shared.debt_seconds(1_100) == 0


async def test_processes_that_take_turns_at_once_ask_no_more_than_the_rate_allows(
    tmp_path: Path,
) -> None:
    async with driven(tmp_path) as world:
        taken = [await world.app.database.write(poll_rate.take, 5, 50.0) for _ in range(3)]
        assert taken[0] == 1, "there is no more than one at once"
        assert sum(taken) <= 3


@pytest.mark.parametrize("rate", [0.5, 50.0])
async def test_the_rate_of_turns_goes_on_with_the_time(tmp_path: Path, rate: float) -> None:
    async with opened(tmp_path) as world:
        write = world.app.database.write
        assert await write(poll_rate.take, 5, rate) == 1
        world.clock.advance(0.4 / rate)
        assert await write(poll_rate.take, 5, rate) == 0
        world.clock.advance(0.7 / rate)
        assert await write(poll_rate.take, 5, rate) == 1
        world.clock.advance(3_600)
        assert await write(poll_rate.take, 5, rate) == 1, "what was not used is not kept"
        assert await write(poll_rate.take, 5, 10_000.0) == 0
        world.clock.advance(3_600)
        assert await write(poll_rate.take, 5, 10_000.0) == 5
