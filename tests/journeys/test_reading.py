"""Upstream's answers are compared with the question, and one answer may not be enough."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from service.generations.sightings import Sightings
from service.model.generation import Generation
from service.store import generations
from service.store.database import Transaction
from service.telemetry import metrics
from service.upstream import catalogue
from tests.faults import rows
from tests.harness import SUBSCRIBER_URL, Harness, create_answer, opened, success_report

pytestmark = pytest.mark.sqlite_only("what an answer means is the same on both")

PNG = "https://cdn.example/1.png"


def told(task_id: str, **data: Any) -> httpx.Response:
    return httpx.Response(200, json={"code": 200, "data": {"task_id": task_id, **data}})


async def poll(world: Harness, *answers: httpx.Response, seconds: float = 400) -> dict[str, Any]:
    """Let upstream answer the next polls of the first generation; return it."""
    for answer in answers:
        world.upstream.poll_replies.append(answer)
        await world.run(seconds)
    page = await world.get("/v1/generations")
    generation: dict[str, Any] = page["data"][-1]
    return generation


@pytest.mark.parametrize("word", ["SUCCESS", "FAILED"])
async def test_an_answer_that_names_another_task_is_not_applied(tmp_path: Path, word: str) -> None:
    async with opened(tmp_path, public_url=None) as world:
        await world.subscribe()
        await world.generate()
        stranger = told("stranger", status=word, images=[PNG + "?stranger"])
        generation = await poll(world, stranger)
        assert generation["status"] == "processing"
        world.upstream.finish("task1")
        generation = await poll(world, told("task1", status="SUCCESS", images=[PNG]))
        assert [file["url"] for file in generation["output"]["files"]] == [PNG]
        events = world.subscribers.webhooks_to(SUBSCRIBER_URL)
        assert all(b"stranger" not in webhook.body for webhook in events)


async def test_an_id_that_comes_three_times_is_another_name_of_the_task(tmp_path: Path) -> None:
    async with opened(tmp_path, public_url=None) as world:
        await world.generate()
        answer = told("behind", status="SUCCESS", images=[PNG])
        assert (await poll(world, answer, answer))["status"] == "processing"
        generation = await poll(world, answer)
        assert (generation["status"], generation["task_id"]) == ("succeeded", "task1")


async def test_the_task_of_another_generation_is_never_another_name(tmp_path: Path) -> None:
    async with opened(tmp_path, public_url=None) as world:
        await world.generate()
        await world.generate()
        world.upstream.poll_replies.clear()
        world.upstream.tasks["task1"] = {"task_id": "task2", "status": "SUCCESS", "output": [PNG]}
        for _ in range(6):
            await world.run(300)
        first = (await world.get("/v1/generations"))["data"][-1]
        assert first["status"] == "processing"


def test_what_answers_said_is_remembered_in_few_bytes() -> None:
    sighting = Sightings().note("gen_a", "https://cdn.example/" * 10_000, 0)
    assert len(msgspec.json.encode(sighting)) < 200


def test_an_id_that_is_met_for_a_second_task_is_no_name() -> None:
    sightings = Sightings()
    assert [sightings.note_alias("gen_a", "t", "x", at) for at in range(3)] == [False, False, True]
    assert not sightings.note_alias("gen_b", "u", "x", 3)
    assert not sightings.note_alias("gen_a", "t", "x", 4)


async def test_a_believed_callback_that_names_another_task_is_a_hint(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await world.generate()
        generation = await world.generate()
        await world.call_back(success_report("task1"), index=1)
        shown = await world.get(f"/v1/generations/{generation['id']}")
        assert shown["status"] == "processing"
        await world.run()
        assert world.upstream.polls == ["task2"]
        await world.call_back(success_report("task2"), index=1)
        shown = await world.get(f"/v1/generations/{generation['id']}")
        assert shown["status"] == "succeeded"


async def test_a_task_that_is_done_ends_though_it_has_no_link(tmp_path: Path) -> None:
    async with opened(tmp_path, public_url=None) as world:
        await world.generate()
        answer = told("task1", status="SUCCESS", text="what was said")
        generation = await poll(world, answer, answer, answer, seconds=15)
        assert generation["status"] == "processing"
        generation = await poll(world, answer, seconds=15)
        assert (generation["status"], generation["output"]["files"]) == ("succeeded", [])
        assert generation["output"]["raw"]["data"]["text"] == "what was said"


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("/f/a.png", "https://upstream.test/f/a.png"),
        ("f/a.png", "https://upstream.test/api/v1/f/a.png"),
        ("../f/a.png", "https://upstream.test/api/f/a.png"),
    ],
)
async def test_a_relative_link_is_shown_from_the_url_of_upstream(
    tmp_path: Path, path: str, url: str
) -> None:
    upstream_url = "https://upstream.test/api/v1"
    async with opened(tmp_path, public_url=None, upstream_url=upstream_url) as world:
        await world.generate()
        generation = await poll(world, told("task1", status="SUCCESS", image_url=path))
        assert [file["url"] for file in generation["output"]["files"]] == [url]


@pytest.mark.sqlite_only("it runs due work hundreds of times")
@pytest.mark.parametrize("safety_poll_seconds", [0.0, 0.5, 60.0, 1_000.0])
@pytest.mark.parametrize("model", ["imagen4", "imagen4 called back", "ideogram-v3-turbo"])
async def test_a_task_that_is_done_without_a_link_is_asked_about_three_more_times(
    tmp_path: Path, safety_poll_seconds: float, model: str
) -> None:
    async with opened(tmp_path, safety_poll_seconds=safety_poll_seconds) as world:
        generation = await world.generate(model.split(maxsplit=1)[0])
        world.upstream.tasks["task1"] = {"task_id": "task1", "status": "SUCCESS", "text": "x"}
        if "called back" in model:
            await world.call_back(success_report("task1"))
        asked: list[int] = []
        for second in range(1_000):
            before = len(world.upstream.polls)
            await world.run(1 if second else 0)
            asked += [second] * (len(world.upstream.polls) - before)
            if (await shown(world, generation))["status"] == "succeeded":
                break
        assert [second - asked[0] for second in asked] == [0, 15, 30, 45]


async def test_asking_more_often_for_a_client_ends_the_wait_for_files_no_sooner(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, public_url=None) as world:
        generation = await world.generate()
        world.upstream.tasks["task1"] = {"task_id": "task1", "status": "SUCCESS", "text": "x"}
        for _ in range(40):
            await world.client.post(f"/v1/generations/{generation['id']}/refresh")
            await world.run(1)
        assert (await shown(world, generation))["status"] == "processing"
        world.upstream.finish("task1", PNG)
        await world.run(6)
        generation = await shown(world, generation)
        assert [file["url"] for file in generation["output"]["files"]] == [PNG]


async def test_a_cover_is_the_result_only_if_nothing_better_follows(tmp_path: Path) -> None:
    async with opened(tmp_path, public_url=None) as world:
        covers = [told("task1", status="SUCCESS", cover_url=f"{PNG}?s={n}") for n in range(4)]
        await world.generate()
        assert (await poll(world, *covers[:3], seconds=15))["status"] == "processing"
        generation = await poll(world, covers[3], seconds=15)
        assert [file["url"] for file in generation["output"]["files"]] == [f"{PNG}?s=3"]
        await world.generate()
        await poll(world, told("task2", status="SUCCESS", cover_url=PNG), seconds=15)
        world.upstream.finish("task2", PNG + "?final")
        await world.run(60)
        second = (await world.get("/v1/generations"))["data"][0]
        assert [file["url"] for file in second["output"]["files"]] == [PNG + "?final"]


async def test_a_task_id_that_repeats_a_callback_url_is_never_shown(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe()

        def answer(body: dict[str, Any]) -> httpx.Response:
            return httpx.Response(200, json=create_answer(body["callback_url"]))

        world.upstream.on_create = answer
        generation = await world.generate()
        await world.run(4_000)
        assert generation["task_id"] is None
        shown_again = await world.get(f"/v1/generations/{generation['id']}")
        assert (shown_again["status"], shown_again["task_id"]) == ("timed_out", None)
        token = world.upstream.callback_url().rpartition("/")[2].encode()
        webhooks = world.subscribers.webhooks_to(SUBSCRIBER_URL)
        assert webhooks
        assert all(token not in webhook.body for webhook in webhooks)


@pytest.mark.parametrize("data", [{"output": [PNG]}, {"images": [PNG]}, {"image_url": PNG}])
@pytest.mark.parametrize("word", ["Melted", None])
async def test_files_beside_no_known_word_need_three_answers_in_a_minute(
    tmp_path: Path, data: dict[str, Any], word: str | None
) -> None:
    async with opened(tmp_path, public_url=None) as world:
        await world.generate()
        answer = told("task1", status=word, **data)
        assert (await poll(world, answer, answer, seconds=30))["status"] == "processing"
        generation = await poll(world, answer, seconds=30)
        assert generation["status"] == "succeeded"


async def test_an_unknown_word_alone_ends_at_the_deadline_with_its_reason(tmp_path: Path) -> None:
    async with opened(tmp_path, public_url=None) as world:
        await world.generate()
        generation = await poll(world, told("task1", status="Melting"), seconds=3_600)
        assert generation["status"] == "timed_out"
        assert generation["error"]["code"] == "unknown_status"
        assert "Melting" in generation["error"]["message"]


async def test_secrets_are_cut_out_of_the_urls_of_files(tmp_path: Path) -> None:
    async with opened(tmp_path, public_url=None, upstream_api_key="sk-live-0123456789") as world:
        await world.generate()
        images = [f"{PNG}?key=sk-live-0123456789", "/files/a.png"]
        generation = await poll(world, told("task1", status="SUCCESS", images=images))
        urls = [file["url"] for file in generation["output"]["files"]]
        assert urls == [f"{PNG}?key=[redacted]", "http://upstream.test/files/a.png"]


async def test_an_opaque_id_is_encoded_in_the_path(tmp_path: Path) -> None:
    async with opened(tmp_path, public_url=None) as world:
        paths: list[bytes] = []

        def answer(request: httpx.Request) -> httpx.Response:
            paths.append(request.url.raw_path)
            return told("../a b?c#d", status="SUCCESS", images=[PNG])

        world.upstream.create_replies.append(httpx.Response(200, json=create_answer("../a b?c#d")))
        world.upstream.poll_replies.append(answer)
        await world.generate()
        await world.run(60)
        assert paths == [b"/api/v1/tasks/..%2Fa%20b%3Fc%23d"]
        assert (await world.get("/v1/generations"))["data"][0]["status"] == "succeeded"


async def test_a_failure_without_a_known_reason_shows_what_upstream_said(tmp_path: Path) -> None:
    async with opened(tmp_path, public_url=None) as world:
        await world.generate()
        generation = await poll(world, told("task1", status="FAILED", odd={"why": "too blue"}))
        assert "too blue" in generation["error"]["message"]


async def test_a_submission_declined_with_an_unknown_code_is_repeated_with_a_bound(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, public_url=None) as world:
        answer = {"success": False, "message": "?"}
        world.upstream.on_create = lambda _: httpx.Response(200, json=answer)
        await world.generate()
        for _ in range(12):
            await world.run(60)
        assert len(world.upstream.creates) == 6


@pytest.mark.parametrize("count", [10**19, 1e300, 2**62])
def test_credits_fit_in_a_column_whatever_the_input(count: float) -> None:
    model = catalogue.load()["imagen4"]
    amount = catalogue.credits(model, {"prompt": "x", "num_images": count})
    assert amount == catalogue.CREDITS_MAX
    assert msgspec.json.encode(amount)


# Tasks that two generations have


async def create(world: Harness, *answers: Any, **input_: Any) -> dict[str, Any]:
    world.upstream.create_replies.extend(httpx.Response(200, json=answer) for answer in answers)
    return await world.generate(**input_)


async def shown(world: Harness, generation: dict[str, Any]) -> dict[str, Any]:
    return await world.get(f"/v1/generations/{generation['id']}")


async def test_equal_generations_share_a_task_and_one_answer_ends_both(tmp_path: Path) -> None:
    async with opened(tmp_path, public_url=None) as world:
        await world.subscribe()
        first = await create(world, create_answer("shared"))
        second = await create(world, create_answer("shared"))
        world.upstream.finish("shared")
        answer = await world.client.post(f"/v1/generations/{second['id']}/refresh")
        assert answer.json()["status"] == "succeeded"
        assert (await shown(world, first))["status"] == "succeeded"
        assert world.upstream.polls == ["shared"]
        await world.run(60)
        assert world.subscribers.event_types().count("generation.succeeded") == 2
        assert world.upstream.polls == ["shared"]


async def test_a_poll_without_an_end_reads_no_generation_but_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_ids: list[list[str]] = []

    async def lock_with_sharers(tx: Transaction, ids: Collection[str]) -> dict[str, Generation]:
        read_ids.append(list(ids))
        return await get(tx, ids)

    get = generations.lock_with_sharers
    monkeypatch.setattr(generations, "lock_with_sharers", lock_with_sharers)
    async with opened(tmp_path, public_url=None) as world:
        first = await create(world, create_answer("shared"))
        second = await create(world, create_answer("shared"))
        await world.client.post(f"/v1/generations/{first['id']}/refresh")
        assert (world.upstream.polls, read_ids) == (["shared"], [])
        world.upstream.finish("shared")
        await world.run(60)
        assert len(read_ids) == 1
        assert (await shown(world, second))["status"] == "succeeded"


async def test_equal_inputs_share_a_task_in_whatever_order_their_fields_are(
    tmp_path: Path,
) -> None:
    input_ = {"prompt": "a cat", "num_images": 1}
    async with opened(tmp_path, public_url=None) as world:
        await create(world, create_answer("shared"), input=input_)
        reordered = dict(reversed(input_.items()))
        second = await create(world, create_answer("shared"), input=reordered)
        assert (await shown(world, second))["task_id"] == "shared"


@pytest.mark.parametrize("answer", [create_answer("task1"), success_report("task1")])
async def test_a_create_answer_with_the_task_of_another_generation_is_a_conflict(
    tmp_path: Path, answer: dict[str, Any]
) -> None:
    async with opened(tmp_path, public_url=None) as world:
        first = await world.generate(input={"prompt": "a cat"})
        second = await create(world, answer, input={"prompt": "a dog"})
        second = await shown(world, second)
        assert (second["status"], second["error"]["code"]) == ("failed", "task_id_conflict")
        assert second["task_id"] is None
        assert len(world.upstream.creates) == 2
        world.upstream.finish("task1")
        await world.run(60)
        assert (await shown(world, first))["status"] == "succeeded"
        assert (await shown(world, second))["output"] is None
        assert len(world.upstream.creates) == 2


# Other names of tasks


async def test_a_learned_name_is_kept_over_a_restart_and_proves_what_takes_several_answers(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, public_url=None) as world:
        await world.generate()
        working = told("behind", status="IN_PROGRESS")
        await poll(world, working, working, working)
        await world.restart()
        done = told("behind", status="SUCCESS", text="what was said")
        generation = await poll(world, done, done, done, seconds=60)
        assert generation["status"] == "processing"
        generation = await poll(world, done, seconds=60)
        assert (generation["status"], generation["task_id"]) == ("succeeded", "task1")


async def test_a_name_that_a_second_generation_meets_is_revoked_for_good(tmp_path: Path) -> None:
    async with opened(tmp_path, public_url=None) as world:
        await world.generate()
        working = told("behind", status="IN_PROGRESS")
        await poll(world, working, working, working)
        second = await world.generate(input={"prompt": "another"})
        world.upstream.tasks["task1"] = {"status": "IN_PROGRESS"}
        world.upstream.tasks["task2"] = {"task_id": "behind", "status": "SUCCESS", "output": [PNG]}
        await world.run(300)
        await world.restart()
        done = {"task_id": "behind", "status": "SUCCESS", "output": [PNG]}
        world.upstream.tasks |= {"task1": done, "task2": done}
        for _ in range(4):
            await world.run(300)
        page = await world.get("/v1/generations")
        assert [generation["status"] for generation in page["data"]] == ["processing"] * 2
        assert (await shown(world, second))["task_id"] == "task2"


async def test_a_learned_name_is_never_believed_in_a_callback(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        generation = await world.generate()
        working = told("behind", status="IN_PROGRESS")
        await poll(world, working, working, working, seconds=700)
        await world.call_back(success_report("behind"))
        assert (await shown(world, generation))["status"] == "processing"


async def test_a_learned_name_yields_to_the_create_answer_that_gives_it_to_another(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, public_url=None) as world:
        first = await world.generate()
        working = told("behind", status="IN_PROGRESS")
        await poll(world, working, working, working)
        second = await create(world, create_answer("behind"), input={"prompt": "another"})
        done = {"task_id": "behind", "status": "SUCCESS", "output": [PNG]}
        world.upstream.tasks |= {"task1": done, "behind": done}
        await world.run(300)
        assert (await shown(world, second))["status"] == "succeeded"
        [name] = await rows(world, "SELECT is_revoked FROM task_names")
        assert name["is_revoked"]
        # Its own task is still asked about, and answers with the other's id prove nothing any more.
        assert (await shown(world, first))["status"] == "processing"
        world.upstream.tasks["task1"] = {"status": "SUCCESS", "output": [PNG]}
        await world.run(300)
        assert (await shown(world, first))["status"] == "succeeded"


# Envelopes without a task


def declined(status: int = 200, code: int = 422, message: str = "no such size") -> httpx.Response:
    return httpx.Response(status, json={"code": code, "msg": message, "data": None})


async def poll_first(
    world: Harness, answer: httpx.Response, *, times: int, other: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Let upstream answer so often about the first generation, and about others in the same way."""

    def play(request: httpx.Request) -> httpx.Response:
        task_id = request.url.path.rpartition("/")[2]
        return answer if task_id == "task1" or other is None else told(task_id, **other)

    for _ in range(times):
        world.upstream.poll_replies.extend([play] * 2)
        await world.run(330)
    page = await world.get("/v1/generations")
    generation: dict[str, Any] = page["data"][-1]
    return generation


