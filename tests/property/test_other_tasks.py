"""What names another task is never applied: by any door, in any shape, signed or not."""

import asyncio
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import engine
from tests.harness import Harness, create_answer, opened
from tests.journeys.test_signatures import seconds, signed, standard

THEIRS, OURS = "https://cdn.example/theirs.png", "https://cdn.example/ours.png"
TRUSTS: Mapping[str, Mapping[str, Any]] = {
    "confirm": {},
    "body": {"callback_trust": "body"},
    "signed": signed("standard"),
}
WORDS = ("SUCCESS", "completed", "FAILED", "error", "IN_PROGRESS", "Melted", None)
RESULTS: tuple[Mapping[str, Any], ...] = (
    {},
    {"output": {"image_urls": [THEIRS]}},
    {"images": [{"url": THEIRS}]},
    {"resultJson": msgspec.json.encode({"resultUrls": [THEIRS]}).decode()},
    {"response_data": [{"status": "complete", "audio_url": THEIRS}]},
    {"successFlag": 1, "response": {"resultUrls": [THEIRS]}},
    {"info": {"result_urls": [THEIRS]}},
    {"error": {"code": "bad", "message": THEIRS}},
    {"failMsg": THEIRS},
)
ECHOES = ("input", "param", "request_body", "requestParams", "metadata", "parent", "parentTask")


@st.composite
def shapes(draw: st.DrawFn, task_ids: st.SearchStrategy[str], echo_id: str) -> dict[str, Any]:
    """A body with one id as the task's own, and with another one inside echoes."""
    place = draw(st.sampled_from(["top", "data", "list"]))
    keys = ["task_id", "taskId", "workId", "work_id", *(["id"] if place != "list" else [])]
    task: dict[str, Any] = {draw(st.sampled_from(keys)): draw(task_ids)}
    if (word := draw(st.sampled_from(WORDS))) is not None:
        task[draw(st.sampled_from(["status", "state", "task_status"]))] = word
    task |= draw(st.sampled_from(RESULTS))
    for key in draw(st.lists(st.sampled_from(ECHOES), max_size=2, unique=True)):
        task[key] = {"task_id": echo_id, "id": echo_id, "status": "SUCCESS", "url": THEIRS}
    envelope = {} if place == "top" else {"data": task if place == "data" else [task]}
    code = draw(st.sampled_from([None, 200, 0, 400, 451, 501]))
    return {**(task if place == "top" else envelope), **({} if code is None else {"code": code})}


async def give_by_poll(world: Harness, body: dict[str, Any]) -> None:
    def play(request: httpx.Request) -> httpx.Response:
        is_ours = request.url.path.endswith("/task2")
        other = {"task_id": "task1", "status": "IN_PROGRESS"}
        return httpx.Response(200, json=body if is_ours else {"data": other})

    for _ in range(2):  # A third answer would make an unknown id another name of the task.
        world.upstream.poll_replies.extend([play] * 2)
        await world.run(400)
        world.upstream.poll_replies.clear()


async def give_by_callback(world: Harness, body: dict[str, Any]) -> None:
    content = msgspec.json.encode(body)
    headers = standard(seconds(world), content)
    answer = await world.call_back(index=1, content=content, headers=headers)
    assert answer.status_code == 200
    await world.run(1)


async def live(path: Path, trust: str, door: str, body: dict[str, Any]) -> None:
    async with opened(path, **TRUSTS[trust]) as world:
        await world.subscribe()
        await world.generate(input={"prompt": "theirs"})
        if door == "create":
            world.upstream.create_replies.append(httpx.Response(200, json=body))
        ours = await world.client.post(
            "/v1/generations", json={"model": "imagen4", "input": {"prompt": "ours"}}
        )
        if door == "poll":
            await give_by_poll(world, body)
        elif door == "callback":
            await give_by_callback(world, body)
        await world.run(1)
        page = await world.get("/v1/generations", limit=1)
        [generation] = page["data"]
        assert generation["output"] is None
        assert generation["task_id"] != "task1"
        if door == "create":
            assert generation["status"] in ("queued", "failed")
        else:
            assert ours.status_code == 202
            assert generation["status"] == "processing"
            world.upstream.finish("task2", OURS)
            await world.run(600)
            generation = await world.get(f"/v1/generations/{generation['id']}")
            assert [file["url"] for file in generation["output"]["files"]] == [OURS]
        webhooks = world.subscribers.webhooks_to()
        assert door == "create" or all(THEIRS.encode() not in sent.body for sent in webhooks)


EXAMPLES = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("trust", TRUSTS)
@EXAMPLES
@given(body=shapes(st.sampled_from(["task1", "stranger", "../task2", "TASK2", "2"]), "task2"))
def test_a_callback_that_names_another_task_is_never_applied(
    tmp_path: Path, trust: str, body: dict[str, Any]
) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        asyncio.run(live(Path(folder), trust, "callback", body))


@EXAMPLES
@given(body=shapes(st.sampled_from(["task1", "stranger", "../task2", "TASK2", "2"]), "task2"))
def test_an_answer_that_names_another_task_is_never_applied(
    tmp_path: Path, body: dict[str, Any]
) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        asyncio.run(live(Path(folder), "confirm", "poll", body))


@settings(EXAMPLES, max_examples=EXAMPLES.max_examples // 10)
@given(
    body=shapes(st.sampled_from(["task1", "stranger", "../task2"]), "task2"),
    trust=st.sampled_from([*TRUSTS]),
    door=st.sampled_from(["callback", "poll"]),
)
def test_what_names_another_task_is_never_applied_on_postgresql(
    postgres: engine.Schemas, tmp_path: Path, body: dict[str, Any], trust: str, door: str
) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        asyncio.run(live(Path(folder), trust, door, body))
    postgres.release()


@EXAMPLES
@given(body=shapes(st.just("task1"), "task2"))
def test_a_create_answer_with_a_known_task_is_never_applied(
    tmp_path: Path, body: dict[str, Any]
) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        asyncio.run(live(Path(folder), "confirm", "create", body))


@pytest.mark.parametrize("echo", ECHOES)
@pytest.mark.parametrize("trust", ["confirm", "body"])
async def test_an_echo_of_another_task_is_no_name(tmp_path: Path, echo: str, trust: str) -> None:
    async with opened(tmp_path, **TRUSTS[trust]) as world:
        await world.generate(input={"prompt": "theirs"})
        await world.generate(input={"prompt": "ours"})
        data = {
            **create_answer("task2")["data"],
            echo: {"task_id": "task1", "id": "task1", "status": "FAILED"},
            "status": "SUCCESS",
            "output": [OURS],
        }
        world.upstream.tasks["task2"] = data
        await world.call_back({"code": 200, "data": data}, index=1)
        await world.run(1)
        [generation] = (await world.get("/v1/generations", limit=1))["data"]
        assert [file["url"] for file in generation["output"]["files"]] == [OURS]
