"""The work on a task, and each misbehaviour during it."""

import asyncio
import json

import httpx
import pytest

from service.sandbox import work
from tests.sandbox.bench import CALLBACK_URL, PROMPT, Bench, opened


async def test_a_task_with_callbacks_takes_two_seconds_and_sends_one(bench: Bench) -> None:
    task = await bench.finish()
    assert bench.sleeps == [2.0]
    (callback,) = bench.received
    assert callback.path == "/callbacks/apiinone/ImGenuine"
    assert json.loads(callback.content) == (await bench.poll(task.id)).json()
    assert callback.data["task_id"] == task.id
    assert callback.data["output"]["image_urls"] == task.file_urls


async def test_a_task_without_callbacks_takes_one_second_and_sends_none(bench: Bench) -> None:
    task = await bench.finish(model="ideogram-v4")
    assert (bench.sleeps, bench.received, task.status) == ([1.0], [], "completed")


async def test_without_a_callback_url_no_callback_is_sent(bench: Bench) -> None:
    await bench.finish(callback_url=None)
    assert bench.received == []


async def test_speed_divides_every_sleep() -> None:
    async with opened(speed=4) as bench:
        bench.answers = [500]
        await bench.finish()
        assert bench.sleeps == [0.5, 0.25]


async def test_a_task_is_running_until_its_work_is_done(bench: Bench) -> None:
    task_id = (await bench.create()).json()["data"]["task_id"]
    running = (await bench.poll(task_id)).json()["data"]
    assert (running["status"], "output" in running) == ("IN_PROGRESS", False)
    await bench.settle()
    done = (await bench.poll(task_id)).json()["data"]
    assert (done["status"], done["credits"]) == ("completed", 8)
    assert bench.sandbox.polls[task_id] == 2


@pytest.mark.parametrize("refusal", [500, 404, 302, httpx.ConnectError("refused"), TimeoutError()])
async def test_a_callback_is_tried_again_until_a_2xx(
    bench: Bench, refusal: int | Exception
) -> None:
    bench.answers = [refusal, refusal, 200]
    await bench.finish()
    assert bench.sleeps == [2.0, 1, 2]
    code = refusal if isinstance(refusal, int) else None
    assert [sent.status_code for sent in bench.sandbox.callbacks_sent] == [code, code, 200]
    assert len({callback.content for callback in bench.received}) == 1


async def test_a_callback_is_given_up_after_three_retries(bench: Bench) -> None:
    bench.answers = [503] * 9
    await bench.finish()
    assert bench.sleeps == [2.0, 1, 2, 4]
    assert len(bench.received) == 4


async def test_a_receiver_that_hangs_is_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(_: httpx.Request) -> httpx.Response:
        return await asyncio.Future[httpx.Response]()

    monkeypatch.setattr(work, "TIMEOUT_SECONDS", 0)
    bench.sandbox.client = httpx.AsyncClient(transport=httpx.MockTransport(hang))
    await bench.finish()
    assert [sent.status_code for sent in bench.sandbox.callbacks_sent] == [None] * 4


async def test_a_failed_task_says_why_and_costs_nothing(bench: Bench) -> None:
    await bench.finish(directives="fail")
    data = bench.received[0].data
    assert (data["status"], data["credits"], "output" in data) == ("failed", 0, False)
    assert data["error"]["code"] == "generation_failed"


async def test_a_lost_callback_leaves_a_task_that_is_done(bench: Bench) -> None:
    task = await bench.finish(directives="lose-callback")
    assert (bench.received, task.status) == ([], "completed")


async def test_a_duplicated_callback_is_sent_that_often_even_after_a_failure(
    bench: Bench,
) -> None:
    bench.answers = [500]
    await bench.finish(directives="duplicate=3")
    assert [sent.status_code for sent in bench.sandbox.callbacks_sent] == [500, 204, 204, 204]


async def test_an_early_callback_comes_before_the_create_answer(bench: Bench) -> None:
    response = await bench.create(directives="early")
    assert [callback.task_status for callback in bench.received] == ["completed"]
    assert response.json()["data"]["status"] == "IN_PROGRESS"


