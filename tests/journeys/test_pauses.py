"""A 429 pauses every request to upstream, submissions too, within a bound."""

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from service.generations.budget import Budget
from service.generations.budget import store_pause as store_short_pause
from service.model.clock import HOUR
from service.store import generations, poll_rate
from tests.faults import rows, status_of
from tests.harness import Harness, opened

POLLED = "imagen4-fast"
PAUSES = "SELECT number FROM revisions WHERE noun = 'upstream_paused_until'"


def throttled(seconds: int) -> httpx.Response:
    return httpx.Response(429, headers={"retry-after": str(seconds)})


async def store_pause(world: Harness, ms: int) -> None:
    until = world.clock.now + ms
    await world.app.database.write(generations.put_pause, until, until)


async def submissions(world: Harness) -> list[str]:
    return [row["submission"] for row in await rows(world, "SELECT submission FROM generations")]


@pytest.mark.parametrize("restarts", [True, False])
async def test_no_submission_leaves_in_the_pause_that_a_poll_was_asked_for(
    tmp_path: Path, *, restarts: bool
) -> None:
    async with opened(tmp_path) as world:
        first = await world.generate()
        world.upstream.poll_replies.append(throttled(40))
        await world.client.post(f"/v1/generations/{first['id']}/refresh")
        if restarts:
            await world.restart()
        for _ in range(5):
            assert (await world.generate())["status"] == "queued"
        await world.run(39)
        assert await submissions(world) == ["taken", *["waiting"] * 5]
        assert len(world.upstream.creates) == 1
        await world.run(1)
        assert len(world.upstream.creates) == 6


async def test_a_refresh_keeps_to_the_pause_that_another_process_was_asked_for(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        path = f"/v1/generations/{(await world.generate())['id']}/refresh"
        await store_pause(world, 40_000)
        await world.client.post(path)
        assert world.upstream.polls == []
        world.clock.advance(40)
        await world.client.post(path)
        assert world.upstream.polls == ["task1"]


async def test_a_429_to_a_submission_pauses_every_request(tmp_path: Path) -> None:
    async with opened(tmp_path, public_url=None) as world:
        polled = await world.generate(POLLED)
        world.upstream.create_replies.append(throttled(40))
        await world.generate()
        for _ in range(3):
            await world.generate()
        await world.run(39)
        assert (len(world.upstream.creates), world.upstream.polls) == (2, [])
        await world.client.post(f"/v1/generations/{polled['id']}/refresh")
        assert world.upstream.polls == []
        await world.run(10)
        assert len(world.upstream.creates) == 6
        assert world.upstream.polls


async def test_in_a_long_pause_one_submission_a_minute_goes_through(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        world.upstream.create_replies.extend([throttled(300)] * 3)
        for _ in range(5):
            await world.generate()
        counts = []
        for _ in range(3):
            for _ in range(6):
                await world.run(10.5)
            counts.append(len(world.upstream.creates))
        assert counts == [1, 2, 3]  # The first probe comes a minute after the pause was seen.


async def test_submissions_and_polls_do_not_use_up_each_others_probe(tmp_path: Path) -> None:
    async with opened(tmp_path, public_url=None, deadline_seconds=3_600) as world:
        first = await world.generate(POLLED)
        world.upstream.on_create = lambda _body: throttled(300)
        world.upstream.finish("task1")
        for _ in range(20):
            await world.generate(POLLED)
        for _ in range(18):
            await world.run(10)
        assert await status_of(world, first["id"]) == "succeeded"
        assert len(world.upstream.creates) > 2


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"retry-after": "40"}, {"message": "busy: the request is being processed"}),
        ({"retry-after": "40"}, {"task_id": "task9", "message": "too many"}),
    ],
)
async def test_a_429_pauses_all_even_if_it_shows_signs_of_a_task(
    tmp_path: Path, headers: dict[str, str], body: dict[str, str]
) -> None:
    async with opened(tmp_path) as world:
        world.upstream.create_replies.append(httpx.Response(429, headers=headers, json=body))
        await world.generate()
        for _ in range(3):
            assert (await world.generate())["status"] == "queued"
        await world.run(39)
        assert len(world.upstream.creates) == 1
        await world.run(1)
        assert len(world.upstream.creates) == 4


async def test_a_pause_is_over_once_the_clock_was_set_back(tmp_path: Path) -> None:
    async with opened(tmp_path, public_url=None) as world:
        polled = await world.generate(POLLED)
        world.clock.advance(6 * 3_600)
        world.upstream.create_replies.append(throttled(40))
        await world.generate()
        world.clock.advance(-6 * 3_600)
        await world.client.post(f"/v1/generations/{polled['id']}/refresh")
        assert world.upstream.polls == ["task1"]
        assert (await world.generate())["status"] == "processing"


