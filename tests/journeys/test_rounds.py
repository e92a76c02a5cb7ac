"""The rounds of a tick: what becomes due while requests are under way, and what is left at its end.

Their requests are attempts, submissions and polls.
"""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.delivery.target import Answer
from service.model.errors import StorageError
from service.session import Session
from tests.faults import DelayedAnswer, rows
from tests.harness import SUBSCRIBER_URL, Harness, create_answer, opened
from tests.journeys.gates import Gate, count_calls, deliveries, queue_answers
from tests.journeys.test_sessions import another_process
from tests.journeys.test_ticks import nothing_to_clean, until_nothing_is_due

OTHER_URL = f"{SUBSCRIBER_URL}2"
ONE: dict[str, Any] = {"event_types": ["generation.submitted"]}


async def hang(world: Harness, **fields: Any) -> Gate:
    """Have one receiver hang at a gate; another one, with these fields, answers."""
    await until_nothing_is_due(world)
    gate = Gate()
    queue_answers(world, gate)
    await world.subscribe(SUBSCRIBER_URL, **ONE)
    await world.subscribe(OTHER_URL, **ONE, **fields)
    return gate


async def until_sent(world: Harness, count: int) -> None:
    """Wait until the receiver that answers has got so many webhooks."""
    async with asyncio.timeout(60):
        while len(world.subscribers.webhooks_to(OTHER_URL)) < count:
            await world.get("/v1/events")


async def test_a_receiver_that_hangs_holds_up_no_rate_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, shutdown_seconds=0) as world:
        gate = await hang(world, rate_per_second=20)
        looks = count_calls(monkeypatch, "look")
        queue_answers(world, gate, gate)
        for _ in range(3):
            await world.generate()
        tick = asyncio.create_task(world.app.worker.tick(60))
        await gate.wait_for(1)
        for count in (1, 2, 3):
            await until_sent(world, count)
            world.clock.advance(0.05)
        gate.is_open.set()
        assert (await tick).attempted == 6
        assert len(looks) == 1, "each round has read the lanes anew"


async def test_a_long_tick_sends_nothing_to_an_earlier_url(tmp_path: Path) -> None:
    async with opened(tmp_path, shutdown_seconds=0) as world:
        gate = await hang(world, rate_per_second=20)
        queue_answers(world, gate)
        for _ in range(2):
            await world.generate()
        tick = asyncio.create_task(world.app.worker.tick(60))
        await gate.wait_for(1)
        await until_sent(world, 1)
        listed = (await world.get("/v1/subscribers"))["data"]
        [id_] = [each["id"] for each in listed if each["url"] == OTHER_URL]
        url = f"{SUBSCRIBER_URL}3"
        async with another_process(world):
            changed = await world.client.patch(f"/v1/subscribers/{id_}", json={"url": url})
            assert changed.is_success
        world.clock.advance(0.05)
        gate.is_open.set()
        await tick
        assert len(world.subscribers.webhooks_to(OTHER_URL)) == 1
        assert len(world.subscribers.webhooks_to(url)) == 1


async def test_a_receiver_that_hangs_holds_up_no_retry_of_another(tmp_path: Path) -> None:
    async with opened(tmp_path, shutdown_seconds=0) as world:
        gate = await hang(world)
        queue_answers(world, 500, url=OTHER_URL)
        await world.generate()
        tick = asyncio.create_task(world.app.worker.tick(60))
        await gate.wait_for(1)
        async with asyncio.timeout(60):  # Its failure is stored, and the retry planned.
            while not [each for each in await deliveries(world) if each["attempt_count"]]:
                pass
        world.clock.advance(60)
        await until_sent(world, 2)
        gate.is_open.set()
        assert (await tick).attempted == 3


async def test_a_submission_that_hangs_keeps_no_places_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, submit_wait_seconds=60.0) as world:
        await until_nothing_is_due(world)
        worker, looked = world.app.worker, asyncio.Event()
        run_due = worker.submitter.run_due

        async def run_and_tell(now: int) -> tuple[int, int | None]:
            count, next_at = await run_due(now)
            if next_at is None:  # All that are due are of a tenant that gets no further place.
                looked.set()
            return count, next_at

        worker.submitter.places.size = 4  # One tenant gets two of them.
        world.upstream.create_replies.extend([httpx.Response(503, json={})] * 6)
        for _ in range(6):
            await world.generate()
        world.clock.advance(60)
        hanging = [DelayedAnswer(httpx.Response(200, json=create_answer(f"t{i}"))) for i in (1, 2)]
        world.upstream.create_replies.extend(each.reply for each in hanging)
        monkeypatch.setattr(worker.submitter, "run_due", run_and_tell)
        tick = asyncio.create_task(worker.tick(60))
        async with asyncio.timeout(45):
            await looked.wait()
            hanging[0].release()
            while len(world.upstream.creates) < 12:
                await world.get("/v1/events")
        hanging[1].release()
        done = await tick
        assert (done.submitted, done.more) == (6, False)


async def test_a_tick_that_is_canceled_leaves_no_task(tmp_path: Path) -> None:
    async with opened(tmp_path, shutdown_seconds=0) as world:
        gate = await hang(world)
        await world.generate()
        tick = asyncio.create_task(world.app.worker.tick(60))
        await gate.wait_for(1)
        tick.cancel()
        await asyncio.wait([tick])
        names = {task.get_name() for task in asyncio.all_tasks()}
        assert "rest of a tick" in names
        gate.is_open.set()
        ending = world.app.worker.right.ending
        assert ending is not None
        await ending
        waits = [task for task in asyncio.all_tasks() if "Event.wait" in repr(task.get_coro())]
        assert not waits
        assert "settling of a tick" not in {task.get_name() for task in asyncio.all_tasks()}


@pytest.mark.parametrize("seconds", [60, 600])
async def test_a_tick_says_that_there_is_more_only_for_a_rest_that_ends_soon(
    tmp_path: Path, seconds: int
) -> None:
    async with opened(tmp_path) as world:
        await until_nothing_is_due(world)
        wait = Answer(429, (("retry-after", str(seconds)),), b"")
        queue_answers(world, wait)
        await world.subscribe(SUBSCRIBER_URL, max_in_flight=1, **ONE)
        for _ in range(2):
            await world.generate()
        assert (await world.app.worker.tick(1)).more == (seconds == 60)
        assert len(world.subscribers.webhooks) == 1
        world.clock.advance(2 * seconds)
        await until_nothing_is_due(world)
        assert {each["status"] for each in await deliveries(world)} == {"delivered"}


async def test_a_tick_says_that_there_is_more_where_an_answer_could_not_be_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise StorageError("disk I/O error")

    monkeypatch.setattr(Session, "_clean", nothing_to_clean)
    async with opened(tmp_path) as world:
        await until_nothing_is_due(world)
        await world.generate()
        await until_nothing_is_due(world)
        world.clock.advance(400)
        world.upstream.finish("task1")
        with monkeypatch.context() as patched:
            patched.setattr(world.app.worker.poller, "record_answers", fail)
            first = await world.app.worker.tick(60)
        assert (first.polled, first.more) == (1, True)
        world.clock.advance(1)
        second = await world.app.worker.tick(60)
        assert (second.polled, second.more) == (1, False)
        [row] = await rows(world, "SELECT status FROM generations")
        assert row["status"] == "succeeded"