async def test_any_other_callback_comes_after_the_create_answer(bench: Bench) -> None:
    await bench.create()
    assert bench.received == []
    await bench.settle()
    assert len(bench.received) == 1


async def test_an_early_callback_that_is_refused_does_not_delay_the_answer(bench: Bench) -> None:
    bench.answers = [500]
    assert (await bench.create(directives="early")).status_code == 200
    assert len(bench.received) == 1
    await bench.settle()
    assert len(bench.received) == 2


@pytest.mark.parametrize("model", ["imagen4", "ideogram-v4"])
async def test_early_without_a_callback_delays_nothing(bench: Bench, model: str) -> None:
    directives = "early, lose-callback"
    assert (await bench.create(model=model, directives=directives)).status_code == 200


async def test_a_delay_is_the_duration_of_the_task(bench: Bench) -> None:
    await bench.finish(directives="delay=5")
    assert bench.sleeps == [5.0]


async def test_a_late_callback_comes_that_long_after_completion(bench: Bench) -> None:
    await bench.finish(directives="late=30")
    assert bench.sleeps == [2.0, 30.0]
    assert bench.received[0].task_status == "completed"


async def test_forged_callbacks_come_while_the_task_still_runs(bench: Bench) -> None:
    task = await bench.finish(directives="forge")
    wrong, false, genuine = bench.received
    assert wrong.path == "/callbacks/apiinone/AmGenuine"
    assert false.path == genuine.path == "/callbacks/apiinone/ImGenuine"
    assert [callback.task_status for callback in bench.received] == [
        "IN_PROGRESS",
        "IN_PROGRESS",
        "completed",
    ]
    assert false.data["status"] == "completed"
    assert false.data["output"]["image_urls"] == ["https://evil.example/1.png"]
    assert genuine.data["output"]["image_urls"] == task.file_urls
    assert [sent.forged for sent in bench.sandbox.callbacks_sent] == [True, True, False]
    assert bench.sleeps == [1.0, 1.0]


async def test_a_forged_callback_that_is_refused_is_not_tried_again(bench: Bench) -> None:
    bench.answers = [404, 401]
    await bench.finish(directives="forge")
    assert len(bench.received) == 3


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("http://a.example/c/Abc", "http://a.example/c/Bbc"),
        ("http://a.example/c/", "http://a.example/c/A"),
    ],
)
def test_a_wrong_token_differs_in_its_first_character(url: str, wrong: str) -> None:
    assert work._wrong_token(url) == wrong


async def test_a_partial_callback_has_the_first_result_of_several(bench: Bench) -> None:
    task = await bench.finish(directives="partial", num_images=2)
    partial, final = bench.received
    assert (partial.data["status"], partial.task_status) == ("processing", "IN_PROGRESS")
    assert partial.data["output"]["image_urls"] == task.file_urls[:1]
    assert final.data["output"]["image_urls"] == task.file_urls


async def test_an_unreadable_callback_is_no_json(bench: Bench) -> None:
    await bench.finish(directives="unreadable")
    with pytest.raises(json.JSONDecodeError):
        json.loads(bench.received[0].content)


async def test_several_misbehaviours_go_together(bench: Bench) -> None:
    await bench.finish(directives="fail, duplicate=2, delay=7, late=1")
    assert bench.sleeps == [7.0, 1.0]
    assert [callback.data["status"] for callback in bench.received] == ["failed", "failed"]


async def test_the_url_of_a_callback_is_recorded_but_not_logged(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="genhook.sandbox"):
        task = await bench.finish()
    assert bench.sandbox.callbacks_sent[0].url == CALLBACK_URL
    assert f"callback for {task.id} answered 204" in caplog.messages
    assert "ImGenuine" not in caplog.text


async def test_work_that_fails_is_logged(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.answers = [RuntimeError("the receiver of this test is broken")]
    await bench.create()
    with pytest.raises(RuntimeError):
        await bench.settle()
    assert "the work on a task failed" in caplog.text


async def test_work_ends_with_the_application() -> None:
    async with opened() as bench:
        await bench.create()
        (task,) = bench.sandbox.tasks.values()
    assert task.work is not None
    assert task.work.cancelled()
    assert bench.sandbox.client.is_closed
    assert task.prompt == PROMPT
