"""The routes, the shapes of their answers, and every refusal."""

from typing import Any

import httpx
import pytest

from service.sandbox.models import MODELS, SandboxModel
from service.sandbox.tasks import UNKNOWN_WORD
from tests.sandbox.harness import KEY, PROMPT, SandboxHarness, running_sandbox

FIELDS: dict[str, Any] = {
    "dialogue": [{"text": PROMPT}],
    "task_id": "n31abcd_grok",
    "image": "https://example.com/1.png",
    "face_image": "https://example.com/2.png",
    "image_urls": ["https://example.com/1.png"],
    "audio_id": "a1",
}


def error_of(response: httpx.Response) -> tuple[int, str, str]:
    error = response.json()["error"]
    assert error["code"] == response.status_code
    return response.status_code, error["type"], error["message"]


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: f"{model.path} {model.name}")
async def test_every_model_accepts_a_task_and_finishes_it(
    harness: SandboxHarness, model: SandboxModel
) -> None:
    task = await harness.finish(path=model.path, **FIELDS, model=model.name)
    assert task.id == model.task_id_pattern.format("0001")
    data = (await harness.poll(task.id)).json()["data"]
    assert (data["status"], data["task_id"]) == ("completed", task.id)
    assert data["credits"] >= model.credits
    assert data["output"] in (
        {f"{kind}_urls": task.file_urls} for kind in ("image", "audio")
    ) or data["output"] in ({f"{kind}_url": task.file_urls[0]} for kind in ("video", "audio"))
    assert len(harness.callbacks) == model.callbacks


async def test_the_create_answer_is_an_envelope(harness: SandboxHarness) -> None:
    assert (await harness.create()).json() == {
        "code": 200,
        "message": "success",
        "data": {"task_id": "n470001_imagen4", "status": "IN_PROGRESS"},
    }


async def test_a_status_names_its_times_files_and_credits(harness: SandboxHarness) -> None:
    task = await harness.finish(num_images=2)
    assert (await harness.poll(task.id)).json() == {
        "code": 200,
        "message": "success",
        "data": {
            "task_id": task.id,
            "model": "imagen4",
            "status": "completed",
            "created_at": "2026-09-21T14:13:20.000Z",
            "completed_at": "2026-09-21T14:13:20.000Z",
            "credits": 16,
            "output": {
                "image_urls": [
                    f"http://sandbox.example/files/{task.id}/1.png",
                    f"http://sandbox.example/files/{task.id}/2.png",
                ]
            },
        },
    }


async def test_a_feed_says_success_while_its_clips_are_still_text(harness: SandboxHarness) -> None:
    answer = (await harness.create("/audio/music", model="chirp-v5", title="Dusk")).json()
    url = f"/api/v1/audio/music/feed?task_id={answer['data']['task_id']}"
    running = (await harness.client.get(url, headers=KEY)).json()["data"]
    assert running["type"] == "SUCCESS"
    assert [(clip["status"], clip["audio_url"]) for clip in running["response_data"]] == [
        ("text", ""),
        ("text", ""),
    ]
    assert "callback_url" not in running["request_body"]
    await harness.settle()
    done = (await harness.client.get(url.replace("task_id", "workId"), headers=KEY)).json()["data"]
    assert [clip["status"] for clip in done["response_data"]] == ["complete", "complete"]
    assert all(clip["audio_url"].endswith(".wav") for clip in done["response_data"])


async def test_the_feed_of_a_failed_song_has_failed(harness: SandboxHarness) -> None:
    task = await harness.finish(path="/audio/music", model=None, directives="fail")
    url = f"/api/v1/audio/music/feed?task_id={task.id}"
    feed = (await harness.client.get(url, headers=KEY)).json()["data"]
    assert (feed["type"], feed["response_data"][0]["status"]) == ("FAILED", "error")


