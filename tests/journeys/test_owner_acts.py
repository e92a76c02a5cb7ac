"""What the owner of a generation may do with it: cancel it, request it once more, delete it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.store import subscribers, tasks
from tests.contract.contract import breaches
from tests.faults import DelayedAnswer, rows, status_of
from tests.harness import SUBSCRIBER_URL, Harness, create_answer, opened, success_report
from tests.journeys.gates import check_erased, count_rows

NOTIFY_URL = "http://127.0.0.1:7/notify"
BUSY = httpx.Response(429, headers={"retry-after": "2"})


async def act(world: Harness, generation: dict[str, Any], name: str) -> httpx.Response:
    answer = await world.client.post(f"/v1/generations/{generation['id']}/{name}")
    assert breaches(answer) == []
    return answer


async def cancel(world: Harness, generation: dict[str, Any]) -> dict[str, Any]:
    answer = await act(world, generation, "cancel")
    assert answer.status_code == 200, answer.text
    canceled: dict[str, Any] = answer.json()
    return canceled


async def delete(world: Harness, generation: dict[str, Any]) -> int:
    answer = await world.client.delete(f"/v1/generations/{generation['id']}")
    assert breaches(answer) == []
    return answer.status_code


@asynccontextmanager
async def submitting(world: Harness) -> AsyncIterator[dict[str, Any]]:
    """Have upstream answer a submission only after the block."""
    delayed = DelayedAnswer(httpx.Response(200, json=create_answer("task1")))
    world.upstream.create_replies.append(delayed.reply)
    generation = await world.generate()
    await delayed.requested.wait()
    yield generation
    delayed.release()
    await world.app.worker.submitter.settle()


async def test_a_canceled_generation_ends_with_one_event_and_nobody_asks_any_more(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe()
        generation = await world.generate(notify_url=NOTIFY_URL)
        canceled = await cancel(world, generation)
        assert (canceled["status"], canceled["credits"]) == ("canceled", None)
        assert canceled["error"]["code"] == "canceled"
        assert "bill" in canceled["error"]["message"]
        assert canceled["completed_at"] is not None
        world.upstream.finish("task1")
        for seconds in (61, 3_601, 90_000):
            await world.run(seconds)
        assert world.upstream.polls == []
        types = sorted(world.subscribers.event_types())
        assert types == ["generation.canceled", "generation.submitted"]
        assert world.subscribers.event_types(NOTIFY_URL) == ["generation.canceled"]
        [usage] = (await world.get("/v1/usage"))["data"]
        assert (usage["generations"], usage["canceled"], usage["credits"]) == (1, 1, 0)


async def test_who_waits_for_a_generation_is_told_at_once_that_it_was_canceled(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        waiting = asyncio.create_task(world.get(f"/v1/generations/{generation['id']}", wait=60))
        await asyncio.sleep(0)  # noqa: TID251  so that it begins to wait
        await cancel(world, generation)
        assert (await waiting)["status"] == "canceled"


@pytest.mark.parametrize("trust", ["confirm", "body"])
async def test_a_callback_after_the_cancel_is_stored_as_late_and_changes_nothing(
    tmp_path: Path, trust: str
) -> None:
    async with opened(tmp_path, callback_trust=trust) as world:
        generation = await world.generate()
        await cancel(world, generation)
        assert (await world.call_back()).status_code == 200
        await world.run(5)
        [callback] = (await world.get("/v1/callbacks"))["data"]
        assert callback["verdict"] == "late"
        assert world.upstream.polls == []
        assert await status_of(world, generation["id"]) == "canceled"


async def test_a_callback_that_waits_to_be_confirmed_is_not_asked_about_after_the_cancel(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        await world.call_back()
        await cancel(world, generation)
        await world.run(5)
        assert world.upstream.polls == []
        assert await rows(world, "SELECT * FROM confirmations") == []


async def test_a_submission_that_waits_is_never_sent_after_the_cancel_and_costs_nothing(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        world.upstream.create_replies.append(BUSY)
        generation = await world.generate()
        assert generation["status"] == "queued"
        canceled = await cancel(world, generation)
        assert (canceled["status"], canceled["credits"]) == ("canceled", 0)
        assert "before it was submitted" in canceled["error"]["message"]
        for seconds in (3, 61, 3_601):
            await world.run(seconds)
        assert len(world.upstream.creates) == 1  # The one that upstream declined.


async def test_a_declined_submission_that_was_called_back_may_be_billed_after_the_cancel(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        world.upstream.create_replies.append(BUSY)
        generation = await world.generate()
        await world.call_back({"status": "running"})
        canceled = await cancel(world, generation)
        assert canceled["credits"] is None
        assert "bill" in canceled["error"]["message"]


@pytest.mark.parametrize("late", [BUSY, httpx.Response(200, json=create_answer("task1"))])
async def test_a_submission_that_is_being_sent_is_not_sent_again_after_the_cancel(
    tmp_path: Path, late: httpx.Response
) -> None:
    async with opened(tmp_path, submit_wait_seconds=0.01) as world:
        delayed = DelayedAnswer(late)
        world.upstream.create_replies.append(delayed.reply)
        generation = await world.generate()
        await delayed.requested.wait()
        canceled = await cancel(world, generation)
        assert canceled["credits"] is None
        delayed.release()
        await world.app.worker.submitter.settle()
        for seconds in (3, 61, 3_601):
            await world.run(seconds)
        assert len(world.upstream.creates) == 1
        assert world.upstream.polls == []
        shown = await world.get(f"/v1/generations/{generation['id']}")
        assert shown["status"] == "canceled"
        assert shown["task_id"] == ("task1" if late.status_code == 200 else None)


async def test_a_submission_that_is_put_back_after_the_cancel_is_not_sent(tmp_path: Path) -> None:
    """It found no place in the process that stops, so that it certainly did not leave."""
    async with opened(tmp_path, submit_wait_seconds=0.01) as world:
        async with submitting(world) as generation:
            await cancel(world, generation)
            await world.app.worker.submitter._put_back([generation["id"]], "default")
        await world.run(3_601)
        assert len(world.upstream.creates) == 1
        [row] = await rows(world, "SELECT submit_at, next_poll_at FROM generations")
        assert dict(row) == {"submit_at": None, "next_poll_at": None}


async def test_an_answer_to_a_poll_that_comes_after_the_cancel_changes_nothing(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        delayed = DelayedAnswer(httpx.Response(200, json=success_report("task1")))
        world.upstream.poll_replies.append(delayed.reply)
        refreshing = asyncio.create_task(act(world, generation, "refresh"))
        await delayed.requested.wait()
        await cancel(world, generation)
        delayed.release()
        assert (await refreshing).json()["status"] == "canceled"
        [row] = await rows(world, "SELECT next_poll_at FROM generations")
        assert row["next_poll_at"] is None
        assert (await act(world, generation, "refresh")).json()["status"] == "canceled"
        assert len(world.upstream.polls) == 1


async def test_a_second_cancel_changes_nothing_and_an_ended_generation_answers_409(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        first = await world.generate()
        canceled = await cancel(world, first)
        world.clock.advance(5)
        assert await cancel(world, first) == canceled
        second = await world.generate()
        await world.call_back()
        answer = await act(world, second, "cancel")
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
        types = await rows(world, "SELECT type FROM events WHERE type = 'generation.canceled'")
        assert len(types) == 1


async def test_canceled_generations_are_listed_by_their_status(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate()
        canceled = await cancel(world, await world.generate())
        assert (await world.get("/v1/generations", status="canceled"))["data"] == [canceled]


@pytest.mark.parametrize("end", ["failed", "canceled", "timed_out"])
async def test_a_retry_is_a_new_generation_with_the_same_request_that_names_the_old(
    tmp_path: Path, end: str
) -> None:
    request = {"metadata": {"order": "7"}, "notify_url": NOTIFY_URL}
    async with opened(tmp_path) as world:
        old = await world.generate(**request)
        if end == "failed":
            world.upstream.fail("task1")
        elif end == "canceled":
            await cancel(world, old)
        await world.run(3_601)
        assert await status_of(world, old["id"]) == end
        answer = await act(world, old, "retry")
        assert answer.status_code == 202
        new = answer.json()
        assert new["id"] != old["id"]
        assert (new["retry_of"], new["task_id"], new["status"]) == (
            *(old["id"], "task2"),
            "processing",
        )
        names = ("model", "input", "metadata", "notify_url")
        assert {name: new[name] for name in names} == {name: old[name] for name in names}
        sent, repeated = world.upstream.creates
        assert {**sent, "callback_url": ""} == {**repeated, "callback_url": ""}
        assert sent["callback_url"] != repeated["callback_url"]
        assert await status_of(world, old["id"]) == end
        assert (await world.get(f"/v1/generations/{old['id']}"))["retry_of"] is None


async def test_a_generation_that_is_open_or_succeeded_is_not_retried(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        generation = await world.generate()
        for _ in range(2):
            answer = await act(world, generation, "retry")
            assert (answer.status_code, answer.json()["code"]) == (409, "not_retryable")
            await world.call_back()
        assert len(world.upstream.creates) == 1


async def test_a_retry_honours_its_idempotency_key_for_each_generation(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        headers = {"Idempotency-Key": "again"}
        olds = [await cancel(world, await world.generate()) for _ in range(2)]
        paths = [f"/v1/generations/{old['id']}/retry" for old in (olds[0], *olds)]
        answers = [await world.client.post(path, headers=headers) for path in paths]
        assert [answer.status_code for answer in answers] == [202, 202, 422]
        assert answers[0].content == answers[1].content
        assert answers[1].headers["idempotency-replayed"] == "true"
        assert answers[2].json()["code"] == "idempotency_key_reused"
        assert len(world.upstream.creates) == 3


async def test_a_deleted_generation_leaves_nothing_but_its_usage(tmp_path: Path) -> None:
    """Of the subscriber of its `notify_url` the row stays until its retention."""
    async with opened(tmp_path) as world:
        await world.subscribe()
        headers = {"Idempotency-Key": "k-1"}
        body = {"model": "imagen4", "input": {"prompt": "a SECRET harbour"}}
        body |= {"metadata": {"order": "SECRET"}, "notify_url": NOTIFY_URL}
        created = await world.client.post("/v1/generations", json=body, headers=headers)
        generation = created.json()
        world.upstream.finish("task1", "https://cdn.example/SECRET.png")
        await world.call_back()
        await world.run()
        before = await count_rows(world)
        assert 0 not in before.values()
        assert await delete(world, generation) == 204
        await check_erased(world)
        [answer] = await rows(world, "SELECT sealed_answer FROM idempotency")
        assert answer["sealed_answer"] is None
        [usage] = (await world.get("/v1/usage"))["data"]
        assert (usage["generations"], usage["succeeded"]) == (1, 1)
        assert await delete(world, generation) == 404
        again = await world.client.post("/v1/generations", json=body, headers=headers)
        assert breaches(again) == []
        assert again.status_code == 404  # It is not submitted a second time.
        assert len(world.upstream.creates) == 1


async def test_a_cursor_of_a_deleted_event_stays_where_it_was(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        deleted = await cancel(world, await world.generate())
        pulled = await world.get("/v1/events", order="asc")
        await delete(world, deleted)
        assert (await world.get("/v1/events"))["data"] == []
        assert (await world.client.get(f"/v1/events/{pulled['next']}")).status_code == 404
        kept = await cancel(world, await world.generate())
        later = await world.get("/v1/events", order="asc", after=pulled["next"])
        assert [event["data"]["id"] for event in later["data"]] == [kept["id"]] * 2


async def test_an_open_generation_is_deleted_only_after_it_was_canceled(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        assert await delete(world, generation) == 409
        await cancel(world, generation)
        assert await delete(world, generation) == 204


async def test_the_callback_url_of_a_deleted_generation_answers_404_and_stores_nothing_of_it(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        generation = await cancel(world, await world.generate())
        await delete(world, generation)
        answer = await world.call_back()
        assert (answer.status_code, answer.json()["code"]) == (404, "token_invalid")
        [row] = await rows(world, "SELECT generation_id, headers, body FROM callback_bodies")
        assert [row["generation_id"], *map(len, (row["headers"], row["body"]))] == ["", 2, 0]


async def test_pending_deliveries_of_a_deleted_generation_are_not_sent(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe()
        world.subscribers.answers[SUBSCRIBER_URL].extend([503] * 10)
        deleted, kept = [await cancel(world, await world.generate()) for _ in range(2)]
        await world.run()
        first = len(world.subscribers.webhooks)
        world.subscribers.answers.clear()
        assert await delete(world, deleted) == 204
        await world.run(3_600)
        await world.run(3_600)
        delivered = await rows(world, "SELECT generation_id FROM deliveries")
        assert {row["generation_id"] for row in delivered} == {kept["id"]}
        later = world.subscribers.webhooks[first:]
        assert {webhook.event["data"]["id"] for webhook in later} == {kept["id"]}
        assert await world.app.database.read(subscribers.get_revision) > 0  # For other processes.


async def test_an_attempt_under_way_leaves_no_row_after_its_generation_was_deleted(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(event_types=["generation.canceled"])
        generation = await cancel(world, await world.generate())

        async def erase_meanwhile() -> int:
            assert await delete(world, generation) == 204
            return 200

        world.subscribers.answers[SUBSCRIBER_URL].append(erase_meanwhile)
        await world.run()
        assert world.subscribers.event_types() == ["generation.canceled"]
        counts = await count_rows(world, "deliveries", "attempts")
        assert counts == {"deliveries": 0, "attempts": 0}


async def test_a_running_replay_passes_over_what_was_deleted(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        deleted, kept = [await cancel(world, await world.generate()) for _ in range(2)]
        subscriber = await world.subscribe(event_types=["generation.canceled"])
        span = {"since": "2026-11-01T00:00:00Z", "until": "2027-01-01T00:00:00Z"}
        new = {"subscriber_id": subscriber["id"], "only": "all", **span}
        replay = (await world.client.post("/v1/replays", json=new)).json()
        assert replay["total"] == 2
        assert await delete(world, deleted) == 204
        await world.run(1)
        shown = await world.get(f"/v1/replays/{replay['id']}")
        assert (shown["status"], shown["done"]) == ("done", 1)
        sent = [webhook.event["data"]["id"] for webhook in world.subscribers.webhooks]
        assert sent == [kept["id"]]


async def test_an_answer_that_comes_after_the_deletion_is_stored_nowhere(tmp_path: Path) -> None:
    async with opened(tmp_path, submit_wait_seconds=0.01) as world:
        async with submitting(world) as generation:
            await cancel(world, generation)
            assert await delete(world, generation) == 204
        await world.run(3_601)
        await check_erased(world)


async def test_an_answer_to_a_poll_that_comes_after_the_deletion_is_stored_nowhere(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        delayed = DelayedAnswer(httpx.Response(200, json=success_report("task1")))
        world.upstream.poll_replies.append(delayed.reply)
        refreshing = asyncio.create_task(act(world, generation, "refresh"))
        await delayed.requested.wait()
        await cancel(world, generation)
        assert await delete(world, generation) == 204
        delayed.release()
        assert (await refreshing).status_code == 404
        await check_erased(world)


async def test_a_deleted_generation_learns_no_other_name_of_its_task(tmp_path: Path) -> None:
    """The answer to a question that was under way may name one."""
    async with opened(tmp_path) as world:
        generation = await cancel(world, await world.generate())
        learn = tasks.learn_name
        await world.app.database.write(learn, "known", generation["id"])
        assert await count_rows(world, "task_names") == {"task_names": 1}
        assert await delete(world, generation) == 204
        await world.app.database.write(learn, "late", generation["id"])
        assert await count_rows(world, "task_names") == {"task_names": 0}


async def test_the_url_of_a_deleted_generation_is_erased_unless_another_one_has_it(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        url = f"{SUBSCRIBER_URL}?user=maria"
        first, second = [await world.generate(notify_url=url) for _ in range(2)]
        for task_id in ("task1", "task2"):
            world.upstream.fail(task_id)
        await world.run(60)
        for generation, left in ((first, 1), (second, 0)):
            answer = await world.client.delete(f"/v1/generations/{generation['id']}")
            assert answer.status_code == 204
            kept = await rows(world, "SELECT url FROM subscribers")
            assert [row["url"] for row in kept] == [url] * left
        world.upstream.fail("task3")
        third = await world.generate(notify_url=url)
        await world.run(60)
        assert third["id"] in str(world.subscribers.webhooks_to(url)[-1].event)
