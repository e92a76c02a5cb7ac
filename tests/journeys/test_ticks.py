"""Ticks beside receivers that hang and rates that hold deliveries up."""

import asyncio
from pathlib import Path

import httpx

from tests.faults import DelayedAnswer, rows
from tests.harness import SUBSCRIBER_URL, Harness, opened, success_report
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