async def test_a_cover_has_camel_case_and_msg(harness: SandboxHarness) -> None:
    path = "/audio/music/cover/generate"
    created = (await harness.create(path, model=None, taskId="gen1ksv")).json()
    task_id = "cover0001"
    assert created == {"code": 200, "msg": "success", "data": {"taskId": task_id}}
    url = f"/api/v1/audio/music/cover/status?task_id={task_id}"
    running = (await harness.client.get(url, headers=KEY)).json()
    assert (running["data"]["status"], running["data"]["images"]) == ("IN_PROGRESS", [])
    await harness.settle()
    done = (await harness.client.get(url, headers=KEY)).json()
    assert (done["msg"], done["data"]["status"]) == ("success", "SUCCESS")
    assert len(done["data"]["images"]) == 2


async def test_an_upload_cover_is_answered_without_a_status(harness: SandboxHarness) -> None:
    path = "/audio/music/upload-cover/generate"
    created = (await harness.create(path, model=None, audio_id="a1")).json()
    assert created["data"] == {"task_id": "upl0001"}
    url = "/api/v1/audio/music/upload-cover/status?task_id=upl0001"
    assert (await harness.client.get(url, headers=KEY)).json()["data"]["type"] == "SUCCESS"


async def test_lyrics_are_aligned_at_once(harness: SandboxHarness) -> None:
    task = await harness.finish(path="/audio/music", model=None)
    url = "/api/v1/audio/music/timestamped-lyrics"
    answer = await harness.client.post(url, json={"task_id": task.id}, headers=KEY)
    words = answer.json()["data"]["aligned_words"]
    assert [line["word"] for line in words] == PROMPT.split()
    assert words[1] == {"word": "lighthouse", "start_s": 0.5, "end_s": 1.0}


@pytest.mark.parametrize(("body", "code"), [({}, 400), ({"task_id": "gen9ksv"}, 404)])
async def test_lyrics_of_no_song_are_refused(
    harness: SandboxHarness, body: dict[str, str], code: int
) -> None:
    url = "/api/v1/audio/music/timestamped-lyrics"
    assert (await harness.client.post(url, json=body, headers=KEY)).status_code == code


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "aio_x"}, {"Authorization": "Bearer sk_x"}]
)
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/images/generations"), ("GET", "/tasks/n470001_imagen4")]
)
async def test_without_a_key_nothing_is_done(
    harness: SandboxHarness, method: str, path: str, headers: dict[str, str]
) -> None:
    response = await harness.client.request(method, f"/api/v1{path}", headers=headers, json={})
    assert error_of(response) == (401, "authentication_error", "Invalid API key")
    assert harness.sandbox.tasks == {}


async def test_with_an_api_key_only_that_key_is_accepted() -> None:
    async with running_sandbox(api_key="aio_only") as harness:
        assert (await harness.create()).status_code == 401
        harness.client.headers["Authorization"] = "Bearer aio_only"
        body = {"model": "imagen4", "prompt": PROMPT}
        response = await harness.client.post("/api/v1/images/generations", json=body)
        assert response.status_code == 200


async def test_402_says_that_credits_are_insufficient(harness: SandboxHarness) -> None:
    answer = error_of(await harness.create(directives="error=402"))
    assert answer[:2] == (402, "insufficient_credits")
    assert harness.sandbox.tasks == {}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"prompt": None}, "prompt is required"),
        ({"model": None}, "model is required"),
        ({"model": "dall-e"}, "model 'dall-e' is not one of cogview-4"),
        ({"aspect_ratio": "7:1"}, "aspect_ratio must be one of"),
        ({"directives": "explode"}, "known: fail, lose-callback"),
    ],
)
async def test_the_answer_to_a_bad_request_says_what_is_wrong(
    harness: SandboxHarness, fields: dict[str, Any], text: str
) -> None:
    code, kind, message = error_of(await harness.create(**fields))
    assert (code, kind) == (400, "bad_request")
    assert text in message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000])
