"""A delivery's life: every way from pending to delivered, dead or canceled, by a driven clock."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from service.delivery.retry import DEFAULT_RETRY_SECONDS
from service.delivery.target import Answer, SenderClosed, SendError
from service.model.errors import StorageError
from tests.faults import execute
from tests.harness import START, SUBSCRIBER_URL, Harness, opened
from tests.journeys.gates import Gate, attach_worker, deliveries, delivery, queue_answers, take_over

ONE = {"event_types": ["generation.submitted"]}
OTHER_URL = "http://127.0.0.1:7/other"


def seconds_of(world: Any, url: str = SUBSCRIBER_URL) -> list[float]:
    return [(sent.at - START) / 1_000 for sent in world.subscribers.webhooks_to(url)]


@pytest.mark.parametrize("status", [200, 201, 204, 299])
async def test_a_2xx_ends_a_delivery_delivered(tmp_path: Path, status: int) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(**ONE)
        generation = await world.generate()
        queue_answers(world, Answer(status, (("x-trace", "7"),), b"thanks"))
        await world.run()
        found = await delivery(world)
        assert found["status"] == "delivered"
        assert found["generation_id"] == generation["id"]
        assert found["attempt_count"] == 1
        assert found["next_attempt_at"] is None
        assert found["delivered_at"] == "2026-11-18T11:06:40.000Z"
        assert found["last_error"] is None
        [attempt] = found["attempts"]
        assert (attempt["number"], attempt["trigger"]) == (1, "scheduled")
        assert (attempt["status_code"], attempt["error"]) == (status, None)
        assert attempt["response_headers"] == {"x-trace": "7"}
        assert attempt["response_body"] == "thanks"


@pytest.mark.parametrize("status", [301, 302, 400, 404, 409, 500])
async def test_any_other_answer_is_tried_again_and_no_redirect_is_followed(
    tmp_path: Path, status: int
) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(**ONE)
        queue_answers(world, Answer(status, (("location", OTHER_URL),), b""))
        await world.generate()
        await world.run()
        found = await delivery(world)
        assert found["status"] == "pending"
        assert found["next_attempt_at"] == "2026-11-18T11:06:45.000Z"
        assert found["last_error"] == f"The receiver answered {status}."
        assert found["attempts"][0]["error"]["code"] == f"status_{status}"
        await world.run(5)
        assert world.subscribers.webhooks_to(OTHER_URL) == []
        assert (await delivery(world))["status"] == "delivered"


@pytest.mark.sqlite_only("it runs due work hundreds of times")
async def test_the_default_schedule_is_kept_to_the_millisecond_and_ends_dead(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        created = await world.subscribe(**ONE)
        queue_answers(world, *[SendError("timeout", "No answer within 15 seconds.")] * 20)
        await world.generate()
        due: list[float] = []
        at = 0.0
        for delay in DEFAULT_RETRY_SECONDS:
            if delay:
                await world.run(delay - 0.001)
                assert seconds_of(world) == due
                await world.run(0.001)
            else:
                await world.run()
            at += delay
            due.append(at)
            assert seconds_of(world) == due
        found = await delivery(world)
        assert (found["status"], found["attempt_count"]) == ("dead", 10)
        assert found["next_attempt_at"] is None
        assert found["last_error"] == "No answer within 15 seconds."
        await world.run(1_000_000)
        assert len(world.subscribers.webhooks) == 10
        assert {sent.headers["webhook-id"] for sent in world.subscribers.webhooks} == {
            found["event_id"]
        }
        assert len({sent.headers["webhook-timestamp"] for sent in world.subscribers.webhooks}) == 10
        assert len({sent.body for sent in world.subscribers.webhooks}) == 1
        signer = Webhook(created["secret"])
        for sent in world.subscribers.webhooks:
            assert int(sent.headers["webhook-timestamp"]) == sent.at // 1_000
            moment = datetime.fromtimestamp(sent.at // 1_000, tz=UTC)
            expected = signer.sign(found["event_id"], moment, sent.body.decode())
            assert sent.headers["webhook-signature"] == expected


async def test_a_retry_after_is_a_floor_and_is_capped_at_a_day(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(**ONE, retry_schedule_seconds=[0, 5, 5, 5])
        queue_answers(world, *[Answer(500, (("retry-after", text),), b"") for text in ("60", "1")])
        queue_answers(world, Answer(500, (("retry-after", "99999999"),), b""))
        await world.generate()
        for _ in range(100):
            await world.run(5)
        assert seconds_of(world) == [5, 65, 70]
        await world.run(70 + 86_400 - 500 - 0.001)
        assert seconds_of(world) == [5, 65, 70]
        await world.run(0.001)
        assert seconds_of(world) == [5, 65, 70, 86_470]


async def test_abort_message_ends_one_delivery_and_leaves_the_subscriber(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE)
        queue_answers(world, Answer(400, (("webhook-delivery", "abort-message"),), b""))
        await world.generate()
        await world.run()
        assert (await delivery(world))["status"] == "dead"
        seen = await world.get(f"/v1/subscribers/{subscriber['id']}")
        assert seen["status"] == "active"
        await world.generate()
        await world.run(1)
        assert [found["status"] for found in await deliveries(world)] == ["dead", "delivered"]


async def test_a_dead_delivery_gets_one_more_attempt_on_request(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(**ONE, retry_schedule_seconds=[0])
        queue_answers(world, 500, 500)
        await world.generate()
        await world.run()
        dead = await delivery(world)
        assert dead["status"] == "dead"
        path = f"/v1/deliveries/{dead['id']}/retry"
        for status, count in (("dead", 2), ("delivered", 3)):
            again = await world.client.post(path)
            assert again.status_code == 202
            assert again.json()["status"] == "pending"
            assert again.json()["next_attempt_at"] == "2026-11-18T11:06:40.000Z"
            await world.run()
            found = await delivery(world)
            assert (found["status"], found["attempt_count"]) == (status, count)
            assert found["attempts"][-1]["trigger"] == "manual"
        refused = await world.client.post(path)
        assert (refused.status_code, refused.json()["code"]) == (409, "not_retryable")


async def test_the_deliveries_of_a_generation_are_found(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe()
        await world.subscribe("http://127.0.0.1:7/other")
        generations = [(await world.generate())["id"] for _ in range(2)]
        world.upstream.finish("task1")
        await world.run(600)
        found = (await world.get("/v1/deliveries", generation_id=generations[0]))["data"]
        assert {each["generation_id"] for each in found} == {generations[0]}
        types = sorted(each["event_type"] for each in found)
        assert types == ["generation.submitted"] * 2 + ["generation.succeeded"] * 2
        page = await world.get("/v1/deliveries", generation_id=generations[0], limit=3)
        rest = {"generation_id": generations[0], "limit": 3, "after": page["next"]}
        others = (await world.get("/v1/deliveries", **rest))["data"]
        assert [each["id"] for each in (*page["data"], *others)] == [each["id"] for each in found]


async def test_a_pending_delivery_does_not_wait_once_a_retry_is_asked_for(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(**ONE)
        queue_answers(world, 500, 500)
        await world.generate()
        await world.run()
        pending = await delivery(world)
        await world.client.post(f"/v1/deliveries/{pending['id']}/retry")
        await world.run()
        found = await delivery(world)
        assert [attempt["trigger"] for attempt in found["attempts"]] == ["scheduled", "manual"]
        await world.run(300)
        assert (await delivery(world))["attempts"][-1]["trigger"] == "scheduled"


async def test_what_a_deleted_subscriber_was_owed_is_canceled(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE)
        queue_answers(world, 500)
        await world.generate()
        await world.run()
        gone = await world.client.delete(f"/v1/subscribers/{subscriber['id']}")
        assert gone.status_code == 204
        await world.run(86_400)
        found = await delivery(world)
        assert (found["status"], found["next_attempt_at"]) == ("canceled", None)
        assert len(world.subscribers.webhooks) == 1
        refused = await world.client.post(f"/v1/deliveries/{found['id']}/retry")
        assert (refused.status_code, refused.json()["code"]) == (409, "not_retryable")


async def test_more_than_one_transaction_holds_is_canceled_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.store.deliveries.CANCEL_BATCH", 2)
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE)
        for _ in range(7):
            await world.generate()
        await world.client.delete(f"/v1/subscribers/{subscriber['id']}")
        assert [d["status"] for d in await deliveries(world)].count("canceled") == 2
        await world.run()
        assert {d["status"] for d in await deliveries(world)} == {"canceled"}
        assert world.subscribers.webhooks == []


async def test_a_first_attempt_that_is_due_later_leaves_on_time_while_the_worker_runs(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(**ONE, retry_schedule_seconds=[5])
        async with attach_worker(world) as dispatcher:
            await world.generate()
            await dispatcher.run_due(world.clock())
            await dispatcher.settle()
            assert await dispatcher.run_due(world.clock()) == START + 5_000
            assert world.subscribers.webhooks == []


async def test_a_delivery_that_cannot_be_sent_at_all_counts_its_attempts(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(**ONE, retry_schedule_seconds=[0, 5])

        def broken() -> Any:
            raise RuntimeError("a bug")

        queue_answers(world, broken, broken)
        await world.generate()
        await world.run()
        await world.run(5)
        found = await delivery(world)
        assert (found["status"], found["attempt_count"]) == ("dead", 2)
        assert found["attempts"][0]["error"]["code"] == "internal_error"


async def test_our_own_end_is_not_recorded_as_the_receivers_failure(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE, retry_schedule_seconds=[0])

        async def stop() -> int:
            raise SenderClosed

        queue_answers(world, stop)
        async with attach_worker(world) as dispatcher:
            await world.generate()
        assert (len(world.subscribers.webhooks), dispatcher.slots.in_use) == (1, 0)
        found = await delivery(world)
        assert (found["status"], found["attempt_count"]) == ("pending", 0)
        assert (await world.get(f"/v1/subscribers/{subscriber['id']}"))["status"] == "active"
        await world.restart()
        await world.run()
        assert (await delivery(world))["status"] == "delivered"


@pytest.mark.parametrize("schedule", [[0, 36_000], [0]])
@pytest.mark.parametrize("later", [0, 1])
async def test_a_retry_that_is_asked_for_during_an_attempt_is_made(
    tmp_path: Path, schedule: list[int], later: int
) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(**ONE, retry_schedule_seconds=schedule)
        gate = Gate(500)
        queue_answers(world, gate)
        async with attach_worker(world):
            await world.generate()
            await gate.wait_for(1)
            world.clock.advance(later)
            path = f"/v1/deliveries/{(await delivery(world))['id']}/retry"
            assert (await world.client.post(path)).status_code == 202
            gate.is_open.set()
        found = await delivery(world)
        assert (found["status"], found["attempt_count"]) == ("delivered", 2)
        assert [each["trigger"] for each in found["attempts"]] == ["scheduled", "manual"]


async def ask(world: Harness) -> None:
    path = f"/v1/deliveries/{(await delivery(world))['id']}/retry"
    assert (await world.client.post(path)).status_code == 202


async def test_retries_on_request_use_up_nothing_of_the_schedule(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(**ONE, retry_schedule_seconds=[0, 60, 600])
        queue_answers(world, *[500] * 20)
        await world.generate()
        await world.run()
        planned = (await delivery(world))["next_attempt_at"]
        for number in range(2, 8):
            await ask(world)
            await world.run(1)
            found = await delivery(world)
            assert (found["status"], found["attempt_count"]) == ("pending", number)
            assert found["next_attempt_at"] == planned
        await world.restart()
        await world.run(54)
        assert (await delivery(world))["attempts"][-1]["trigger"] == "scheduled"
        await world.run(600)
        found = await delivery(world)
        assert (found["status"], found["attempt_count"]) == ("dead", 9)
        assert [each["number"] for each in found["attempts"]] == list(range(1, 10))
        await ask(world)
        await world.run()
        assert (await delivery(world))["status"] == "dead"


async def test_a_retry_on_request_that_is_told_to_wait_makes_the_schedule_wait(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(**ONE, retry_schedule_seconds=[0, 60])
        queue_answers(world, 500, Answer(500, (("retry-after", "90"),), b""))
        await world.generate()
        await world.run()
        await ask(world)
        await world.run()
        await world.run(89)
        assert (await delivery(world))["attempt_count"] == 2
        await world.run(1)
        assert (await delivery(world))["status"] == "delivered"


@pytest.mark.parametrize(("schedule", "status"), [([0, 60, 60], "pending"), ([0, 60], "dead")])
async def test_a_retry_that_is_asked_for_during_a_scheduled_one_leaves_what_that_planned(
    tmp_path: Path, schedule: list[int], status: str
) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(**ONE, retry_schedule_seconds=schedule)
        gate = Gate(500)
        queue_answers(world, 500, gate, 500)
        await world.generate()
        await world.run()
        world.clock.advance(60)
        async with attach_worker(world) as dispatcher:
            await dispatcher.scan()
            await dispatcher.run_due(world.clock())
            await gate.wait_for(1)
            await ask(world)
            gate.is_open.set()
        found = await delivery(world)
        assert (found["status"], found["attempt_count"]) == (status, 3)
        await world.run(60)
        assert (await delivery(world))["attempt_count"] == 3 + (status == "pending")


async def test_the_latest_250_attempts_are_shown_oldest_first(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(**ONE, retry_schedule_seconds=[0, 60])
        queue_answers(world, 500)
        await world.generate()
        await world.run()
        copies = """
            WITH RECURSIVE n (n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM n WHERE n < 260)
            INSERT INTO attempts SELECT delivery_id, n, id, trigger, started_at, duration_ms,
                status_code, error_code, error_message, response_headers, response_body
            FROM attempts, n"""
        await execute(world, copies)
        found = await delivery(world)
        assert [each["number"] for each in found["attempts"]] == list(range(11, 261))


async def test_one_retry_makes_one_attempt(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(**ONE, retry_schedule_seconds=[0, 36_000, 36_000])
        queue_answers(world, 500, 500)
        await world.generate()
        await world.run()
        path = f"/v1/deliveries/{(await delivery(world))['id']}/retry"
        assert (await world.client.post(path)).status_code == 202
        await world.run()
        found = await delivery(world)
        assert (found["status"], found["attempt_count"]) == ("pending", 2)


async def test_while_storage_fails_the_slot_is_held_and_the_webhook_is_not_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(**ONE)
        await world.generate()
        context = world.app.worker.context

        def full(*_: object, **_options: object) -> Any:
            raise StorageError("the disk is full")

        with monkeypatch.context() as patched:
            patched.setattr(context.database, "write_batched", full)
            await world.run()
            await world.run(0.5)
            await world.run(0.5)
            dispatcher = world.app.worker.dispatcher
            assert dispatcher.slots.in_use == 1
            assert (await delivery(world))["status"] == "pending"
        await world.run(1.999)
        assert (await delivery(world))["status"] == "pending"
        await world.run(0.001)
        assert (await delivery(world))["status"] == "delivered"
        assert dispatcher.slots.in_use == 0
        assert len(world.subscribers.webhooks) == 1


async def test_after_a_crash_only_what_was_not_recorded_is_sent_again_under_the_same_id(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, shutdown_seconds=0) as world:
        await world.subscribe(**ONE)
        await world.generate()
        await world.run()
        gate = Gate()
        queue_answers(world, gate)
        await world.generate()
        assert world.app.worker is not None
        ticking = asyncio.create_task(world.app.worker.tick(60))
        await gate.wait_for(1)  # The receiver has it, the database does not know.
        old = await take_over(world)
        await world.run()
        ids = [sent.headers["webhook-id"] for sent in world.subscribers.webhooks]
        assert len(ids) == 3
        assert ids[0] != ids[1] == ids[2]
        assert [found["status"] for found in await deliveries(world)] == ["delivered"] * 2
        gate.is_open.set()
        await ticking  # What the dead process records late changes nothing.
        late = (await deliveries(world))[1]
        assert (late["status"], late["attempt_count"]) == ("delivered", 1)
        await old.stop()


async def test_one_subscriber_in_ten_that_hangs_delays_nobody(tmp_path: Path) -> None:
    urls = [f"http://127.0.0.1:7/{number}" for number in range(10)]
    async with opened(tmp_path, shutdown_seconds=0, max_in_flight=12) as world:
        hanging, healthy = Gate(), Gate()
        healthy.is_open.set()
        queue_answers(world, *[hanging] * 20, url=urls[0])
        for url in urls:
            await world.subscribe(url, **ONE)
        for url in urls[1:]:
            queue_answers(world, *[healthy] * 20, url=url)
        assert world.app.worker is not None
        world.app.worker.start()
        for _ in range(20):
            await world.generate()
        await healthy.wait_for(9 * 20)
        await hanging.wait_for(6)
        assert hanging.waiting == hanging.requests == 6  # Half of all slots, fewer than its window.
        assert {len(world.subscribers.webhooks_to(url)) for url in urls[1:]} == {20}
