"""Ticks beside receivers that hang and rates that hold deliveries up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from service.context import Context
from service.delivery import health, loading
from service.delivery.dispatch import Dispatcher
from service.delivery.lanes import Lane
from service.delivery.receivers import Receivers
from service.generations import submit
from service.model.errors import StorageError
from service.rounds import Rounds
from service.session import Session
from service.store import generations
from tests.faults import DelayedAnswer, rows
from tests.harness import SUBSCRIBER_URL, Harness, opened, success_report
from tests.journeys.gates import Gate, count_calls, deliveries, queue_answers


async def until_nothing_is_due(world: Harness) -> None:
    """Let retention look at every table, which on a busy machine one tick may not do."""
    while (await world.app.worker.tick(60)).more:
        pass


async def test_a_receiver_that_hangs_holds_up_no_question_of_a_tick(tmp_path: Path) -> None:
    async with opened(tmp_path, shutdown_seconds=0) as world:
        gate = Gate()
        queue_answers(world, gate)
        await world.subscribe(SUBSCRIBER_URL)
        await world.generate()
        [row] = await rows(world, "SELECT next_poll_at FROM generations")
        world.clock.now = row["next_poll_at"] - 100
        world.upstream.finish("task1")
        tick = asyncio.create_task(world.app.worker.tick(60))
        await gate.wait_for(1)
        assert world.upstream.polls == []
        asked = asyncio.Event()
        world.upstream.on_poll = lambda _task_id: asked.set()
        world.clock.now += 100
        async with asyncio.timeout(45):
            await asked.wait()
        gate.is_open.set()
        await tick
        assert world.upstream.polls == ["task1"]


async def test_a_tick_says_that_more_is_due_where_a_rate_holds_it_up(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await until_nothing_is_due(world)
        await world.subscribe(SUBSCRIBER_URL, rate_per_second=50)
        for _ in range(2):
            await world.generate()
        first = await world.app.worker.tick(60)
        assert (first.attempted, first.more) == (1, True)
        world.clock.now += 20
        second = await world.app.worker.tick(60)
        assert (second.attempted, second.more) == (1, False)
        assert {each["status"] for each in await deliveries(world)} == {"delivered"}


async def test_a_tick_goes_on_with_what_a_rate_held_up_for_a_moment(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(SUBSCRIBER_URL, rate_per_second=20)
        for _ in range(3):
            await world.generate()

        def pass_time(*_: object) -> int:
            asyncio.get_running_loop().call_later(0.01, world.clock.advance, 0.05)
            return 200

        world.subscribers.on_send = pass_time
        done = await world.app.worker.tick(60)
        assert (done.attempted, done.more) == (3, False)


async def nothing_to_clean(*_: object) -> None: ...


@pytest.fixture
async def waiting_polls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Harness]:
    """A service without a worker, whose rate lets one of three polls leave at once."""
    monkeypatch.setattr(Session, "_clean", nothing_to_clean)  # It is always due for a moment.
    async with opened(tmp_path, worker="off", poll_rate_per_second=10.0) as world:
        for _ in range(3):
            await world.generate()
        world.clock.advance(400)
        yield world


async def test_a_tick_says_that_there_is_more_while_polls_wait_for_the_rate(
    waiting_polls: Harness,
) -> None:
    world = waiting_polls
    seconds = 0.5
    for count in (1, 2, 3):  # The clock stands still, and the rate with it.
        while len(world.upstream.polls) < count:  # On a busy machine a tick may get nowhere.
            assert (await world.app.worker.tick(seconds)).more
            seconds *= 1.5
        assert len(world.upstream.polls) == count
        world.clock.advance(0.1)
    world.clock.advance(0.2)
    assert not (await world.app.worker.tick(60)).more


async def test_a_tick_whose_time_ends_before_it_can_wait_for_the_rate_says_that_there_is_more(
    waiting_polls: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = waiting_polls

    def is_over(rounds: Rounds, _ends_at: float) -> bool:
        """Let the time end in the round that finds nothing due: polls wait for the rate."""
        return bool(world.upstream.polls) and not any(end.is_set() for end in rounds._ends)

    monkeypatch.setattr(Rounds, "is_over", is_over)
    assert (await world.app.worker.tick(60)).more
    assert len(world.upstream.polls) < 3


async def test_a_tick_says_that_there_is_more_while_a_request_is_under_way(tmp_path: Path) -> None:
    async with opened(tmp_path, shutdown_seconds=0) as world:
        await until_nothing_is_due(world)
        await world.generate()
        await world.app.worker.tick(60)
        world.clock.advance(400)
        hanging = DelayedAnswer(httpx.Response(200, json=success_report("task1")))
        world.upstream.poll_replies.append(hanging.reply)
        worker = world.app.worker
        polled, seconds = 0, 0.5
        while not hanging.requested.is_set():  # On a busy machine a tick may get nowhere.
            done = await worker.tick(seconds)
            polled, seconds = polled + done.polled, 2 * seconds
            assert done.more
        assert polled == 1
        hanging.release()
        await worker.right.settle()
        assert not (await worker.tick(60)).more
        [row] = await rows(world, "SELECT status FROM generations")
        assert row["status"] == "succeeded"


async def fail_the_next_read(
    world: Harness, monkeypatch: pytest.MonkeyPatch, error: Exception, seconds: float = 0
) -> None:
    """Let the first read of a lane fail; `seconds` of the clock pass soon afterwards."""
    await until_nothing_is_due(world)
    await world.subscribe(SUBSCRIBER_URL)
    await world.generate()
    load = loading.load

    async def fail_once(*_: object) -> None:
        monkeypatch.setattr(loading, "load", load)
        asyncio.get_running_loop().call_later(0.01, world.clock.advance, seconds)
        raise error

    monkeypatch.setattr(loading, "load", fail_once)


async def test_a_tick_says_that_more_is_due_where_a_lane_could_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        await fail_the_next_read(world, monkeypatch, StorageError("disk I/O error"))
        first = await world.app.worker.tick(60)
        assert (first.attempted, first.more) == (0, True)
        world.clock.advance(1)
        second = await world.app.worker.tick(60)
        assert (second.attempted, second.more) == (1, False)


async def test_a_tick_reads_a_lane_again_that_could_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        await fail_the_next_read(world, monkeypatch, StorageError("disk I/O error"), 1)
        done = await world.app.worker.tick(60)
        assert (done.attempted, done.more) == (1, False)


async def test_a_tick_reads_a_lane_again_though_another_receiver_hung_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        await until_nothing_is_due(world)
        gate = Gate()
        queue_answers(world, gate)
        await world.subscribe(SUBSCRIBER_URL, event_types=["generation.submitted"])
        other = await world.subscribe(f"{SUBSCRIBER_URL}2", event_types=["generation.submitted"])
        await world.generate()
        load, failed = loading.load, asyncio.Event()

        async def fail_once(context: Context, receivers: Receivers, lane: Lane) -> None:
            if lane.subscriber_id == other["id"] and not failed.is_set():
                failed.set()
                raise StorageError("disk I/O error")
            await load(context, receivers, lane)

        monkeypatch.setattr(loading, "load", fail_once)
        tick = asyncio.create_task(world.app.worker.tick(60))
        await failed.wait()
        await gate.wait_for(1)
        world.clock.advance(2)
        gate.is_open.set()
        done = await tick
        assert (done.attempted, done.more) == (2, False)


async def test_a_lane_that_cannot_be_worked_makes_nobody_call_for_tick_after_tick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        await fail_the_next_read(world, monkeypatch, ValueError("a secret is unreadable"))
        done = await world.app.worker.tick(60)
        assert (done.attempted, done.more) == (0, False)


async def test_a_tick_whose_attempts_fail_as_a_step_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_dispatcher: Dispatcher, _now: int) -> None:
        raise ValueError("no attempt can start")

    async with opened(tmp_path) as world:
        await until_nothing_is_due(world)
        await world.subscribe(SUBSCRIBER_URL)
        await world.generate()
        rounds = count_calls(monkeypatch, "follow_changes")
        monkeypatch.setattr(Dispatcher, "run_due", fail)
        done = await world.app.worker.tick(2)
        assert (done.attempted, done.more, len(rounds)) == (0, True, 1)


@pytest.mark.parametrize("seconds", [0, 1])
async def test_a_tick_stores_what_could_not_be_stored_or_says_that_there_is_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    async with opened(tmp_path) as world:
        await until_nothing_is_due(world)
        await world.subscribe(SUBSCRIBER_URL)
        await world.generate()
        record = health.record

        async def fail_once(*_: object, **_more: object) -> None:
            monkeypatch.setattr(health, "record", record)
            asyncio.get_running_loop().call_later(0.01, world.clock.advance, seconds)
            raise StorageError("disk I/O error")

        monkeypatch.setattr(health, "record", fail_once)
        done = await world.app.worker.tick(60)
        assert (done.attempted, done.more) == (1, not seconds)
        world.clock.advance(1)
        await until_nothing_is_due(world)
        assert [each["status"] for each in await deliveries(world)] == ["delivered"]
        assert len(world.subscribers.webhooks) == 1


@asynccontextmanager
async def without_a_place(world: Harness) -> AsyncIterator[None]:
    """Let a tenant have every place that it gets, but no submission under way."""
    submitter = world.app.worker.submitter
    submitter.places.size = 4
    await until_nothing_is_due(world)
    while submitter.places.take("default"):
        pass
    yield
    for _ in range(submitter.places.taken):
        submitter._give_back("default")


async def test_a_tick_says_that_more_is_due_where_a_submission_finds_no_place(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        async with without_a_place(world):
            await world.generate()
            first = await world.app.worker.tick(60)
            assert (first.submitted, first.more) == (0, True)
        second = await world.app.worker.tick(60)
        assert (second.submitted, second.more) == (1, False)


async def test_a_tick_says_that_nothing_is_due_though_a_tenant_has_all_its_places(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world, without_a_place(world):
        async with asyncio.timeout(60):
            await until_nothing_is_due(world)
        assert world.app.worker.submitter.places.full() == ["default"]


async def test_a_pause_of_upstream_makes_nobody_call_for_tick_after_tick(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world, without_a_place(world):
        await world.generate()
        now = world.clock()
        await world.app.database.write(generations.put_pause, now + 60_000, now + 60_000)
        async with asyncio.timeout(60):
            await until_nothing_is_due(world)


async def test_a_tick_counts_what_it_did_though_its_last_look_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise StorageError("disk I/O error")

    async with opened(tmp_path) as world:
        await until_nothing_is_due(world)
        await world.subscribe(SUBSCRIBER_URL)
        await world.generate()
        monkeypatch.setattr(submit, "_next_due", fail)
        done = await world.app.worker.tick(60)
        assert (done.attempted, done.more) == (1, True)
