"""Which task a generation has: upstream's own answer outranks what only a callback named."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults import DelayedAnswer, rows
from tests.harness import Harness, create_answer, opened, success_report

OWN, FOREIGN = "https://cdn.example/own.png", "https://cdn.example/foreign.png"
LOST = httpx.Response(500)


def input_(name: str) -> dict[str, Any]:
    return {"prompt": name}


@asynccontextmanager
async def submitting(world: Harness, answer: dict[str, Any]) -> AsyncIterator[list[Any]]:
    """Have a submission under way during the block; then its answer comes: the generation."""
    delayed = DelayedAnswer(httpx.Response(200, json=answer))
    world.upstream.create_replies.append(delayed.reply)
    creating = asyncio.create_task(world.generate(input=input_("in flight")))
    await delayed.requested.wait()
    result: list[Any] = []
    yield result
    delayed.release()
    result.append(await creating)


async def generation_of(world: Harness, id_: str) -> dict[str, Any]:
    return await world.get(f"/v1/generations/{id_}")


def urls(generation: dict[str, Any]) -> list[str]:
    return [file["url"] for file in (generation["output"] or {"files": []})["files"]]


@pytest.mark.parametrize("answer", [create_answer("own"), success_report("own", OWN)])
@pytest.mark.parametrize("word", ["processing", "completed"])
async def test_a_callback_before_the_create_answer_gives_no_other_task(
    tmp_path: Path, answer: dict[str, Any], word: str
) -> None:
    async with opened(tmp_path) as world:
        world.upstream.finish("foreign", FOREIGN)
        world.upstream.finish("own", OWN)
        async with submitting(world, answer) as created:
            await world.call_back({"data": {"task_id": "foreign", "status": word}})
            await world.run()
            assert world.upstream.polls == []
        await world.run()
        generation = await generation_of(world, created[0]["id"])
        assert (generation["status"], generation["task_id"]) == ("succeeded", "own")
        assert urls(generation) == [OWN]
        assert "foreign" not in world.upstream.polls


async def test_a_create_answer_outranks_a_task_that_a_believed_callback_named(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        async with submitting(world, create_answer("own")) as created:
            await world.call_back({"data": {"task_id": "foreign", "status": "processing"}})
        generation = await generation_of(world, created[0]["id"])
        assert (generation["status"], generation["task_id"]) == ("processing", "own")


async def test_an_answer_about_a_task_that_was_outranked_meanwhile_is_not_applied(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        asked = DelayedAnswer(httpx.Response(200, json=success_report("foreign", FOREIGN)))
        async with submitting(world, create_answer("own")) as created:
            await world.call_back({"data": {"task_id": "foreign", "status": "processing"}})
            [row] = await rows(world, "SELECT id FROM generations")
            world.upstream.poll_replies.append(asked.reply)
            path = f"/v1/generations/{row['id']}/refresh"
            refreshing = asyncio.create_task(world.client.post(path))
            await asked.requested.wait()
        asked.release()
        await refreshing
        generation = await generation_of(world, created[0]["id"])
        assert (generation["status"], generation["task_id"]) == ("processing", "own")
        world.upstream.finish("own", OWN)
        await world.run(300)
        assert urls(await generation_of(world, created[0]["id"])) == [OWN]


async def test_who_has_a_task_only_by_a_callback_loses_it_to_the_one_upstream_gave_it(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        world.upstream.create_replies.append(LOST)
        thief = await world.generate(input=input_("lost"))
        async with submitting(world, create_answer("owned")) as created:
            await world.call_back({"data": {"task_id": "owned", "status": "processing"}}, index=0)
            await world.run()  # Upstream says that the task works; nobody else has it yet.
            assert (await generation_of(world, thief["id"]))["task_id"] == "owned"
        world.upstream.finish("owned", OWN)
        await world.call_back({"data": {"task_id": "owned", "status": "completed"}}, index=0)
        await world.run(700)
        owner = await generation_of(world, created[0]["id"])
        assert (owner["status"], owner["task_id"], urls(owner)) == ("succeeded", "owned", [OWN])
        thief = await generation_of(world, thief["id"])
        assert (thief["status"], thief["output"]) == ("processing", None)


async def test_who_was_ended_by_a_task_that_a_callback_named_takes_nothing_from_its_owner(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        world.upstream.create_replies.append(LOST)
        thief = await world.generate(input=input_("lost"))
        async with submitting(world, create_answer("owned")) as created:
            world.upstream.finish("owned", OWN)
            await world.call_back({"data": {"task_id": "owned", "status": "completed"}}, index=0)
            await world.run()
        await world.run(700)
        owner = await generation_of(world, created[0]["id"])
        assert (owner["status"], owner["task_id"], urls(owner)) == ("succeeded", "owned", [OWN])
        assert (await generation_of(world, thief["id"]))["status"] == "succeeded"


async def test_two_callbacks_at_once_give_one_task_to_one_generation(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        world.upstream.create_replies.extend([LOST, LOST])
        ids = [(await world.generate(input=input_(name)))["id"] for name in ("one", "two")]
        answers = [DelayedAnswer(httpx.Response(200, json=success_report("task"))) for _ in ids]
        world.upstream.poll_replies.extend(answer.reply for answer in answers)
        for index in range(2):
            await world.call_back({"data": {"task_id": "task"}}, index=index)
        running = asyncio.create_task(world.run())
        for answer in answers:  # Both are asked about before one is recorded.
            await answer.requested.wait()
        for answer in answers:
            answer.release()
        await running
        await world.run(30)
        shown = [await generation_of(world, id_) for id_ in ids]
        assert sorted(generation["status"] for generation in shown) == ["queued", "succeeded"]


@pytest.mark.parametrize("headers", [{"location": "/api/v1/tasks/task1"}, {"x-task-id": "task1"}])
@pytest.mark.parametrize("status", [201, 202, 429, 503])
async def test_a_task_that_only_the_headers_name_is_asked_about(
    tmp_path: Path, status: int, headers: dict[str, str]
) -> None:
    async with opened(tmp_path, public_url=None) as world:
        world.upstream.finish("task1", OWN)
        world.upstream.create_replies.append(httpx.Response(status, headers=headers))
        generation = await world.generate()
        for _ in range(10):
            await world.run(30)
        generation = await generation_of(world, generation["id"])
        assert (generation["status"], generation["task_id"]) == ("succeeded", "task1")
        assert urls(generation) == [OWN]
        assert len(world.upstream.creates) == 1


@pytest.mark.parametrize("word", ["was created", "n63ab12cd is queued"])
async def test_a_busy_answer_that_speaks_of_a_task_is_not_sent_again(
    tmp_path: Path, word: str
) -> None:
    async with opened(tmp_path) as world:
        busy = httpx.Response(503, json={"error": {"message": f"your task {word}, come back"}})
        world.upstream.create_replies.append(busy)
        await world.generate()
        for _ in range(5):
            await world.run(30)
        assert len(world.upstream.creates) == 1
