"""Submissions that found no place, in processes that only drive: who submits them, and when."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.generations import submit
from service.store.database import Transaction
from service.store.shards import ALL, shard_of
from tests.faults import DelayedAnswer, rows
from tests.harness import Harness, create_answer
from tests.journeys.gates import by_hand
from tests.journeys.test_drives import driven, driving
from tests.journeys.test_ticks import until_nothing_is_due


@asynccontextmanager
async def every_place_taken(world: Harness) -> AsyncIterator[None]:
    """Let submissions hang at upstream that take each place that one tenant gets: two of four."""
    hanging = DelayedAnswer(httpx.Response(200, json=create_answer("task0")))
    world.app.worker.submitter.places.size = 4
    await until_nothing_is_due(world)
    world.upstream.create_replies.extend([hanging.reply] * 2)
    creating = [asyncio.create_task(world.generate()) for _ in range(2)]
    while world.app.worker.submitter.places.taken < 2:
        await world.get("/v1/events")
    yield
    hanging.release()
    await asyncio.gather(*creating)


@asynccontextmanager
async def without_places(path: Path, waiting: int) -> AsyncIterator[Harness]:
    """Run a service in which every place of a tenant hangs, while some found none."""
    async with driven(path, submit_wait_seconds=60.0) as world:
        async with every_place_taken(world):
            for _ in range(waiting):
                await world.generate()
            await driving(world.app)
            yield world
        await driving(world.app)


async def submissions(world: Harness) -> set[str]:
    return {row["submission"] for row in await rows(world, "SELECT submission FROM generations")}


async def test_what_found_no_place_is_submitted_by_the_drives_of_those_who_had_one(
    tmp_path: Path,
) -> None:
    async with without_places(tmp_path, 7) as world:
        assert len(world.upstream.creates) == 2
    async with driven(tmp_path) as world:
        assert await submissions(world) == {"taken"}


async def test_shards_are_remembered_until_nothing_in_them_waits_for_a_place(
    tmp_path: Path,
) -> None:
    async with without_places(tmp_path, 3) as world:
        submitter, worker = world.app.worker.submitter, world.app.worker
        before = submitter.unplaced.ids()
        worker.context.missed_shards.update(ALL)
        await worker.drive("gen_1")  # It finds them, and no place.
        await driving(world.app)
        assert submitter.unplaced.ids() == before != []
        other = world.new_app()
        await other.start(worker=False)
        assert (await other.worker.tick(60)).submitted == 3
        await other.stop()
        worker.context.missed_shards.update(ALL)
        await worker.drive("gen_1")
        await driving(world.app)
        assert not submitter.unplaced, "no later drive takes them"


async def test_who_finds_no_place_while_the_rows_are_read_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with driven(tmp_path) as world:
        submitter, read = world.app.worker.submitter, submit._next_due
        ids = (f"gen_{number}" for number in count(3))
        another = next(id_ for id_ in ids if shard_of(id_) == shard_of("gen_2"))
        for id_ in ("gen_1", "gen_2"):
            submitter.unplaced.note("default", id_)

        async def read_slowly(
            tx: Transaction, full: Sequence[str], without: Sequence[str]
        ) -> tuple[int | None, int | None, int]:
            found = await read(tx, full, without)
            submitter.unplaced.note("default", another)
            return found

        monkeypatch.setattr(submit, "_next_due", read_slowly)
        await by_hand(world, submitter.forget_placed())
        assert submitter.unplaced.ids() == [("default", another)]


async def only_those_without_room(*_: Any) -> tuple[int, None, int]:
    """When something is due, when something of tenants with room is, and the pause."""
    return 1, None, 0


async def test_a_place_that_is_given_back_brings_no_drive_for_tenants_without_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with driven(tmp_path) as world:
        worker = world.app.worker
        submitter, missed_shards = worker.submitter, worker.context.missed_shards
        for tenant, id_ in (("full", "gen_1"), ("other", "gen_2")):
            submitter.unplaced.note(tenant, id_)
        while submitter.places.take("full"):
            pass
        assert submitter.places.take("third")
        submitter._give_back("third")
        assert missed_shards == {shard_of("gen_2")}
        monkeypatch.setattr(submit, "_next_due", only_those_without_room)
        await by_hand(world, submitter.forget_placed())
        assert submitter.unplaced.ids() == [("full", "gen_1")], "nothing of others is due"
        while submitter.places.taken:
            submitter._give_back("full")
        assert shard_of("gen_1") in missed_shards
