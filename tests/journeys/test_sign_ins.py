"""Sign-ins to the pages, on both databases."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.store import sign_ins
from tests.contract.scenes import client_with
from tests.dashboard.browser import Browser
from tests.harness import Harness, opened


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Harness]:
    async with opened(tmp_path) as harness:
        yield harness


async def test_a_sign_in_holds_across_a_restart_and_ends_by_signing_out(world: Harness) -> None:
    one, other = Browser(world), Browser(world)
    await one.sign_in()
    await other.sign_in()
    await world.restart()
    assert (await one.get()).status_code == 200
    await one.post("/sign-out")
    assert (await one.get()).status_code == 303
    assert (await other.get()).status_code == 200


async def test_only_the_newest_sign_ins_of_a_key_hold_and_none_is_left_after_its_time(
    world: Harness,
) -> None:
    async with await client_with(world, "read") as client:
        key = client.headers["authorization"].removeprefix("Bearer ")
    browsers = [Browser(world) for _ in range(sign_ins.PER_KEY_MAX + 2)]
    for each in browsers:
        world.clock.advance(1)
        await each.sign_in(key)
    answers = [(await each.get()).status_code for each in browsers]
    assert answers == [303] * 2 + [200] * sign_ins.PER_KEY_MAX
    world.clock.advance(sign_ins.LIFE_MS / 1_000)
    assert {(await each.get()).status_code for each in browsers} == {303}
    await Browser(world).sign_in(key)
    rows = await world.app.database.read(lambda tx: tx.select("SELECT * FROM sign_ins", {}))
    assert len(rows) == 1


async def test_of_sign_ins_in_the_same_millisecond_the_last_and_as_many_as_may_hold(
    world: Harness,
) -> None:
    browsers = [Browser(world) for _ in range(sign_ins.PER_KEY_MAX + 5)]
    for each in browsers:
        await each.sign_in()
        assert (await each.get()).status_code == 200
    answers = [(await each.get()).status_code for each in browsers]
    assert answers.count(200) == sign_ins.PER_KEY_MAX