@pytest.mark.parametrize("status", [200, 422])
async def test_a_question_that_is_declined_five_times_alike_fails_its_generation(
    tmp_path: Path, status: int
) -> None:
    async with opened(tmp_path, public_url=None) as world:
        await world.generate()
        await world.generate()
        working = {"status": "IN_PROGRESS"}
        generation = await poll_first(world, declined(status), times=4, other=working)
        assert generation["status"] == "processing"
        generation = await poll_first(world, declined(status), times=1, other=working)
        assert generation["status"] == "failed"
        assert generation["error"] == {"code": "422", "message": "no such size"}


async def test_a_route_that_declines_all_questions_ends_nothing_and_is_shown(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, public_url=None) as world:
        await world.generate()
        await world.generate()
        generation = await poll_first(world, declined(), times=7)
        assert generation["status"] == "processing"
        ready = await world.get("/readyz")
        assert ready["status"] == "ready"
        assert "/tasks/{task_id}" in ready["checks"]["upstream"]
        await poll_first(world, told("task1", status="IN_PROGRESS"), times=1)
        assert (await world.get("/readyz"))["checks"]["upstream"] == "ok"


@pytest.mark.parametrize("code", [401, 402, 403, 408, 425, 430, 455, 500, 503])
@pytest.mark.parametrize("status", [200, None])
async def test_trouble_with_the_question_never_ends_a_generation(
    tmp_path: Path, code: int, status: int | None
) -> None:
    async with opened(tmp_path, public_url=None, deadline_seconds=86_400) as world:
        await world.generate()
        await world.generate()
        answer = declined(status or code, code, "the key was rotated")
        generation = await poll_first(world, answer, times=7, other={"status": "IN_PROGRESS"})
        assert generation["status"] == "processing"
        world.upstream.finish("task1")
        await world.run(600)
        page = await world.get("/v1/generations", status="succeeded")
        assert len(page["data"]) == 1


