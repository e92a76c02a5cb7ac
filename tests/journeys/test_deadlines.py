"""What ends at its deadline says why: with the last that upstream said, or what happened."""

import asyncio
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace

from service.generations import deadlines
from tests.faults import DelayedAnswer, crash, rows, status_of
from tests.harness import Harness, opened

HOUR = 3_600
PROGRESS = {"data": {"task_id": "task1", "status": "running"}}


async def error_at_the_deadline(world: Harness, generation_id: str) -> dict[str, str]:
    for _ in range(3):
        await world.run(HOUR)
    assert await status_of(world, generation_id) == "timed_out"
    error: dict[str, str] = (await world.get(f"/v1/generations/{generation_id}"))["error"]
    return error


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (httpx.Response(500, text="GPU on fire"), "Upstream last said: HTTP 500: GPU on fire"),
        (httpx.Response(503, json={"message": "full house"}), "Upstream last said: full house"),
        (httpx.Response(429), "Upstream last said: HTTP 429"),
        (
            httpx.ReadTimeout("too slow"),
            "Upstream did not answer the last submission: ReadTimeout: too slow",
        ),
        (
            httpx.ConnectError("no route"),
            "Upstream did not answer the last submission: ConnectError: no route",
        ),
    ],
    ids=["500", "503", "429", "timeout", "no connection"],
)
async def test_a_submission_that_never_got_a_task_ends_with_what_came_of_it(
    tmp_path: Path, reply: httpx.Response | Exception, said: str
) -> None:
    async with opened(tmp_path) as world:
        world.upstream.create_replies.extend([reply] * 200)
        generation = await world.generate()
        assert await error_at_the_deadline(world, generation["id"]) == {
            "code": "deadline_exceeded",
            "message": f"{deadlines.DEADLINE_MESSAGE} {said}",
        }


async def test_the_last_word_counts_not_the_first(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        first, last = ({"message": text} for text in ("first words", "last words"))
        world.upstream.create_replies.append(httpx.Response(503, json=first))
        world.upstream.create_replies.extend([httpx.Response(503, json=last)] * 200)
        generation = await world.generate()
        await world.run(5)
        assert len(world.upstream.creates) == 2
        error = await error_at_the_deadline(world, generation["id"])
        assert error["message"].endswith("Upstream last said: last words")


@pytest.mark.sqlite_only("it runs due work hundreds of times")
async def test_a_question_after_the_submission_is_the_last_that_was_said(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        world.upstream.create_replies.append(httpx.Response(500, text="GPU on fire"))
        world.upstream.poll_replies.extend([httpx.Response(404, text="never heard of it")] * 50)
        generation = await world.generate()
        await world.run(1)
        await world.call_back(PROGRESS)
        for _ in range(60):
            await world.run(30)
        error = await error_at_the_deadline(world, generation["id"])
        assert error["message"].endswith("Upstream last said: HTTP 404: never heard of it")


async def test_a_submission_that_a_callback_stopped_says_so(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        world.upstream.create_replies.append(httpx.Response(503, text="busy"))
        generation = await world.generate()
        await world.call_back({"status": "running"})
        for _ in range(5):
            await world.run(30)
        error = await error_at_the_deadline(world, generation["id"])
        assert error["message"].endswith("said: HTTP 503: busy" + deadlines.CALLED_BACK)


@pytest.mark.sqlite_only("it runs due work hundreds of times")
async def test_a_submission_without_any_record_says_so(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        delayed_answer = DelayedAnswer(httpx.Response(500))
        world.upstream.create_replies.append(delayed_answer.reply)
        creating = asyncio.create_task(world.generate())
        await delayed_answer.requested.wait()
        await crash(world)
        await asyncio.gather(creating, return_exceptions=True)
        [row] = await rows(world, "SELECT id FROM generations")
        error = await error_at_the_deadline(world, row["id"])
        assert error["message"] == deadlines.DEADLINE_MESSAGE + deadlines.NO_RECORD


async def test_a_secret_of_today_is_cut_from_what_upstream_said_before(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        world.upstream.create_replies.append(httpx.Response(500, text="bad key sk-0123456789"))
        generation = await world.generate()
        world.settings = replace(world.settings, upstream_api_key="sk-0123456789")
        await world.restart()
        error = await error_at_the_deadline(world, generation["id"])
        assert error["message"].endswith("Upstream last said: HTTP 500: bad key [redacted]")


async def test_an_answer_about_another_task_at_the_deadline_is_no_last_word(tmp_path: Path) -> None:
    async with opened(tmp_path, deadline_seconds=60) as world:
        generation = await world.generate()
        await world.generate()
        world.upstream.tasks["task1"] = {"task_id": "task2", "status": "running"}
        await world.run(60)
        assert await status_of(world, generation["id"]) in ("queued", "processing")
        world.upstream.finish("task1")
        await world.run(2)
        assert await status_of(world, generation["id"]) == "succeeded"


async def test_who_only_hears_of_another_task_times_out_seconds_after_the_deadline(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, deadline_seconds=60) as world:
        generation = await world.generate()
        await world.generate()
        world.upstream.tasks["task1"] = {"task_id": "task2", "status": "running"}
        await world.run(60)
        for _ in range(5):
            await world.run(2)
        assert await status_of(world, generation["id"]) == "timed_out"
