"""Submissions: every answer of upstream, and that no task is ever submitted twice."""

import asyncio
import itertools
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.upstream import catalogue
from tests.faults import DelayedAnswer, crash, rows, status_of, timeline_of
from tests.harness import PUBLIC_URL, Harness, create_answer, opened

PROMPT = {"prompt": "a small harbour"}


def response(status: int, body: Any = None, **headers: str) -> httpx.Response:
    return httpx.Response(status, json=body, headers=headers)


def refusal(code: int, message: str = "no", type_: str = "some_error") -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "type": type_}}


async def create(world: Harness, model: str = "imagen4", **fields: Any) -> httpx.Response:
    body = {"model": model, "input": PROMPT, **fields}
    return await world.client.post("/v1/generations", json=body)


async def test_a_submission_that_upstream_takes_is_processing_with_a_task_id(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate(metadata={"order": "7"})
        assert generation["status"] == "processing"
        assert generation["task_id"] == "task1"
        assert generation["submitted_at"] == generation["created_at"]
        assert generation["metadata"] == {"order": "7"}
        assert await world.get(f"/v1/generations/{generation['id']}") == generation
        assert await timeline_of(world, generation["id"]) == [
            ("stored", ""),
            ("submission", "taken"),
            ("submitted", ""),
            ("event", "generation.submitted"),
        ]


@pytest.mark.sqlite_only("it reads the file meanwhile")
async def test_a_generation_is_stored_before_it_is_submitted(tmp_path: Path) -> None:
    stored: list[tuple[str, str]] = []

    def read_row(_request: httpx.Request) -> httpx.Response:
        connection = sqlite3.connect(tmp_path / "genhook.db")
        stored.extend(connection.execute("SELECT status, submission FROM generations"))
        connection.close()
        return response(200, create_answer("task1"))

    async with opened(tmp_path) as world:
        world.upstream.create_replies.append(read_row)
        await world.generate()
    assert stored == [("queued", "sending")]


async def test_upstream_receives_the_input_and_a_callback_url(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate()
        [sent] = world.upstream.creates
        assert world.upstream.paths == ["/api/v1/images/generations"]
        assert sent.pop("callback_url").startswith(f"{PUBLIC_URL}/callbacks/apiinone/")
        assert sent == {"model": "imagen4", **PROMPT}


async def test_a_model_without_callbacks_is_sent_no_callback_url(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate("ideogram-v3-turbo")
        assert generation["route"] == "poll"
        assert world.upstream.creates == [{"model": "ideogram-v3-turbo", **PROMPT}]


async def test_an_unknown_model_passes_through_with_a_callback_url_and_is_polled(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate("brand-new-9", input={"anything": [1, None]})
        assert generation["route"] == "poll"
        [sent] = world.upstream.creates
        assert (sent["model"], sent["anything"]) == ("brand-new-9", [1, None])
        assert "/callbacks/apiinone/" in sent["callback_url"]
        world.upstream.finish("task1")
        await world.run(3)
        assert await status_of(world, generation["id"]) == "succeeded"


async def test_an_alias_is_sent_as_the_name_that_upstream_knows(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate("imagen-4")
        assert generation["model"] == "imagen-4"
        assert world.upstream.creates[0]["model"] == "imagen4"


REFUSED = [
    (response(400, refusal(400)), 422, "upstream_refused"),
    (response(401, refusal(401)), 502, "upstream_unauthorized"),
    (response(402, refusal(402)), 402, "upstream_payment_required"),
    (response(403, refusal(403)), 502, "upstream_unauthorized"),
    (response(404, refusal(404)), 422, "upstream_refused"),
    (response(422, refusal(422)), 422, "upstream_refused"),
    (response(200, {"code": 400, "message": "no"}), 422, "upstream_refused"),
    (response(200, {"code": 401, "message": "no"}), 502, "upstream_unauthorized"),
    (response(200, {"code": 402, "message": "no"}), 402, "upstream_payment_required"),
]


@pytest.mark.parametrize(
    ("reply", "status", "code"),
    REFUSED,
    ids=[f"{r.status_code}-{c}-{i}" for i, (r, _, c) in enumerate(REFUSED)],
)
async def test_a_refusal_fails_the_generation_and_is_answered_with_a_problem(
    tmp_path: Path, reply: httpx.Response, status: int, code: str
) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe()
        world.upstream.create_replies.append(reply)
        answer = await create(world)
        assert answer.status_code == status
        problem = answer.json()
        assert (problem["code"], problem["status"]) == (code, status)
        [generation] = (await world.get("/v1/generations"))["data"]
        assert generation["id"] in problem["detail"]
        assert generation["status"] == "failed"
        assert generation["error"]["message"] == "no"
        assert generation["credits"] == 0
        await world.run(4_000)
        assert len(world.upstream.creates) == 1
        assert world.upstream.polls == []
        assert world.subscribers.event_types() == ["generation.failed"]
        types = [kind for kind, _ in await timeline_of(world, generation["id"])]
        assert types == ["stored", "submission", "event", "attempt"]


LOST = [
    response(500),
    response(502, refusal(502)),
    response(504),
    response(408),
    httpx.Response(200, text="<html>busy</html>"),
    response(200, {"code": 200, "message": "success", "data": {}}),
    response(200, {"code": 500, "message": "inner"}),
    response(503, {"code": 503, "data": {"images": ["https://cdn.example/paid.png"]}}),
    httpx.Response(200, content=b'{"data": "' + b"x" * 3_000 + b'"}'),
    httpx.ReadTimeout("slow"),
    httpx.ReadError("reset"),
    httpx.WriteError("reset"),
    httpx.WriteTimeout("slow"),
    httpx.RemoteProtocolError("gone without an answer"),
    TimeoutError(),
]


@pytest.mark.parametrize("status", [409, 500, 503])
async def test_a_task_that_trouble_names_is_polled_and_not_submitted_again(
    tmp_path: Path, status: int
) -> None:
    async with opened(tmp_path, public_url=None) as world:
        world.upstream.create_replies.append(response(status, create_answer("task9")))
        world.upstream.finish("task9")
        generation = (await create(world)).json()
        await world.run(60)
        shown = await world.get(f"/v1/generations/{generation['id']}")
        assert (shown["status"], shown["task_id"]) == ("succeeded", "task9")
        assert len(world.upstream.creates) == 1


@pytest.mark.parametrize("reply", LOST, ids=lambda reply: repr(reply)[:40])
async def test_a_submission_that_upstream_may_have_taken_is_never_repeated(
    tmp_path: Path, reply: httpx.Response | Exception
) -> None:
    async with opened(tmp_path, upstream_body_bytes=2_048) as world:
        await world.subscribe()
        world.upstream.create_replies.append(reply)
        answer = await create(world)
        assert answer.status_code == 202
        generation = answer.json()
        assert (generation["status"], generation["task_id"]) == ("queued", None)
        assert ("submission", "lost") in await timeline_of(world, generation["id"])
        for _ in range(13):
            await world.run(300)
        await world.restart()
        await world.run(86_400)
        assert len(world.upstream.creates) == 1
        assert await status_of(world, generation["id"]) == "timed_out"
        assert world.subscribers.event_types() == ["generation.timed_out"]


PUT_OFF = [
    response(429, refusal(429)),
    response(503),
    response(425),
    response(200, {"code": 429, "message": "slow down"}),
    httpx.ConnectError("refused"),
    httpx.ConnectTimeout("slow"),
    httpx.PoolTimeout("full"),
]


@pytest.mark.parametrize("reply", PUT_OFF, ids=lambda reply: repr(reply)[:40])
async def test_a_submission_that_upstream_certainly_did_not_take_is_repeated(
    tmp_path: Path, reply: httpx.Response | Exception
) -> None:
    async with opened(tmp_path) as world:
        world.upstream.create_replies.append(reply)
        answer = await create(world)
        assert answer.status_code == 202
        generation = answer.json()
        assert generation["status"] == "queued"
        is_throttled = (
            isinstance(reply, httpx.Response) and "429" in f"{reply.status_code}{reply.text}"
        )
        await world.run(4.9 if is_throttled else 0.9)
        assert len(world.upstream.creates) == 1
        await world.run(0.1)
        first, second = world.upstream.creates
        assert first == second  # With the same callback URL: upstream never used it.
        assert await status_of(world, generation["id"]) == "processing"
        await world.run(50)
        assert len(world.upstream.creates) == 2
        outcomes = [
            outcome
            for kind, outcome in await timeline_of(world, generation["id"])
            if kind == "submission"
        ]
        assert outcomes == ["put_off", "taken"]


@pytest.mark.sqlite_only("it runs due work hundreds of times")
async def test_repeated_submissions_back_off_to_a_minute(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        world.upstream.create_replies.extend([httpx.ConnectError("refused")] * 20)
        await create(world)
        sent_at = [0]
        for second in range(1, 200):
            await world.run(1)
            if len(world.upstream.creates) > len(sent_at):
                sent_at.append(second)
        waits = [later - sooner for sooner, later in itertools.pairwise(sent_at)]
        assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


async def test_the_next_submission_waits_at_least_for_retry_after(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        world.upstream.create_replies.append(response(429, None, **{"Retry-After": "90"}))
        await create(world)
        await world.run(89)
        assert len(world.upstream.creates) == 1
        await world.run(1)
        assert len(world.upstream.creates) == 2


async def test_a_submission_delayed_past_the_deadline_times_out_and_is_not_repeated(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, deadline_seconds=100) as world:
        await world.subscribe()
        world.upstream.create_replies.append(response(503, None, **{"Retry-After": "90"}))
        world.upstream.create_replies.append(response(503, None, **{"Retry-After": "90"}))
        generation = (await create(world)).json()
        await world.run(90)
        assert len(world.upstream.creates) == 2
        await world.run(90)  # Both the deadline and the next submission are due.
        await world.run(86_400)
        assert len(world.upstream.creates) == 2
        assert await status_of(world, generation["id"]) == "timed_out"
        assert world.subscribers.event_types() == ["generation.timed_out"]


async def test_a_result_in_the_create_answer_completes_the_generation(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe()
        body = {"code": 200, "data": {"image_urls": ["https://cdn.example/1.png"]}}
        world.upstream.create_replies.append(response(200, body))
        generation = await world.generate("cogview-4")
        assert generation["status"] == "succeeded"
        assert generation["output"] == {
            "files": [{"url": "https://cdn.example/1.png", "media_type": "image/png"}],
            "raw": body,
        }
        assert generation["credits"] == 4
        await world.run(4_000)
        assert world.subscribers.event_types() == ["generation.succeeded"]
        assert world.upstream.polls == []


async def test_a_failure_in_the_create_answer_fails_the_generation(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        data = {"task_id": "task1", "status": "failed", "error": {"code": "nsfw", "message": "no"}}
        world.upstream.create_replies.append(response(200, {"code": 200, "data": data}))
        generation = await world.generate()
        assert generation["status"] == "failed"
        assert generation["error"] == {"code": "nsfw", "message": "no"}


async def test_raw_audio_in_the_create_answer_completes_the_generation(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        sound = httpx.Response(200, content=b"ID3-sound", headers={"content-type": "audio/mpeg"})
        world.upstream.create_replies.append(sound)
        generation = await world.generate("elevenlabs-v3", input={"dialogue": [{"text": "hello"}]})
        assert generation["status"] == "succeeded"
        [file] = generation["output"]["files"]
        assert file == {"url": "data:audio/mpeg;base64,SUQzLXNvdW5k", "media_type": "audio/mpeg"}
        assert world.upstream.paths == ["/api/v1/audio/speech"]


async def test_after_a_crash_while_sending_the_callback_completes_the_generation(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe()
        delayed_answer = DelayedAnswer(response(200, create_answer("task1")))
        world.upstream.create_replies.append(delayed_answer.reply)
        creating = asyncio.create_task(create(world))
        await delayed_answer.requested.wait()
        await crash(world)
        await asyncio.gather(creating, return_exceptions=True)
        await world.run(600)
        [generation] = (await world.get("/v1/generations"))["data"]
        assert generation["status"] == "queued"
        world.upstream.finish("task1")
        assert (await world.call_back()).status_code == 200
        await world.run()
        assert world.upstream.polls == ["task1"]  # The task id of the callback.
        stored = await world.get(f"/v1/generations/{generation['id']}")
        assert (stored["status"], stored["task_id"]) == ("succeeded", "task1")
        await world.run(86_400)
        assert len(world.upstream.creates) == 1
        assert world.subscribers.event_types() == ["generation.succeeded"]


async def test_after_a_crash_while_repeating_there_is_no_third_submission(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe()
        delayed_answer = DelayedAnswer(response(200, create_answer("task1")))
        world.upstream.create_replies.extend([response(429, refusal(429)), delayed_answer.reply])
        await create(world)
        sending = asyncio.create_task(world.run(6))
        await delayed_answer.requested.wait()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await crash(world)
        for _ in range(13):
            await world.run(300)
        await world.run(86_400)
        assert len(world.upstream.creates) == 2
        assert world.subscribers.event_types() == ["generation.timed_out"]


async def test_the_task_id_of_another_generation_is_not_polled(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate()
        world.upstream.create_replies.append(httpx.ReadTimeout("slow"))
        lost = (await create(world)).json()
        world.upstream.finish("task1")
        body = {"code": 200, "data": {"task_id": "task1", "status": "completed"}}
        assert (await world.call_back(body, index=1)).status_code == 200
        await world.run()
        assert await status_of(world, lost["id"]) == "queued"
        assert world.upstream.polls == []


async def test_after_a_crash_without_a_callback_the_generation_times_out(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe()
        delayed_answer = DelayedAnswer(response(200, create_answer("task1")))
        world.upstream.create_replies.append(delayed_answer.reply)
        creating = asyncio.create_task(create(world))
        await delayed_answer.requested.wait()
        await crash(world)
        await asyncio.gather(creating, return_exceptions=True)
        await world.run(3_600)
        await world.run(86_400)
        assert world.subscribers.event_types() == ["generation.timed_out"]
        assert len(world.upstream.creates) == 1


async def test_an_answer_is_recorded_after_the_client_hung_up(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        delayed_answer = DelayedAnswer(response(200, create_answer("task1")))
        world.upstream.create_replies.append(delayed_answer.reply)
        creating = asyncio.create_task(create(world))
        await delayed_answer.requested.wait()
        under_way = [*world.app.worker.submitter.in_flight.values()]
        creating.cancel()
        await asyncio.gather(creating, return_exceptions=True)
        delayed_answer.release()
        await asyncio.gather(*under_way)
        [generation] = (await world.get("/v1/generations"))["data"]
        assert (generation["status"], generation["task_id"]) == ("processing", "task1")


async def test_stopping_waits_for_upstreams_answer(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        delayed_answer = DelayedAnswer(response(200, create_answer("task1")))
        world.upstream.create_replies.append(delayed_answer.reply)
        creating = asyncio.create_task(create(world))
        await delayed_answer.requested.wait()
        creating.cancel()
        await asyncio.gather(creating, return_exceptions=True)
        stopping = asyncio.create_task(world.restart())
        done, _ = await asyncio.wait({stopping}, timeout=0.05)
        assert not done
        delayed_answer.release()
        await stopping
        [generation] = (await world.get("/v1/generations"))["data"]
        assert generation["task_id"] == "task1"


async def test_a_full_queue_does_not_lose_upstreams_answer(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        database = world.app.database

        def fill(_request: httpx.Request) -> httpx.Response:
            database._queue.items_max = 0
            return response(200, create_answer("task1"))

        world.upstream.create_replies.append(fill)
        generation = await world.generate()
        assert (generation["status"], generation["task_id"]) == ("processing", "task1")
        assert (await create(world)).status_code == 503
        assert len(world.upstream.creates) == 1


async def test_a_task_id_that_arrives_after_the_deadline_is_polled(tmp_path: Path) -> None:
    async with opened(tmp_path, shutdown_seconds=0) as world:
        await world.subscribe()
        delayed_answer = DelayedAnswer(response(200, create_answer("task1")))
        world.upstream.create_replies.append(delayed_answer.reply)
        creating = asyncio.create_task(create(world))
        await delayed_answer.requested.wait()
        await world.run(3_600)
        delayed_answer.release()
        answer = await creating
        assert (answer.status_code, answer.json()["status"]) == (202, "timed_out")
        world.upstream.finish("task1")
        await world.run(1_000)  # Late polls use the task id.
        assert world.subscribers.event_types() == ["generation.timed_out", "generation.succeeded"]


async def test_a_refusal_after_a_successful_callback_changes_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        delayed_answer = DelayedAnswer(response(400, refusal(400)))
        world.upstream.create_replies.append(delayed_answer.reply)
        creating = asyncio.create_task(create(world))
        await delayed_answer.requested.wait()
        assert (await world.call_back()).status_code == 200
        delayed_answer.release()
        answer = await creating
        assert (answer.status_code, answer.json()["status"]) == (202, "succeeded")


async def test_upstreams_error_is_shown_without_secrets(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe()

        def echo(request: httpx.Request) -> httpx.Response:
            url = world.upstream.callback_url()
            key = request.headers["authorization"]
            return response(400, refusal(400, f"{key} may not use {url} here", f"bad {url}"))

        world.upstream.create_replies.append(echo)
        answer = await create(world)
        await world.run()
        token = world.upstream.callback_url().rpartition("/")[2]
        [generation] = (await world.get("/v1/generations"))["data"]
        timeline = await world.client.get(f"/v1/generations/{generation['id']}/timeline")
        events = await world.client.get("/v1/events")
        texts = [
            answer.text,
            timeline.text,
            events.text,
            world.subscribers.webhooks[0].body.decode(),
        ]
        for text in texts:
            assert "may not use" in text
            assert token not in text
            assert "aio_upstream_key" not in text


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://app.example/hook", True),
        ("http://127.0.0.1:7/hook", True),  # Allowed by the test's settings.
        ("http://10.0.0.1/hook", False),
        ("https://169.254.169.254/latest", False),
        ("https://[::ffff:10.0.0.1]/", False),
        ("ftp://app.example/", False),
        ("app.example/hook", False),
        ("", False),
    ],
)
async def test_a_forbidden_notify_url_is_refused_before_the_submission(
    tmp_path: Path,
    url: str,
    allowed: bool,  # noqa: FBT001
) -> None:
    async with opened(tmp_path) as world:
        answer = await create(world, notify_url=url)
        if allowed:
            assert answer.status_code == 202
            return
        assert answer.status_code == 422
        [error] = answer.json()["errors"]
        assert error["pointer"] == "/notify_url"
        assert world.upstream.creates == []
        assert (await world.get("/v1/generations"))["data"] == []


async def test_a_notify_url_receives_only_the_outcome_of_its_generation(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        url = "http://127.0.0.1:7/notify"
        notified = await world.generate(notify_url=url)
        await world.generate()
        world.upstream.finish("task1")
        world.upstream.finish("task2")
        for index in (0, 1):
            body = {"data": {"task_id": f"task{index + 1}", "status": "completed"}}
            await world.call_back(body, index=index)
        await world.run()
        assert [sent.event["data"]["id"] for sent in world.subscribers.webhooks_to(url)] == [
            notified["id"]
        ]
        assert world.subscribers.event_types(url) == ["generation.succeeded"]


@pytest.mark.parametrize(
    ("metadata", "pointer"),
    [
        ({f"k{i}": "v" for i in range(20)}, None),
        ({"n" * 64: "v" * 500}, None),
        ({f"k{i}": "v" for i in range(21)}, "/metadata"),
        ({"n" * 65: "v"}, "/metadata/" + "n" * 65),
        ({"name": "v" * 501}, "/metadata/name"),
        ({"a b": "v"}, "/metadata/a b"),
        ({"": "v"}, "/metadata/"),
        ({"name": "nul\0"}, "/metadata/name"),
    ],
)
async def test_metadata_has_limits(
    tmp_path: Path, metadata: dict[str, str], pointer: str | None
) -> None:
    async with opened(tmp_path) as world:
        answer = await create(world, metadata=metadata)
        if pointer is None:
            assert answer.status_code == 202
            assert answer.json()["metadata"] == metadata
            return
        assert answer.status_code == 422
        assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
        assert world.upstream.creates == []


async def test_input_that_the_catalogue_forbids_is_refused_with_pointers(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        wrong_input = {"prompt": "no", "aspect_ration": "1:1", "num_images": "two"}
        answer = await create(world, input=wrong_input)
        assert answer.status_code == 422
        problem = answer.json()
        assert problem["code"] == "invalid_request"
        errors = {error["pointer"]: error["message"] for error in problem["errors"]}
        assert set(errors) == {"/input/prompt", "/input/aspect_ration", "/input/num_images"}
        assert "aspect_ratio" in errors["/input/aspect_ration"]
        assert world.upstream.creates == []
        assert await rows(world, "SELECT id FROM generations") == []


@pytest.mark.parametrize("name", catalogue.RESERVED)
async def test_parameters_that_genhook_sets_are_one_error(tmp_path: Path, name: str) -> None:
    async with opened(tmp_path) as world:
        for model in ("imagen4", "brand-new-9"):
            answer = await create(world, model, input={**PROMPT, name: "https://evil.example/"})
            assert answer.status_code == 422
            error = {"pointer": f"/input/{name}", "message": catalogue.RESERVED[name]}
            assert answer.json()["errors"] == [error]
        assert world.upstream.creates == []
