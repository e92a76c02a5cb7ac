"""Answers that name the tasks of other generations beside their own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.harness import opened, success_report
from tests.journeys.test_reading import PNG, create, poll, shown, told

pytestmark = pytest.mark.sqlite_only("what an answer means is the same on both")

OTHERS: dict[str, dict[str, Any]] = {
    "at the top": {"task_id": "task2"},
    "in the task": {"data": {"job_id": "task2"}},
    "around the file": {"data": {"results": [], "output": {"task_id": "task2", "url": PNG}}},
}


WORDS = ("SUCCESS", "FAILED", "melting")
# A failure has no file that could be another's.
REFUSED = [(p, w) for p in OTHERS for w in WORDS if (p, w) != ("around the file", "FAILED")]


@pytest.mark.parametrize(("place", "word"), REFUSED)
async def test_an_end_that_may_be_that_of_another_generation_is_not_applied(
    tmp_path: Path, place: str, word: str
) -> None:
    async with opened(tmp_path, public_url=None) as world:
        await world.generate()
        await world.generate()
        body = told("task1", status=word, results=[PNG]).json()
        body["data"] |= OTHERS[place].get("data", {})
        body |= {key: value for key, value in OTHERS[place].items() if key != "data"}
        generation = await poll(world, *[httpx.Response(200, json=body)] * 4, seconds=100)
        assert generation["status"] == "processing"
        timeline = await world.get(f"/v1/generations/{generation['id']}/timeline")
        assert "the answer names another task: task2" in str(timeline)


THEIRS = {"task_id": "task2", "status": "completed", "url": PNG + "?theirs"}
BESIDE: list[dict[str, Any]] = [
    {"recent": [THEIRS]},
    {"output": {"job_id": "task2"}},
    {"data": {"history": [THEIRS]}},
    {"data": {"queue": THEIRS}},
    {"data": {"results": [PNG, THEIRS]}},
]


@pytest.mark.parametrize("word", ["SUCCESS", "FAILED"])
@pytest.mark.parametrize("beside", BESIDE, ids=str)
async def test_what_an_answer_shows_of_other_generations_is_left_out_of_its_end(
    tmp_path: Path, beside: dict[str, Any], word: str
) -> None:
    async with opened(tmp_path, public_url=None) as world:
        await world.generate()
        await world.generate()
        body = told("task1", status=word, results=[PNG]).json()
        body = {**body, **beside, "data": body["data"] | beside.get("data", {})}
        generation = await poll(world, httpx.Response(200, json=body))
        assert generation["status"] == {"SUCCESS": "succeeded", "FAILED": "failed"}[word]
        assert generation["task_id"] == "task1"
        files = (generation["output"] or {"files": []})["files"]
        assert [file["url"] for file in files] == [PNG] * (word == "SUCCESS")
        assert "task2" not in str(generation)


async def test_texts_that_hold_each_other_without_end_hide_no_end(tmp_path: Path) -> None:
    text: Any = THEIRS
    for _ in range(16):
        for _ in range(60):
            text = [text]
        text = json.dumps(text)
    async with opened(tmp_path, public_url=None) as world:
        await world.generate()
        await world.generate()
        body = told("task1", status="SUCCESS", results=[PNG]).json() | {"recent": [THEIRS, text]}
        generation = await poll(world, httpx.Response(200, json=body))
        assert generation["status"] == "succeeded"
        assert "task2" not in str(generation)


LISTS: dict[str, Callable[[Any], Any]] = {
    "data": lambda tasks: {"code": 200, "data": tasks},
    "data as text": lambda tasks: {"code": 200, "data": json.dumps({"items": tasks})},
    "data.items": lambda tasks: {"code": 200, "data": {"items": tasks}},
    "nothing": lambda tasks: tasks,
    "tasks": lambda tasks: {"code": 200, "tasks": tasks},
    "data.tasks.items": lambda tasks: {"code": 200, "data": {"tasks": {"items": tasks}}},
}


@pytest.mark.parametrize("word", ["SUCCESS", "FAILED"])
@pytest.mark.parametrize("name", ["task_id", "id"])
@pytest.mark.parametrize("place", LISTS)
async def test_of_a_list_of_tasks_those_of_other_generations_are_left_out(
    tmp_path: Path, place: str, name: str, word: str
) -> None:
    async with opened(tmp_path, public_url=None) as world:
        await world.generate()
        await world.generate()
        own = {name: "task1", "status": word, "images": [PNG]}
        theirs = {name: "task2", "status": "SUCCESS", "images": [PNG + "?theirs"]}
        answer = httpx.Response(200, json=LISTS[place]([theirs, own]))
        generation = await poll(world, answer, answer, answer, answer, seconds=100)
        assert generation["status"] == {"SUCCESS": "succeeded", "FAILED": "failed"}[word]
        assert generation["task_id"] == "task1"
        assert "task2" not in str(generation)
        assert "?theirs" not in str(generation)
        events = await world.get("/v1/events", generation_id=generation["id"])
        assert "?theirs" not in str(events)


async def test_a_create_answer_that_shows_other_generations_too_names_its_own_task(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, public_url=None) as world:
        await world.generate()
        second = await create(
            world, {**success_report("own"), "recent": [{**THEIRS, "task_id": "task1"}]}
        )
        assert (await shown(world, second))["status"] == "processing"
        world.upstream.finish("own")
        await world.run(60)
        assert (await shown(world, second))["status"] == "succeeded"
