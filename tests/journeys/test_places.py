"""Places for submissions: what finds none is a row that waits, and nobody holds all of them."""

import asyncio
from collections import Counter
from pathlib import Path

import httpx
import pytest

from service.generations import submit
from service.generations.ingest import Batch
from service.generations.judge import CONFLICT_CODE
from tests.faults import DelayedAnswer, rows
from tests.harness import Harness, create_answer, opened
from tests.journeys.gates import by_hand


async def counts(world: Harness) -> dict[str, int]:
    found = await rows(world, "SELECT submission, count(*) AS n FROM generations GROUP BY 1")
    return {row["submission"]: row["n"] for row in found}


@pytest.mark.sqlite_only("it relies on the order of commits, which run side by side there")
async def test_what_finds_no_place_waits_as_a_row_and_is_submitted_later(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        delayed_answer = DelayedAnswer(httpx.Response(503))
        world.upstream.create_replies.extend([delayed_answer.reply] * 100)
        creating = [asyncio.create_task(world.generate()) for _ in range(50)]
        limit = submit.PLACES // 2  # All are of one tenant.
        done, _ = await asyncio.wait(creating[limit:], timeout=60)
        assert len(done) == 50 - limit
        assert await counts(world) == {"sending": limit, "waiting": 50 - limit}
        assert len(world.upstream.creates) == limit
        world.upstream.create_replies.clear()
        delayed_answer.release()
        await asyncio.gather(*creating)
        for _ in range(5):
            await world.run(1)
        assert await counts(world) == {"taken": 50}


async def test_submissions_that_hang_do_not_hold_the_others(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        world.upstream.create_replies.extend([httpx.Response(503)] * 60)
        for _ in range(60):
            await world.generate()
        world.clock.advance(2)
        hanging = DelayedAnswer(httpx.Response(200, json=create_answer("slow")))
        world.upstream.create_replies.extend([hanging.reply] * 3)
        submitter = world.app.worker.submitter
        for _ in range(4):
            await by_hand(world, submitter.run_due(world.clock.now))
            while len(submitter.in_flight) > 3:
                under_way = submitter.in_flight.values()
                await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
        assert Counter(await counts(world)) == {"sending": 3, "taken": 57}
        hanging.release()
        await submitter.settle()


@pytest.mark.sqlite_only("its trigger is of SQLite")
async def test_an_answer_that_cannot_be_stored_leaves_a_generation_that_is_not_sent_again(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        sql = "CREATE TRIGGER refuse BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'no'); END"
        await world.app.database.apply(lambda c: c.execute(sql))
        world.upstream.create_replies.append(httpx.Response(503))
        await world.generate()
        await world.run(2)
        [row] = await rows(world, "SELECT submission, task_id FROM generations")
        assert row["submission"] == "taken"
        await world.run(100)
        assert len(world.upstream.creates) == 2


async def test_an_answer_that_cannot_be_stored_gives_no_task_of_another_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        await world.generate()
        world.upstream.create_replies.append(httpx.Response(200, json=create_answer("task1")))

        async def fail_once(_batch: Batch) -> None:
            monkeypatch.undo()
            raise RuntimeError("no")

        monkeypatch.setattr(Batch, "write", fail_once)
        other = await world.generate(input={"prompt": "another thing"})
        assert (other["task_id"], other["error"]["code"]) == (None, CONFLICT_CODE)


async def test_a_redirected_submission_fails_with_the_location(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        moved = httpx.Response(301, headers={"location": "https://new.test/v2"})
        world.upstream.create_replies.append(moved)
        body = {"model": "imagen4", "input": {"prompt": "a small harbour"}}
        answer = await world.client.post("/v1/generations", json=body)
        assert answer.status_code == 422
        assert "https://new.test/v2" in answer.json()["detail"]
        [row] = await rows(world, "SELECT status, submission FROM generations")
        assert dict(row) == {"status": "failed", "submission": "refused"}
