"""A 429 pauses every request to upstream, submissions too, within a bound."""

from pathlib import Path

import httpx
import pytest

from service.store import generations
from tests.faults import rows
from tests.harness import Harness, opened

POLLED = "imagen4-fast"


def throttled(seconds: int) -> httpx.Response:
    return httpx.Response(429, headers={"retry-after": str(seconds)})


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


async def test_a_stored_pause_beyond_the_bound_holds_no_submission(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.app.database.write(generations.put_pause, world.clock.now + 10**9)
        await world.generate()
        assert await submissions(world) == ["taken"]
