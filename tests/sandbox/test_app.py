"""The application around the routes: bounds, errors, the page at /, the log."""

import asyncio

import pytest

from service.sandbox import create_app, tasks
from service.sandbox.misbehaviour import DIRECTIVES
from service.sandbox.models import MODELS
from tests.sandbox.harness import KEY, PROMPT, SandboxHarness, running_sandbox


async def test_the_oldest_task_is_dropped_when_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "TASKS_MAX", 3)
    async with running_sandbox() as harness:
        harness.wake.set()
        for _ in range(5):
            task = await harness.finish()
            await harness.poll(task.id)
        task_ids = ["n470003_imagen4", "n470004_imagen4", "n470005_imagen4"]
        assert list(harness.sandbox.tasks) == task_ids
        assert (await harness.poll("n470002_imagen4")).status_code == 404


async def test_the_oldest_tasks_are_dropped_when_their_requests_are_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "TASKS_BYTES_MAX", 2_500)
    async with running_sandbox() as harness:
        for _ in range(5):
            await harness.create(padding="x" * 1_000)
        assert list(harness.sandbox.tasks) == ["n470004_imagen4", "n470005_imagen4"]
        assert 2_000 < harness.sandbox.tasks_bytes <= 2_500


async def test_the_work_of_a_dropped_task_is_canceled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "TASKS_MAX", 1)
    async with running_sandbox() as harness:
        await harness.create()
        (oldest,) = harness.sandbox.tasks.values()
        await harness.create()
        assert oldest.work is not None
        await asyncio.wait([oldest.work])
        assert oldest.work.cancelled()
        assert harness.callbacks == []


async def test_a_synchronous_result_is_dropped_like_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "TASKS_MAX", 1)
    async with running_sandbox() as harness:
        first = (await harness.create(directives="sync")).json()["data"]["output"]["image_urls"][0]
        await harness.create(directives="sync")
        assert (await harness.client.get(first)).status_code == 404


async def test_rate_limits_that_are_never_retried_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "TASKS_MAX", 2)
    async with running_sandbox() as harness:
        for seed in range(5):
            await harness.create(directives="rate-limit", seed=seed)
        assert len(harness.sandbox.rate_limited) == 2


async def test_a_body_that_is_too_large_is_not_read(harness: SandboxHarness) -> None:
    response = await harness.create(prompt="x" * (1 << 20))
    assert response.status_code == 413
    assert harness.sandbox.tasks == {}


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [("GET", "/api/v1/nothing", 404), ("GET", "/api/v1/images/generations", 405)],
)
async def test_errors_of_routing_have_the_same_shape(
    harness: SandboxHarness, method: str, path: str, code: int
) -> None:
    response = await harness.client.request(method, path, headers=KEY)
    assert (response.status_code, response.json()["error"]["code"]) == (code, code)


async def test_the_front_page_shows_a_call_every_model_and_every_directive(
    harness: SandboxHarness,
) -> None:
    response = await harness.client.get("/")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert "curl http://sandbox.example/api/v1/images/generations" in response.text
    words = set(response.text.replace(",", " ").replace("=N", " ").split())
    assert set(DIRECTIVES) <= words
    assert {model.name + "*" * model.callbacks for model in MODELS.values()} <= words


async def test_the_front_page_never_shows_its_key() -> None:
    async with running_sandbox(api_key="aio_private") as harness:
        text = (await harness.client.get("/")).text
        assert "accepts only its own key (aio_dev" in text
        assert "aio_private" not in text


async def test_each_request_is_one_line_in_the_log(
    harness: SandboxHarness, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="genhook.sandbox"):
        await harness.create(callback_url=None)
        await harness.poll("n479999_imagen4")
    assert caplog.messages == [
        "POST /api/v1/images/generations 200",
        "GET /api/v1/tasks/n479999_imagen4 404",
    ]


async def test_by_default_it_really_sleeps_and_makes_random_ids() -> None:
    app = create_app(speed=1e6)
    async with app.router.lifespan_context(app), running_sandbox() as harness:
        harness.app = app
        harness.client._transport.app = app  # type: ignore[attr-defined]
        task = await harness.finish(callback_url=None)
        assert (task.status, task.prompt) == ("completed", PROMPT)
        assert len(task.id) == len("n47_imagen4") + 12
