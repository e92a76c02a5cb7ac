"""Callbacks about submissions that a process sent and did not live to see answered."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.context import Context
from service.generations import submit
from service.generations.send import request_of
from service.model.generation import Generation
from tests.faults import DelayedAnswer, crash, status_of
from tests.harness import Harness, create_answer, opened
from tests.journeys.gates import by_hand
from tests.journeys.test_standby import stop_worker, wait_until_working


@asynccontextmanager
async def submitting(world: Harness) -> AsyncIterator[dict[str, Any]]:
    """Have a submission under way during the block; a crash in it is its end."""
    world.clock.advance(1)  # The process began before.
    delayed = DelayedAnswer(httpx.Response(200, json=create_answer("task1")))
    world.upstream.create_replies.append(delayed.reply)
    generation = await world.generate()
    await delayed.requested.wait()
    yield generation
    delayed.release()


async def test_after_a_crash_the_task_that_a_callback_names_is_asked_about_at_once(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, submit_wait_seconds=0.01) as world:
        async with submitting(world) as generation:
            await crash(world)
        world.upstream.finish("task1")
        await world.call_back()
        await world.run()
        assert world.upstream.polls == ["task1"]
        assert await status_of(world, generation["id"]) == "succeeded"


async def test_a_callback_that_waited_for_a_submission_is_asked_about_by_the_next_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.worker.STANDBY_SECONDS", 0)
    async with opened(tmp_path, submit_wait_seconds=0.01) as world:
        async with submitting(world) as generation:
            world.upstream.finish("task1")
            await world.call_back()
            await world.app.worker.tick(1)
            assert world.upstream.polls == []  # The answer may name the task at any moment.
            await crash(world)
        world.app.worker.start()
        await wait_until_working(world)
        shown = await world.get(f"/v1/generations/{generation['id']}", wait=30)
        assert (shown["status"], world.upstream.polls) == ("succeeded", ["task1"])
        await stop_worker(world)


async def test_a_worker_that_takes_over_waits_for_no_submission_of_the_process_that_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.worker.STANDBY_SECONDS", 0)
    async with opened(tmp_path, submit_wait_seconds=0.01) as world:
        standby = world.new_app()  # It began before the submission.
        await standby.start(worker=False)
        async with submitting(world) as generation:
            dead = await crash(world)
        assert dead is not world.app
        await world.app.stop()
        world.app = standby
        world.app.worker.start()
        await wait_until_working(world)
        world.upstream.finish("task1")
        await world.call_back()
        shown = await world.get(f"/v1/generations/{generation['id']}", wait=30)
        assert shown["status"] == "succeeded"
        await stop_worker(world)


async def test_the_submission_of_another_process_is_waited_for_until_it_cannot_be_under_way(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, submit_wait_seconds=0.01) as world:
        other = world.new_app()
        await other.start(worker=False)
        try:
            async with submitting(world) as generation:
                world.upstream.finish("task1")
                await world.call_back()
                await other.worker.tick(60)
                world.clock.advance(world.settings.upstream_timeout_seconds)
                await other.worker.tick(60)
                assert world.upstream.polls == []
                world.clock.advance(10)
                await other.worker.tick(60)
                assert world.upstream.polls == ["task1"]
                assert await status_of(world, generation["id"]) == "succeeded"
        finally:
            await other.stop()


async def test_after_a_crash_and_a_clock_that_was_set_back_no_callback_waits(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, submit_wait_seconds=0.01) as world:
        world.clock.advance(3_600)
        async with submitting(world) as generation:
            world.clock.advance(-1_800)
            await crash(world)
        world.upstream.finish("task1")
        await world.call_back()
        await world.run()
        assert await status_of(world, generation["id"]) == "succeeded"


async def test_a_poll_that_is_due_waits_for_a_submission_that_is_still_under_way(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, submit_wait_seconds=0.01, deadline_seconds=60) as world:
        async with submitting(world) as generation:
            world.clock.advance(60)
            await world.app.worker.tick(1)
            assert await status_of(world, generation["id"]) == "timed_out"
            world.clock.advance(600)  # The first poll after the deadline.
            poller = world.app.worker.poller
            assert (await by_hand(world, poller.run_due(world.clock())))[0] == 1
            await poller.settle()
            assert (await by_hand(world, poller.run_due(world.clock())))[0] == 0
            world.upstream.finish("task1")
            await world.call_back()
            await world.app.worker.tick(1)
            assert world.upstream.polls == []
        await asyncio.gather(*world.app.worker.submitter.in_flight.values())
        await world.run(1)
        assert await status_of(world, generation["id"]) == "succeeded"


async def test_a_process_that_was_frozen_beyond_the_deadline_submits_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row says `sending` by then, and another process has ended the generation."""
    async with opened(tmp_path, deadline_seconds=900) as world:

        def freeze(context: Context, generation: Generation) -> Any:
            world.clock.advance(1_000)
            return request_of(context, generation)

        monkeypatch.setattr(submit, "request_of", freeze)
        generation = await world.generate()
        await world.app.worker.submitter.settle()
        await world.run(10)
        assert world.upstream.creates == []
        assert await status_of(world, generation["id"]) == "timed_out"
        assert world.app.worker.submitter.places.taken == 0
