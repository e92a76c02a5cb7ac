"""Ticks wait for the submissions of clients that were under way before them."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from service import ticks
from service.generations import send, submit
from service.generations.poll import Poller
from service.model.errors import StorageError
from service.right import Right
from service.store import writes
from tests.faults import DelayedAnswer, rows, status_of, storage_failure
from tests.harness import SUBSCRIBER_URL, Harness, create_answer, opened
from tests.journeys.test_ticks import until_nothing_is_due

ONE: dict[str, Any] = {"event_types": ["generation.submitted"]}


def fail_until_healed(monkeypatch: pytest.MonkeyPatch, module: Any, *units: str) -> asyncio.Event:
    """Let the database fail in these units until the event is set."""
    healed = asyncio.Event()

    def failing(unit: Any) -> Any:
        async def run(*args: Any) -> Any:
            if not healed.is_set():
                raise storage_failure()
            return await unit(*args)

        return run

    monkeypatch.setattr(writes, "RETRY_SECONDS", 0.01)
    for name in units:
        monkeypatch.setattr(module, name, failing(getattr(module, name)))
    return healed


async def until_it_waits(world: Harness) -> None:
    """Let a tick do what is due, until it waits for submissions."""
    async with asyncio.timeout(45):
        while all(task.get_name() != "submissions of a tick" for task in asyncio.all_tasks()):
            await world.get("/v1/events")


async def test_a_tick_waits_for_an_answer_to_a_client_that_could_not_be_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, submit_wait_seconds=0.01) as world:
        await until_nothing_is_due(world)
        await world.subscribe(SUBSCRIBER_URL, **ONE)
        healed = fail_until_healed(monkeypatch, send, "_record")
        await world.generate()
        assert (await world.app.worker.tick(0.1)).more
        tick = asyncio.create_task(world.app.worker.tick(60))
        await until_it_waits(world)
        healed.set()
        done = await tick
        assert (done.attempted, done.more) == (1, False)
        [row] = await rows(world, "SELECT submission FROM generations")
        assert row["submission"] == "taken"


async def test_a_tick_waits_for_what_undoes_a_generation_that_could_not_be_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        await until_nothing_is_due(world)
        healed = fail_until_healed(monkeypatch, submit, "store_new", "_put_back")
        body = {"model": "imagen4", "input": {"prompt": "a small harbour"}}
        assert (await world.client.post("/v1/generations", json=body)).status_code == 503
        assert (await world.app.worker.tick(0.1)).more
        tick = asyncio.create_task(world.app.worker.tick(60))
        await until_it_waits(world)
        healed.set()
        assert not (await tick).more
        assert world.app.worker.submitter.places.taken == 0


async def test_a_tick_waits_for_the_submissions_under_way_and_not_for_those_that_come_meanwhile(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, submit_wait_seconds=0.01) as world:
        await until_nothing_is_due(world)
        delayed = [DelayedAnswer(httpx.Response(200, json=create_answer(f"t{i}"))) for i in (1, 2)]
        world.upstream.create_replies.extend(each.reply for each in delayed)
        first = await world.generate()
        tick = asyncio.create_task(world.app.worker.tick(60))
        await until_it_waits(world)
        await world.generate()
        await delayed[1].requested.wait()
        delayed[0].release()
        assert not (await tick).more
        assert await status_of(world, first["id"]) == "processing"
        assert (await world.app.worker.tick(0.1)).more
        delayed[1].release()
        assert not (await world.app.worker.tick(60)).more


async def test_a_tick_says_that_there_is_more_where_an_answer_that_came_meanwhile_is_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, submit_wait_seconds=0.01) as world:
        await until_nothing_is_due(world)
        delayed = DelayedAnswer(httpx.Response(200, json=create_answer("task0")))
        world.upstream.create_replies.append(delayed.reply)
        await world.generate()
        tick = asyncio.create_task(world.app.worker.tick(60))
        await until_it_waits(world)
        with monkeypatch.context() as patched:
            healed = fail_until_healed(patched, send, "_record")
            await world.generate()
            async with asyncio.timeout(45):
                while not world.app.database.is_retrying:
                    await world.get("/v1/events")
        delayed.release()
        assert (await tick).more
        healed.set()
        await until_nothing_is_due(world)
        stored = await rows(world, "SELECT submission FROM generations")
        assert [row["submission"] for row in stored] == ["taken", "taken"]


async def test_a_stop_ends_the_wait_of_a_tick(tmp_path: Path) -> None:
    async with opened(tmp_path, submit_wait_seconds=0.01, shutdown_seconds=0) as world:
        await until_nothing_is_due(world)
        delayed = DelayedAnswer(httpx.Response(200, json=create_answer("task1")))
        world.upstream.create_replies.append(delayed.reply)
        await world.generate()
        tick = asyncio.create_task(world.app.worker.tick(600))
        await until_it_waits(world)
        world.app.begin_stop()
        async with asyncio.timeout(45):
            assert (await tick).more
        delayed.release()


async def submit_slowly(world: Harness, task_id: str = "task1") -> DelayedAnswer:
    """Begin a submission whose answer is delayed; its client does not wait."""
    delayed = DelayedAnswer(httpx.Response(200, json=create_answer(task_id)))
    world.upstream.create_replies.append(delayed.reply)
    await world.generate()
    await delayed.requested.wait()
    return delayed


async def until_stored(world: Harness, delayed: DelayedAnswer) -> None:
    delayed.release()
    await world.app.worker.submitter.settle()


async def test_who_ticks_until_nothing_is_left_comes_to_an_end_though_upstream_is_slow(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, submit_wait_seconds=0.01) as world:
        await until_nothing_is_due(world)
        delayed, seconds, ticks = await submit_slowly(world, "t0"), 0.2, 0
        while (await world.app.worker.tick(seconds)).more:
            ticks, seconds = ticks + 1, seconds * 1.5  # On a busy machine a tick gets nowhere.
            assert ticks < 8, "it goes on for ever"
            await until_stored(world, delayed)
            delayed = await submit_slowly(world, f"t{ticks}")
        assert ticks, "it said nothing of the submission that was under way"
        assert (await world.app.worker.tick(0.2)).more
        await until_stored(world, delayed)


async def test_a_tick_long_after_one_that_was_not_repeated_waits_for_its_own_submissions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, submit_wait_seconds=0.01) as world:
        await until_nothing_is_due(world)
        first = await submit_slowly(world)
        assert (await world.app.worker.tick(0.05)).more  # Nobody repeats it.
        first.release()
        second = await submit_slowly(world)
        monkeypatch.setattr(ticks, "REPEAT_SECONDS", -1)
        assert (await world.app.worker.tick(0.05)).more
        second.release()


async def test_what_came_with_later_submissions_keeps_nobody_ticking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first submissions end so late that there is no time for a whole round after them."""
    async with opened(tmp_path, submit_wait_seconds=0.01) as world:
        await until_nothing_is_due(world)
        worker, loop = world.app.worker, asyncio.get_running_loop()
        works = 0

        async def work(ends_at: float) -> ticks.WorkCounts:
            nonlocal works
            works += 1
            if works % 2:
                return ticks.WorkCounts()
            while loop.time() < ends_at:
                await world.get("/v1/events")
            return ticks.WorkCounts(attempted=1, more=True)

        async def settle(_ids: object, _ends_at: float) -> bool:
            return True

        monkeypatch.setattr(worker.ticks, "_work", work)
        monkeypatch.setattr(worker.ticks, "_settle", settle)
        delayed = await submit_slowly(world)
        assert (await worker.tick(0.05)).more  # That one was under way before.
        delayed.release()
        later = await submit_slowly(world)
        done = await worker.tick(0.05)
        assert (done.attempted, done.more) == (1, False)
        later.release()