async def test_a_moved_task_route_ends_nothing_and_is_the_reason_at_the_deadline(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, public_url=None) as world:
        await world.generate()
        moved = httpx.Response(308, headers={"location": "https://new.test/v2/tasks"})
        generation = await poll(world, moved, moved, seconds=300)
        assert generation["status"] == "processing"
        generation = await poll(world, moved, seconds=3_000)
        assert generation["status"] == "timed_out"
        assert "https://new.test/v2/tasks" in generation["error"]["message"]
        world.upstream.finish("task1")
        await world.run(600)
        assert (await shown(world, generation))["status"] == "succeeded"


# What is paid for is not thrown away


@pytest.mark.parametrize(
    "data",
    [
        {"status": "Painting", "progress": 40, "output": [PNG]},
        {"status": "Painting", "progress": "99%", "output": [PNG]},
        {"progress": 40, "preview": PNG, "images": [PNG]},
        {"status": "Painting", "image_url": "https://in.example/mine.png"},
        {"images": ["https://in.example/mine.png"]},
        {"type": "SUCCESS", "response_data": [{"status": "text", "audio_url": PNG}]},
        {"type": "SUCCESS", "response_data": [{"status": "first", "audio_url": PNG}, {}]},
    ],
)
async def test_a_preview_a_stage_or_an_input_is_no_result(
    tmp_path: Path, data: dict[str, Any]
) -> None:
    async with opened(tmp_path, public_url=None, deadline_seconds=86_400) as world:
        await world.generate(
            "unheard-of", input={"prompt": "x", "image_url": "https://in.example/mine.png"}
        )
        answer = told("task1", **data)
        assert (await poll(world, *[answer] * 6))["status"] == "processing"
        world.upstream.finish("task1", PNG + "?done")
        await world.run(400)
        [generation] = (await world.get("/v1/generations"))["data"]
        assert [file["url"] for file in generation["output"]["files"]] == [PNG + "?done"]


