"""Subscribers: who hears of what, what exactly is sent, and how a change takes hold."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from service.delivery.target import SendError
from tests.harness import SUBSCRIBER_URL, SentWebhook, opened
from tests.journeys.gates import Gate, deliveries, queue_answers

OTHER_URL = "http://127.0.0.1:7/other"
NOTIFY_URL = "http://127.0.0.1:7/notify"


def signed_by(secret: str, sent: SentWebhook) -> str:
    """What the published library makes of what was sent."""
    at = datetime.fromtimestamp(int(sent.headers["webhook-timestamp"]), UTC)
    return Webhook(secret).sign(sent.headers["webhook-id"], at, sent.body.decode())


@pytest.mark.parametrize(
    ("fields", "heard"),
    [
        ({}, ["submitted", "failed", "submitted"]),
        ({"event_types": ["generation.failed"]}, ["failed"]),
        ({"event_types": ["ping"]}, []),
        ({"filter": {"models": ["imagen4"]}}, ["submitted", "failed"]),
        ({"filter": {"models": ["imagen4-fast", "imagen4"]}}, ["submitted", "failed", "submitted"]),
        ({"filter": {"metadata": {"team": "a"}}}, ["submitted", "failed"]),
        ({"filter": {"metadata": {"team": "a", "more": "y"}}}, []),
        ({"filter": {"models": ["imagen4-fast"], "metadata": {"team": "a"}}}, []),
    ],
)
async def test_a_subscriber_hears_of_exactly_what_it_asked_for(
    tmp_path: Path, fields: dict[str, Any], heard: list[str]
) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await world.subscribe(**fields)
        await world.generate("imagen4", metadata={"team": "a", "more": "x"})
        failed = {"data": {"task_id": "task1", "status": "failed"}}
        assert (await world.call_back(failed)).is_success
        await world.generate("imagen4-fast", metadata={"team": "b"})
        await world.run()
        # In any order: it is not `ordered`.
        types = [f"generation.{word}" for word in heard]
        assert sorted(world.subscribers.event_types()) == sorted(types)


async def test_what_is_sent_is_said_to_the_last_header(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        made = await world.subscribe(headers={"X-Team": "pictures", "Authorization": "Bearer s"})
        generation = await world.generate()
        await world.run()
        [sent] = world.subscribers.webhooks
        event = (await world.get("/v1/events"))["data"][0]
        assert sent.headers == {
            "X-Team": "pictures",
            "Authorization": "Bearer s",
            "content-type": "application/json",
            "user-agent": "genhook",
            "webhook-id": event["id"],
            "webhook-timestamp": str(world.clock() // 1_000),
            "webhook-signature": signed_by(made["secret"], sent),
        }
        raw = await world.client.get(f"/v1/events/{event['id']}")
        assert sent.body == raw.content
        assert sent.event == {
            "id": event["id"],
            "type": "generation.submitted",
            "timestamp": "2026-11-18T11:06:40.000Z",
            "data": generation,
        }


async def test_a_test_shows_what_was_sent_and_what_came_back(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        made = await world.subscribe(headers={"X-Team": "pictures"}, event_types=["ping"])
        answered = await world.client.post(f"/v1/subscribers/{made['id']}/test")
        assert answered.status_code == 200
        shown = answered.json()
        [sent] = world.subscribers.webhooks
        assert shown["request"] == {
            "url": SUBSCRIBER_URL,
            "headers": {**sent.headers, "X-Team": "[redacted]"},
            "body": sent.body.decode(),
        }
        assert sent.headers["X-Team"] == "pictures"
        assert sent.headers["webhook-signature"] == signed_by(made["secret"], sent)
        assert sent.event["type"] == "ping"
        assert sent.event["data"] == {"subscriber_id": made["id"]}
        attempt = shown["attempt"]
        assert (attempt["number"], attempt["trigger"], attempt["status_code"]) == (1, "test", 200)
        [kept] = await deliveries(world, subscriber_id=made["id"])
        assert (kept["status"], kept["event_type"]) == ("delivered", "ping")
        stored = await world.get(f"/v1/deliveries/{kept['id']}")
        assert stored["attempts"] == [attempt]


async def test_a_test_that_fails_is_an_answer_too_and_is_not_tried_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        made = await world.subscribe()
        queue_answers(world, SendError("connect_refused", "Nobody listens there."), 503)
        for code in ("connect_refused", "status_503"):
            answered = await world.client.post(f"/v1/subscribers/{made['id']}/test")
            assert answered.status_code == 200
            assert answered.json()["attempt"]["error"]["code"] == code
        await world.run(86_400)
        assert len(world.subscribers.webhooks) == 2
        assert {found["status"] for found in await deliveries(world)} == {"dead"}
        seen = await world.get(f"/v1/subscribers/{made['id']}")
        assert seen["status"] == "active"


async def test_tests_take_slots_so_that_they_delay_no_delivery(tmp_path: Path) -> None:
    async with opened(tmp_path, max_in_flight=20) as world:
        gate = Gate()
        paths = []
        for number in range(30):
            url = f"http://127.0.0.1:{100 + number}/"
            paths.append(f"/v1/subscribers/{(await world.subscribe(url))['id']}/test")
            queue_answers(world, gate, gate, url=url)
        tests = [asyncio.ensure_future(world.client.post(path)) for path in paths * 2]
        await gate.wait_for(1)
        slots = world.app.worker.dispatcher.slots
        while sum(test.done() for test in tests) < len(tests) - slots.in_use:
            await world.get("/v1/subscribers")
        await gate.wait_for(slots.in_use)  # A test that has a slot is stored before it is sent.
        assert slots.in_use == gate.most_waiting == 14
        gate.is_open.set()
        answers = await asyncio.gather(*tests)
        assert sorted(answer.status_code for answer in answers) == [200] * 14 + [429] * 46
        assert slots.in_use == 0
        assert (await world.client.post(paths[0])).status_code == 200


async def test_of_one_subscriber_two_tests_run_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        gate = Gate()
        queue_answers(world, gate, gate)
        path = f"/v1/subscribers/{(await world.subscribe())['id']}/test"
        tests = [asyncio.ensure_future(world.client.post(path)) for _ in range(2)]
        await gate.wait_for(2)
        assert (await world.client.post(path)).status_code == 429
        gate.is_open.set()
        assert [answer.status_code for answer in await asyncio.gather(*tests)] == [200, 200]
        assert (await world.client.post(path)).status_code == 200


async def test_a_paused_subscriber_can_be_tested(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        made = await world.subscribe()
        path = f"/v1/subscribers/{made['id']}"
        await world.client.patch(path, json={"status": "paused"})
        assert (await world.client.post(f"{path}/test")).status_code == 200
        assert len(world.subscribers.webhooks) == 1


async def test_a_notify_url_hears_the_outcome_signed_with_the_tenants_own_secret(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        made = await world.subscribe()
        await world.generate(notify_url=NOTIFY_URL)
        await world.generate()
        for index in range(2):
            assert (await world.call_back({"data": {"status": "failed"}}, index=index)).is_success
        await world.run()
        own = (await world.get("/v1/signing-secret"))["secret"]
        [told] = world.subscribers.webhooks_to(NOTIFY_URL)
        assert told.event["type"] == "generation.failed"
        assert told.headers["webhook-signature"] == signed_by(own, told)
        for sent in world.subscribers.webhooks_to(SUBSCRIBER_URL):
            assert sent.headers["webhook-signature"] == signed_by(made["secret"], sent)
        listed = (await world.get("/v1/subscribers"))["data"]
        assert [one["id"] for one in listed] == [made["id"]]


async def test_one_notify_url_has_one_subscriber_that_is_in_no_list(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        for index in range(2):
            await world.generate(notify_url=NOTIFY_URL)
            assert (await world.call_back({"data": {"status": "failed"}}, index=index)).is_success
        [id_] = {found["subscriber_id"] for found in await deliveries(world)}
        for method, path in (("GET", "/secret"), ("POST", "/rotate-secret")):
            refused = await world.client.request(method, f"/v1/subscribers/{id_}{path}")
            assert refused.status_code == 404
        assert (await world.get("/v1/subscribers"))["data"] == []
        await world.run()
        assert len(world.subscribers.webhooks_to(NOTIFY_URL)) == 2


async def test_the_subscriber_of_a_notify_url_is_seen_enabled_and_deleted_by_its_id(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        queue_answers(world, 410, url=NOTIFY_URL)
        for _ in range(2):
            await world.generate(notify_url=NOTIFY_URL)
        for index in range(2):
            assert (await world.call_back({"data": {"status": "failed"}}, index=index)).is_success
            await world.run()
        path = f"/v1/subscribers/{(await deliveries(world))[0]['subscriber_id']}"
        seen = await world.get(path)
        assert (seen["url"], seen["status"], seen["disabled_reason"]) == (
            NOTIFY_URL,
            "disabled",
            "gone",
        )
        assert (await world.client.patch(path, json={"url": OTHER_URL})).status_code == 422
        assert (await world.client.patch(path, json={"status": "active"})).status_code == 200
        assert (await world.get(path))["status"] == "active"
        assert (await world.client.post(f"{path}/test")).status_code == 200
        assert (await world.get(f"{path}/stats"))["counts"]["dead"] == 1
        assert (await world.client.delete(path)).status_code == 204
        assert (await world.client.get(path)).status_code == 404


async def test_a_change_holds_for_the_next_attempt_of_what_is_already_owed(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        made = await world.subscribe(event_types=["generation.submitted"])
        queue_answers(world, 500)
        await world.generate()
        await world.run()
        path = f"/v1/subscribers/{made['id']}"
        changes = {"url": OTHER_URL, "headers": {"X-New": "1"}, "retry_schedule_seconds": [0, 0]}
        assert (await world.client.patch(path, json=changes)).status_code == 200
        queue_answers(world, 500, url=OTHER_URL)
        await world.run(5)
        [sent] = world.subscribers.webhooks_to(OTHER_URL)
        assert sent.headers["X-New"] == "1"
        assert (await deliveries(world))[0]["status"] == "dead"


async def test_a_subscriber_of_another_tenant_hears_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        body = {"name": "b", "scopes": ["manage"], "tenant": "b"}
        key = (await world.client.post("/v1/keys", json=body)).json()["key"]
        async with world.new_client(key) as stranger:
            made = await stranger.post("/v1/subscribers", json={"url": OTHER_URL})
            assert made.status_code == 201
        await world.subscribe()
        await world.generate()
        await world.run()
        assert [sent.url for sent in world.subscribers.webhooks] == [SUBSCRIBER_URL]
