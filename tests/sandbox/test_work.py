"""The work on a task, and each misbehaviour during it."""

import asyncio
import json

import httpx
import pytest

from service.sandbox import work
from tests.sandbox.harness import CALLBACK_URL, PROMPT, SandboxHarness, running_sandbox


async def test_a_task_with_callbacks_takes_two_seconds_and_sends_one(
    harness: SandboxHarness,
) -> None:
    task = await harness.finish()
    assert harness.sleeps == [2.0]
    (callback,) = harness.callbacks
    assert callback.path == "/callbacks/apiinone/ImGenuine"
    assert json.loads(callback.content) == (await harness.poll(task.id)).json()
    assert callback.data["task_id"] == task.id
    assert callback.data["output"]["image_urls"] == task.file_urls


async def test_a_task_without_callbacks_takes_one_second_and_sends_none(
    harness: SandboxHarness,
) -> None:
    task = await harness.finish(model="ideogram-v4")
    assert (harness.sleeps, harness.callbacks, task.status) == ([1.0], [], "completed")


async def test_without_a_callback_url_no_callback_is_sent(harness: SandboxHarness) -> None:
    await harness.finish(callback_url=None)
    assert harness.callbacks == []


async def test_speed_divides_every_sleep() -> None:
    async with running_sandbox(speed=4) as harness:
        harness.answers = [500]
        await harness.finish()
        assert harness.sleeps == [0.5, 0.25]


async def test_a_task_is_running_until_its_work_is_done(harness: SandboxHarness) -> None:
    task_id = (await harness.create()).json()["data"]["task_id"]
    running = (await harness.poll(task_id)).json()["data"]
    assert (running["status"], "output" in running) == ("IN_PROGRESS", False)
    await harness.settle()
    done = (await harness.poll(task_id)).json()["data"]
    assert (done["status"], done["credits"]) == ("completed", 8)


@pytest.mark.parametrize("refusal", [500, 404, 302, httpx.ConnectError("refused"), TimeoutError()])
async def test_a_callback_is_tried_again_until_a_2xx(
    harness: SandboxHarness, refusal: int | Exception
) -> None:
    harness.answers = [refusal, refusal, 200]
    await harness.finish()
    assert harness.sleeps == [2.0, 1, 2]
    assert len(harness.callbacks) == 3
    assert len({callback.content for callback in harness.callbacks}) == 1


async def test_a_callback_is_given_up_after_three_retries(harness: SandboxHarness) -> None:
    harness.answers = [503] * 9
    await harness.finish()
    assert harness.sleeps == [2.0, 1, 2, 4]
    assert len(harness.callbacks) == 4


