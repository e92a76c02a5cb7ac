"""Ticks beside receivers that hang and rates that hold deliveries up."""

import asyncio
from pathlib import Path

import httpx
import pytest

from service.delivery import loading
from service.generations import submit
from service.model.errors import StorageError
from tests.faults import DelayedAnswer, rows
from tests.harness import SUBSCRIBER_URL, Harness, create_answer, opened, success_report
from tests.journeys.gates import Gate, deliveries, queue_answers


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


async def test_a_lane_that_cannot_be_worked_makes_nobody_call_for_tick_after_tick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        await fail_the_next_read(world, monkeypatch, ValueError("a secret is unreadable"))
        done = await world.app.worker.tick(60)
        assert (done.attempted, done.more) == (0, False)


async def test_a_tick_goes_on_with_what_found_no_place_once_one_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "PLACES", 4)  # One tenant has half of them.
    async with opened(tmp_path) as world:
        await until_nothing_is_due(world)
        world.upstream.create_replies.extend([httpx.Response(503)] * 3)
        for _ in range(3):
            await world.generate()
        world.clock.advance(2)
        hanging = DelayedAnswer(httpx.Response(200, json=create_answer("task0")))
        world.upstream.create_replies.extend([hanging.reply] * 2)
        tick = asyncio.create_task(world.app.worker.tick(60))
        submitter = world.app.worker.submitter
        while not submitter.has_left_out:
            await world.get("/v1/events")
        hanging.release()
        done = await tick
        assert (done.submitted, done.more) == (3, False)