async def test_files_that_change_beside_an_unknown_word_are_no_result(tmp_path: Path) -> None:
    async with opened(tmp_path, public_url=None) as world:
        await world.generate()
        answers = [told("task1", status="Melted", output=[f"{PNG}?{n}"]) for n in range(6)]
        assert (await poll(world, *answers))["status"] == "processing"


async def test_a_task_that_is_done_without_a_link_ends_at_the_deadline_at_once(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, public_url=None) as world:
        await world.generate()
        generation = await poll(world, told("task1", status="SUCCESS", text="x"), seconds=3_600)
        assert (generation["status"], generation["output"]["files"]) == ("succeeded", [])


async def test_a_queue_word_that_nobody_listed_is_counted_and_a_late_result_is_taken(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, public_url=None) as world:
        await world.generate()
        before = metrics.unknown_words.values[()]
        generation = await poll(world, told("task1", status="In der Schlange"), seconds=3_600)
        assert generation["error"]["code"] == "unknown_status"
        assert metrics.unknown_words.values[()] == before + 1
        world.upstream.finish("task1")
        await world.run(600)
        assert (await shown(world, generation))["status"] == "succeeded"


async def test_a_404_that_stays_is_the_reason_at_the_deadline(tmp_path: Path) -> None:
    async with opened(tmp_path, public_url=None) as world:
        await world.generate()
        absent = httpx.Response(404, json={"detail": "we never saw it"})
        generation = await poll(world, absent, seconds=3_600)
        assert generation["status"] == "timed_out"
        assert "we never saw it" in generation["error"]["message"]


@pytest.mark.parametrize("before", [*range(470, 501, 5), 99, 95, 85])
async def test_a_reason_that_is_cut_within_a_secret_does_not_show_its_beginning(
    tmp_path: Path, before: int
) -> None:
    key = "sk-live-0123456789abcdef"
    async with opened(tmp_path, public_url=None, upstream_api_key=key) as world:
        await world.generate()
        text = "x" * (before - 10) + key
        answers = [
            told("task1", status=text),
            httpx.Response(500, content=text),
            told("task1", status="FAILED", error={"code": text, "message": text}),
        ]
        generation = await poll(world, *answers)
        assert generation["status"] == "failed"
        timeline = await world.get(f"/v1/generations/{generation['id']}/timeline")
        for found in (str(generation["error"]), str(timeline)):
            assert key[:9] not in found
