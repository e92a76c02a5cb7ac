"""An event shows its generation as the API answers it after the commit that made the event."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults import DelayedAnswer
from tests.harness import Harness, create_answer, opened, success_report

SYNCHRONOUS = {"code": 200, "data": {"status": "completed", "output": {"image_urls": ["/1.png"]}}}
FAILED = {"code": 200, "data": {"status": "failed", "error": "no luck"}}
FAILED_TASK = {"code": 200, "data": {"task_id": "task1", "status": "failed", "error": "no luck"}}
BODY = {"model": "imagen4", "input": {"prompt": "a large harbour"}}
BUSY = httpx.Response(429, headers={"retry-after": "2"})


async def latest(world: Harness) -> dict[str, Any]:
    """Return the latest event, which must show its generation as it is now."""
    event: dict[str, Any] = (await world.get("/v1/events", limit=1))["data"][0]
    assert event["data"] == await world.get(f"/v1/generations/{event['data']['id']}")
    return event


async def end_by_answer(world: Harness, answer: httpx.Response) -> None:
    world.upstream.create_replies.append(answer)
    await world.client.post("/v1/generations", json=BODY)


async def answer_with_files(world: Harness) -> None:
    await end_by_answer(world, httpx.Response(200, json=SYNCHRONOUS))


async def answer_with_files_and_a_task(world: Harness) -> None:
    await end_by_answer(world, httpx.Response(200, json=success_report("task1")))


async def answer_with_a_failure(world: Harness) -> None:
    await end_by_answer(world, httpx.Response(200, json=FAILED))


async def refuse(world: Harness) -> None:
    await end_by_answer(world, httpx.Response(422, json={"error": "no such parameter"}))


async def answer_with_the_task_of_another(world: Harness) -> None:
    await world.generate()
    await end_by_answer(world, httpx.Response(200, json=create_answer("task1")))


async def poll(world: Harness) -> None:
    await world.generate("cogview-4")
    world.upstream.finish("task1")
    await world.run(60)


async def poll_after_a_lost_answer(world: Harness) -> None:
    world.upstream.create_replies.append(httpx.ReadTimeout("no answer"))
    await world.generate()
    world.upstream.poll_replies.append(httpx.Response(200, json=SYNCHRONOUS))
    await world.call_back({"data": {"task_id": "task1", "status": "completed"}})
    await world.run()


async def poll_a_failure_after_a_lost_answer(world: Harness) -> None:
    world.upstream.create_replies.append(httpx.ReadTimeout("no answer"))
    await world.generate()
    world.upstream.fail("task1")
    await world.call_back({"data": {"task_id": "task1", "status": "completed"}})
    await world.run()


async def call_back(world: Harness) -> None:
    await world.generate()
    await world.call_back()


async def call_back_after_a_lost_answer(world: Harness) -> None:
    world.upstream.create_replies.append(httpx.ReadTimeout("no answer"))
    await world.generate()
    await world.call_back()


async def cancel(world: Harness) -> None:
    generation = await world.generate()
    await world.client.post(f"/v1/generations/{generation['id']}/cancel")


async def cancel_before_the_submission(world: Harness) -> None:
    world.upstream.create_replies.append(BUSY)
    await cancel(world)


async def time_out(world: Harness) -> None:
    await world.generate()
    await world.run(100_000)


async def time_out_without_a_task(world: Harness) -> None:
    world.upstream.create_replies.append(httpx.ReadTimeout("no answer"))
    await time_out(world)


async def succeed_late(world: Harness) -> None:
    await time_out_without_a_task(world)
    await world.call_back()


ENDS: dict[Callable[[Harness], Awaitable[None]], tuple[str, bool]] = {
    answer_with_files: ("succeeded", True),
    answer_with_files_and_a_task: ("succeeded", True),
    answer_with_a_failure: ("failed", True),
    refuse: ("failed", False),
    answer_with_the_task_of_another: ("failed", False),
    poll: ("succeeded", True),
    poll_after_a_lost_answer: ("succeeded", True),
    poll_a_failure_after_a_lost_answer: ("failed", True),
    call_back: ("succeeded", True),
    call_back_after_a_lost_answer: ("succeeded", True),
    cancel: ("canceled", True),
    cancel_before_the_submission: ("canceled", False),
    time_out: ("timed_out", True),
    time_out_without_a_task: ("timed_out", False),
    succeed_late: ("succeeded", True),
}


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
async def test_the_event_of_an_end_shows_what_a_get_answers_after_it(
    tmp_path: Path, end: Callable[[Harness], Awaitable[None]]
) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await end(world)
        event = await latest(world)
        status, was_submitted = ENDS[end]
        assert event["type"] == f"generation.{status}"
        assert (event["data"]["submitted_at"] is not None) == was_submitted


async def test_the_event_of_a_submission_shows_what_a_get_answers_after_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate()
        event = await latest(world)
        assert event["type"] == "generation.submitted"
        assert event["data"]["submitted_at"] == event["timestamp"]


@pytest.mark.parametrize("report", [success_report("task1"), SYNCHRONOUS, FAILED_TASK])
async def test_an_end_before_the_answer_to_the_submission_is_also_when_it_was_submitted(
    tmp_path: Path, report: dict[str, Any]
) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        delayed = DelayedAnswer(httpx.Response(200, json=create_answer("task1")))
        world.upstream.create_replies.append(delayed.reply)
        generation = await world.client.post(
            "/v1/generations",
            json=BODY,
            headers={"prefer": "respond-async"},
        )
        await delayed.requested.wait()
        world.clock.advance(5)
        await world.call_back(report)
        event = await latest(world)
        assert event["data"]["submitted_at"] == event["data"]["completed_at"]
        world.clock.advance(5)
        delayed.release()
        await world.app.worker.submitter.settle()
        after = await world.get(f"/v1/generations/{generation.json()['id']}")
        assert after == event["data"] | {"task_id": "task1"}


async def test_two_events_of_one_commit_show_the_generation_each_at_its_own_time(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        world.upstream.create_replies.append(httpx.ReadTimeout("no answer"))
        generation = await world.generate()
        await world.call_back({"data": {"task_id": "task1", "status": "running"}})
        await world.run(100_000)
        await world.run(10)
        page = await world.get("/v1/events", generation_id=generation["id"], order="asc")
        shown = [(e["type"], e["data"]["status"], e["data"]["task_id"]) for e in page["data"]]
        assert shown == [
            ("generation.submitted", "processing", "task1"),
            ("generation.timed_out", "timed_out", "task1"),
        ]
        await latest(world)