async def test_a_pause_that_a_wrong_clock_stored_gives_way_to_a_real_one(tmp_path: Path) -> None:
    async with opened(tmp_path, public_url=None) as world:
        await store_pause(world, 6 * HOUR)
        world.upstream.on_create = lambda _body: throttled(300)
        for _ in range(30):
            await world.generate()
            await world.run(1)
        assert len(world.upstream.creates) == 1


async def test_the_shared_rate_does_not_wait_for_a_clock_that_is_ahead(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        take = partial(world.app.database.write, poll_rate.take, 5, 10.0)
        world.clock.advance(3_600)
        assert await take() == 1
        world.clock.advance(-3_600)
        assert await take() == 1


def test_the_longest_pause_holds_for_who_read_the_clock_a_moment_before() -> None:
    budget = Budget(1.0)
    budget.pause(301_005, 1_005)
    assert budget.is_paused(1_000)
    assert not budget.note(9_000, 1_000)
    assert budget.is_paused(200_000)


async def test_a_long_stored_pause_is_not_cut_by_a_short_one(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        write, context, now = world.app.database.write, world.app.context, world.clock.now
        await write(generations.put_pause, now + 300_005, now + 300_005)  # As by another machine.
        await write(store_short_pause, context, 5_000)
        [row] = await rows(world, PAUSES)
        assert row["number"] == now + 300_005


async def test_a_429_to_a_poll_whose_body_breaks_off_pauses_everything(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"{"
        raise httpx.ReadError("reset")

    async with opened(tmp_path, public_url=None) as world:
        generation = await world.generate(POLLED)
        answer = httpx.Response(429, headers={"retry-after": "40"}, content=broken())
        world.upstream.poll_replies.append(answer)
        await world.client.post(f"/v1/generations/{generation['id']}/refresh")
        assert len(await rows(world, PAUSES)) == 1


async def test_a_stored_pause_beyond_the_bound_holds_no_submission(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await store_pause(world, 10**9)
        await world.generate()
        assert await submissions(world) == ["taken"]


def says_429(seconds: int) -> httpx.Response:
    """An answer with HTTP 200 whose body has the code 429."""
    body = {"code": 429, "message": "too many"}
    return httpx.Response(200, json=body, headers={"retry-after": str(seconds)})


async def test_a_task_whose_body_alone_says_429_pauses_only_itself(tmp_path: Path) -> None:
    async with opened(tmp_path, public_url=None) as world:
        ids = [(await world.generate(POLLED))["id"] for _ in range(2)]
        await world.run()
        for _ in range(5):  # The first alone, as the other one was answered about in between.
            world.clock.advance(2)
            world.upstream.poll_replies.append(says_429(3_600))
            await world.client.post(f"/v1/generations/{ids[0]}/refresh")
            asked = len(world.upstream.polls)
            await world.client.post(f"/v1/generations/{ids[1]}/refresh")
            assert len(world.upstream.polls) == asked + 1
        assert (await world.generate())["status"] == "processing"
        assert await rows(world, PAUSES) == []


async def test_two_tasks_whose_bodies_say_429_pause_everything(tmp_path: Path) -> None:
    async with opened(tmp_path, public_url=None) as world:
        ids = [(await world.generate(POLLED))["id"] for _ in range(3)]
        await world.run()
        world.upstream.poll_replies.extend([says_429(40)] * 2)
        for id_ in ids:
            await world.client.post(f"/v1/generations/{id_}/refresh")
        assert world.upstream.polls == ["task1", "task2"]
        assert (await world.generate())["status"] == "queued"
        await world.run(39)
        assert (len(world.upstream.polls), len(world.upstream.creates)) == (2, 3)
        await world.run(1)
        assert (len(world.upstream.polls), len(world.upstream.creates)) == (5, 4)


async def test_a_submission_whose_body_alone_says_429_pauses_only_itself(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        world.upstream.create_replies.append(says_429(40))
        assert (await world.generate())["status"] == "queued"
        assert (await world.generate())["status"] == "processing"
        await world.run(39)
        assert len(world.upstream.creates) == 2
        await world.run(10)
        assert await submissions(world) == ["taken", "taken"]


async def test_a_poll_of_one_that_says_429_in_its_body_waits_as_it_asks(tmp_path: Path) -> None:
    async with opened(tmp_path, public_url=None) as world:
        await world.generate(POLLED)
        world.upstream.poll_replies.append(says_429(100))
        await world.run(10)
        assert world.upstream.polls == ["task1"]
        await world.run(99)
        assert world.upstream.polls == ["task1"]
        await world.run(2)
        assert world.upstream.polls == ["task1", "task1"]