async def test_a_receiver_that_hangs_is_tried_again(
    harness: SandboxHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[httpx.Request] = []

    async def hang(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return await asyncio.Future[httpx.Response]()

    monkeypatch.setattr(work, "TIMEOUT_SECONDS", 0)
    harness.sandbox.client = httpx.AsyncClient(transport=httpx.MockTransport(hang))
    await harness.finish()
    assert len(requests) == 4


async def test_a_failed_task_says_why_and_costs_nothing(harness: SandboxHarness) -> None:
    await harness.finish(directives="fail")
    data = harness.callbacks[0].data
    assert (data["status"], data["credits"], "output" in data) == ("failed", 0, False)
    assert data["error"]["code"] == "generation_failed"


async def test_a_lost_callback_leaves_a_task_that_is_done(harness: SandboxHarness) -> None:
    task = await harness.finish(directives="lose-callback")
    assert (harness.callbacks, task.status) == ([], "completed")


async def test_a_duplicated_callback_is_sent_that_often_even_after_a_failure(
    harness: SandboxHarness,
) -> None:
    harness.answers = [500]
    await harness.finish(directives="duplicate=3")
    assert (harness.answers, len(harness.callbacks)) == ([], 4)


async def test_an_early_callback_comes_before_the_create_answer(harness: SandboxHarness) -> None:
    response = await harness.create(directives="early")
    assert [callback.task_status for callback in harness.callbacks] == ["completed"]
    assert response.json()["data"]["status"] == "IN_PROGRESS"


async def test_any_other_callback_comes_after_the_create_answer(harness: SandboxHarness) -> None:
    await harness.create()
    assert harness.callbacks == []
    await harness.settle()
    assert len(harness.callbacks) == 1


async def test_an_early_callback_that_is_refused_does_not_delay_the_answer(
    harness: SandboxHarness,
) -> None:
    harness.answers = [500]
    assert (await harness.create(directives="early")).status_code == 200
    assert len(harness.callbacks) == 1
    await harness.settle()
    assert len(harness.callbacks) == 2


@pytest.mark.parametrize("model", ["imagen4", "ideogram-v4"])
async def test_early_without_a_callback_delays_nothing(harness: SandboxHarness, model: str) -> None:
    directives = "early, lose-callback"
    assert (await harness.create(model=model, directives=directives)).status_code == 200


async def test_a_delay_is_the_duration_of_the_task(harness: SandboxHarness) -> None:
    await harness.finish(directives="delay=5")
    assert harness.sleeps == [5.0]


async def test_a_late_callback_comes_that_long_after_completion(harness: SandboxHarness) -> None:
    await harness.finish(directives="late=30")
    assert harness.sleeps == [2.0, 30.0]
    assert harness.callbacks[0].task_status == "completed"


async def test_forged_callbacks_come_while_the_task_still_runs(harness: SandboxHarness) -> None:
    task = await harness.finish(directives="forge")
    wrong, false, genuine = harness.callbacks
    assert wrong.path == "/callbacks/apiinone/AmGenuine"
    assert false.path == genuine.path == "/callbacks/apiinone/ImGenuine"
    assert [callback.task_status for callback in harness.callbacks] == [
        "IN_PROGRESS",
        "IN_PROGRESS",
        "completed",
    ]
    assert false.data["status"] == "completed"
    assert false.data["output"]["image_urls"] == ["https://evil.example/1.png"]
    assert genuine.data["output"]["image_urls"] == task.file_urls
    assert harness.sleeps == [1.0, 1.0]


async def test_a_forged_callback_that_is_refused_is_not_tried_again(
    harness: SandboxHarness,
) -> None:
    harness.answers = [404, 401]
    await harness.finish(directives="forge")
    assert len(harness.callbacks) == 3


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("http://a.example/c/Abc", "http://a.example/c/Bbc"),
        ("http://a.example/c/", "http://a.example/c/A"),
    ],
)
def test_a_wrong_token_differs_in_its_first_character(url: str, wrong: str) -> None:
    assert work._wrong_token(url) == wrong


async def test_a_partial_callback_has_the_first_result_of_several(harness: SandboxHarness) -> None:
    task = await harness.finish(directives="partial", num_images=2)
    partial, final = harness.callbacks
    assert (partial.data["status"], partial.task_status) == ("processing", "IN_PROGRESS")
    assert partial.data["output"]["image_urls"] == task.file_urls[:1]
    assert final.data["output"]["image_urls"] == task.file_urls


async def test_an_unreadable_callback_is_no_json(harness: SandboxHarness) -> None:
    await harness.finish(directives="unreadable")
    with pytest.raises(json.JSONDecodeError):
        json.loads(harness.callbacks[0].content)


async def test_several_misbehaviours_go_together(harness: SandboxHarness) -> None:
    await harness.finish(directives="fail, duplicate=2, delay=7, late=1")
    assert harness.sleeps == [7.0, 1.0]
    assert [callback.data["status"] for callback in harness.callbacks] == ["failed", "failed"]


async def test_the_url_of_a_callback_is_not_logged(
    harness: SandboxHarness, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="genhook.sandbox"):
        task = await harness.finish()
    assert CALLBACK_URL.endswith(harness.callbacks[0].path)
    assert f"callback for {task.id} answered 204" in caplog.messages
    assert "ImGenuine" not in caplog.text


async def test_work_that_fails_is_logged(
    harness: SandboxHarness, caplog: pytest.LogCaptureFixture
) -> None:
    harness.answers = [RuntimeError("the receiver of this test is broken")]
    await harness.create()
    with pytest.raises(RuntimeError):
        await harness.settle()
    assert "the work on a task failed" in caplog.text


async def test_work_ends_with_the_application() -> None:
    async with running_sandbox() as harness:
        await harness.create()
        (task,) = harness.sandbox.tasks.values()
    assert task.work is not None
    assert task.work.cancelled()
    assert harness.sandbox.client.is_closed
    assert task.prompt == PROMPT