async def test_a_body_that_is_no_json_object_is_refused(
    harness: SandboxHarness, content: bytes
) -> None:
    url = "/api/v1/images/generations"
    response = await harness.client.post(url, content=content, headers=KEY)
    assert error_of(response)[:2] == (400, "bad_request")


async def test_an_unknown_task_is_not_found(harness: SandboxHarness) -> None:
    assert error_of(await harness.poll("n470001_imagen4")) == (404, "not_found", "Task not found")


async def test_a_rate_limit_refuses_the_first_create_and_the_first_poll(
    harness: SandboxHarness,
) -> None:
    first = await harness.create(directives="rate-limit")
    assert (error_of(first)[:2], first.headers["Retry-After"]) == ((429, "rate_limit_error"), "1")
    other_url = "http://receiver.example/callbacks/apiinone/another"
    second = await harness.create(directives="rate-limit", callback_url=other_url)
    task_id = second.json()["data"]["task_id"]
    polls = [await harness.poll(task_id) for _ in range(2)]
    assert [poll.status_code for poll in polls] == [429, 200]
    assert polls[0].headers["Retry-After"] == "1"


async def test_each_generation_with_a_rate_limit_is_refused_once(harness: SandboxHarness) -> None:
    answers = [await harness.create(directives="rate-limit") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [429, 200, 429, 200]


@pytest.mark.parametrize("code", [302, 402, 429, 503])
async def test_any_status_code_can_be_requested(harness: SandboxHarness, code: int) -> None:
    response = await harness.create(directives=f"error={code}")
    assert error_of(response)[0] == code
    assert harness.sandbox.tasks == {}


async def test_an_error_may_hide_in_the_body_of_a_200(harness: SandboxHarness) -> None:
    response = await harness.create(directives="body-error=402")
    assert (response.status_code, response.json()["code"], response.json()["data"]) == (
        200,
        402,
        None,
    )
    assert harness.sandbox.tasks == {}


async def test_a_lost_answer_leaves_an_accepted_task(harness: SandboxHarness) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        await harness.create(directives="lose-answer")
    await harness.settle()
    (task,) = harness.sandbox.tasks.values()
    assert (task.status, len(harness.callbacks)) == ("completed", 1)


async def test_a_synchronous_answer_has_results_and_no_task(harness: SandboxHarness) -> None:
    data = (await harness.create(directives="sync")).json()["data"]
    assert (data["status"], data["credits"], "task_id" in data) == ("completed", 8, False)
    assert (await harness.client.get(data["output"]["image_urls"][0])).status_code == 200
    assert harness.callbacks == []
    (task_id,) = harness.sandbox.tasks
    assert (await harness.poll(task_id)).status_code == 404


async def test_a_synchronous_failure_is_in_the_answer_too(harness: SandboxHarness) -> None:
    data = (await harness.create(directives="sync, fail")).json()["data"]
    assert (data["status"], data["credits"]) == ("failed", 0)


async def test_polls_fail_as_often_as_requested(harness: SandboxHarness) -> None:
    task = await harness.finish(directives="polls-fail=3")
    polls = [await harness.poll(task.id) for _ in range(4)]
    assert [poll.status_code for poll in polls] == [500, 500, 500, 200]
    assert error_of(polls[0])[1] == "server_error"


async def test_two_polls_have_an_unknown_word(harness: SandboxHarness) -> None:
    task = await harness.finish(directives="unknown-word")
    answers = [(await harness.poll(task.id)).json()["data"] for _ in range(3)]
    assert [data["status"] for data in answers] == [UNKNOWN_WORD, UNKNOWN_WORD, "completed"]
    assert "output" not in answers[0]


async def test_misbehaviours_of_polls_follow_one_another(harness: SandboxHarness) -> None:
    await harness.create(directives="rate-limit, polls-fail=1, unknown-word")
    task = await harness.finish(directives="rate-limit, polls-fail=1, unknown-word")
    polls = [await harness.poll(task.id) for _ in range(5)]
    assert [poll.status_code for poll in polls] == [429, 500, 200, 200, 200]