async def test_while_a_tick_waits_others_work(tmp_path: Path) -> None:
    async with opened(tmp_path, submit_wait_seconds=0.01) as world:
        await until_nothing_is_due(world)
        await world.subscribe(SUBSCRIBER_URL, **ONE)
        delayed = await submit_slowly(world)
        tick = asyncio.create_task(world.app.worker.tick(60))
        await until_it_waits(world)
        await world.generate()
        seconds = 0.2
        while not world.subscribers.webhooks:
            await world.app.worker.tick(seconds)
            seconds *= 1.5
            assert seconds < 5, "no other tick works"
        assert not tick.done()
        delayed.release()
        assert not (await tick).more


async def test_a_worker_that_cannot_begin_is_not_ready_though_a_tick_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise StorageError("disk I/O error")

    monkeypatch.setattr("service.worker.BEGIN_SECONDS", 0)
    monkeypatch.setattr(Poller, "take_over", fail)
    async with opened(tmp_path, submit_wait_seconds=0.01) as world:
        await until_nothing_is_due(world)
        delayed = await submit_slowly(world)
        worker = world.app.worker
        worker.start()
        tick = asyncio.create_task(worker.tick(60))
        await until_it_waits(world)
        assert "has not begun to work" in (worker.problem or "")
        delayed.release()
        await tick


async def test_a_tick_beside_the_loops_waits_for_no_submission(tmp_path: Path) -> None:
    async with opened(tmp_path, submit_wait_seconds=0.01) as world:
        await until_nothing_is_due(world)
        delayed = await submit_slowly(world)
        right = world.app.worker.right
        assert await right.begin_loops(lambda: None)
        async with asyncio.timeout(30):
            assert not (await world.app.worker.tick(60)).more
        delayed.release()
        await right.end_loops()


async def test_a_tick_does_what_a_submission_made_due_that_ended_just_before_the_tick_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, submit_wait_seconds=0.01) as world:
        await until_nothing_is_due(world)
        await world.subscribe(SUBSCRIBER_URL, **ONE)
        delayed = await submit_slowly(world)
        others_committed = Right.others_committed

        async def end_it(right: Right, shards: Any) -> bool:
            if not right.ownership.is_held:  # The last look of a tick.
                await until_stored(world, delayed)
            return await others_committed(right, shards)

        monkeypatch.setattr(Right, "others_committed", end_it)
        done = await world.app.worker.tick(60)
        assert (done.attempted, done.more) == (1, False)


async def test_a_tick_counts_what_it_did_before_it_waited_though_the_database_fails_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise StorageError("disk I/O error")

    async with opened(tmp_path, submit_wait_seconds=0.01) as world:
        await until_nothing_is_due(world)
        await world.subscribe(SUBSCRIBER_URL, **ONE)
        await world.generate()
        await world.app.worker.submitter.settle()
        delayed = await submit_slowly(world)
        tick = asyncio.create_task(world.app.worker.tick(60))
        await until_it_waits(world)
        monkeypatch.setattr(Right, "_begin", fail)
        delayed.release()
        done = await tick
        assert (done.attempted, done.more) == (1, True)
