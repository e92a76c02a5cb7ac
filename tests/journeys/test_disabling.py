"""Disabling: by the receiver, by five days of failure, by a person; and the way back."""

from pathlib import Path
from typing import Any

import pytest

from service.delivery import health
from service.delivery.target import Answer, SendError
from tests.harness import Harness, opened
from tests.journeys.gates import Gate, attach_worker, deliveries, queue_answers

URL = "http://127.0.0.1:7/inbox"
OTHER_URL = "http://127.0.0.1:7/other"
ONE = {"event_types": ["generation.submitted"]}
DAY = 86_400


async def standing(world: Harness, subscriber: dict[str, Any]) -> tuple[str, str | None]:
    seen = await world.get(f"/v1/subscribers/{subscriber['id']}")
    return seen["status"], seen["disabled_reason"]


async def set_status(world: Harness, subscriber: dict[str, Any], status: str) -> None:
    path = f"/v1/subscribers/{subscriber['id']}"
    assert (await world.client.patch(path, json={"status": status})).status_code == 200


@pytest.mark.parametrize(
    "said",
    [Answer(410, (), b""), Answer(400, (("webhook-delivery", "disable"),), b"")],
)
async def test_a_receiver_that_is_gone_is_disabled_at_once_and_the_others_hear_of_it(
    tmp_path: Path, said: Answer
) -> None:
    async with opened(tmp_path) as world:
        gone = await world.subscribe(URL, description="old desk")
        await world.subscribe(OTHER_URL, filter={"models": ["nothing"]})
        queue_answers(world, said)
        await world.generate()
        await world.run()
        assert await standing(world, gone) == ("disabled", "gone")
        [told] = world.subscribers.webhooks_to(OTHER_URL)
        assert told.event["type"] == "subscriber.disabled"
        assert told.event["data"] == {
            "id": gone["id"],
            "description": "old desk",
            "disabled_reason": "gone",
        }
        [died] = await deliveries(world, subscriber_id=gone["id"])
        assert died["status"] == "dead"
        await world.generate()
        await world.run(DAY)
        assert len(world.subscribers.webhooks_to(URL)) == 1
        assert len(await deliveries(world, subscriber_id=gone["id"])) == 1


@pytest.mark.parametrize(("bound", "told"), [(2, 0), (3, 2), (4, 3)])
async def test_of_many_that_are_disabled_in_an_hour_the_others_hear_within_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: int, told: int
) -> None:
    monkeypatch.setattr(health, "NOTICES_MAX", bound)
    only: dict[str, Any] = {"event_types": ["subscriber.disabled"]}
    async with opened(tmp_path) as world:
        many = [await world.subscribe(f"{URL}/{number}", **only) for number in range(3)]
        await world.subscribe(OTHER_URL, **only)
        await set_status(world, many[0], "paused")
        await set_status(world, many[1], "paused")
        for subscriber in reversed(many):
            await set_status(world, subscriber, "disabled")
        await world.run()
        hears = world.subscribers.webhooks_to(OTHER_URL)
        assert len(hears) == told
        assert len((await world.get("/v1/events"))["data"]) == 3
        world.clock.advance(3_601)
        await set_status(world, many[0], "active")
        await set_status(world, many[0], "disabled")
        await world.run()
        assert len(world.subscribers.webhooks_to(OTHER_URL)) == told + 1


@pytest.mark.parametrize("path", ["/other", "/inbox/new"])
async def test_what_an_earlier_url_answers_late_does_not_disable_the_present_one(
    tmp_path: Path, path: str
) -> None:
    async with opened(tmp_path) as world:
        moved, gate = await world.subscribe(URL, **ONE), Gate(410)
        queue_answers(world, gate, url=URL)
        async with attach_worker(world):
            await world.generate()
            await gate.wait_for(1)
            body = {"url": f"http://127.0.0.1:7{path}"}
            answer = await world.client.patch(f"/v1/subscribers/{moved['id']}", json=body)
            assert answer.status_code == 200
            gate.is_open.set()
        assert await standing(world, moved) == ("active", None)
        await world.generate()
        await world.run()
        assert len(world.subscribers.webhooks_to(body["url"])) == 1


async def test_an_attempt_from_before_it_was_enabled_again_does_not_disable_it(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        gone = Gate(410)
        queue_answers(world, gone)
        subscriber = await world.subscribe(**ONE)
        path = f"/v1/subscribers/{subscriber['id']}"
        async with attach_worker(world) as dispatcher:
            await world.generate()
            await gone.wait_for(1)
            for status in ("disabled", "active"):
                world.clock.advance(1)
                await world.client.patch(path, json={"status": status})
            gone.is_open.set()
            await dispatcher.settle()
        assert (await world.get(path))["status"] == "active"


async def test_five_days_of_nothing_but_failure_disable(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE, retry_schedule_seconds=[0, DAY, DAY, DAY, DAY])
        await world.subscribe(OTHER_URL, event_types=["subscriber.disabled"])
        queue_answers(world, *[SendError("timeout", "No answer.")] * 20)
        await world.generate()
        await world.run()
        for _ in range(4):
            await world.run(DAY)
        assert await standing(world, subscriber) == ("active", None)
        await world.generate()
        await world.run(DAY - 1)
        assert await standing(world, subscriber) == ("active", None)
        await world.generate()
        await world.run(1)
        assert await standing(world, subscriber) == ("disabled", "failing")
        await world.run()
        [told] = world.subscribers.webhooks_to(OTHER_URL)
        assert told.event["data"]["disabled_reason"] == "failing"


@pytest.mark.sqlite_only("it runs due work hundreds of times")
async def test_the_days_of_failure_begin_anew_at_another_url(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(URL, **ONE, retry_schedule_seconds=[0])
        for url in (URL, OTHER_URL):
            queue_answers(world, *[500] * 20, url=url)
        for _ in range(5):
            await world.generate()
            await world.run(DAY)
        path = f"/v1/subscribers/{subscriber['id']}"
        assert (await world.client.patch(path, json={"url": OTHER_URL})).status_code == 200
        for _ in range(5):
            assert await standing(world, subscriber) == ("active", None)
            await world.generate()
            await world.run(DAY)
        await world.generate()
        await world.run(DAY)
        assert await standing(world, subscriber) == ("disabled", "failing")


@pytest.mark.sqlite_only("it runs due work hundreds of times")
@pytest.mark.parametrize("schedule", [[0], [0, 5 * 86_400]], ids=["one attempt", "a long delay"])
async def test_two_failures_far_apart_are_no_five_days_of_failure(
    tmp_path: Path, schedule: list[int]
) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE, retry_schedule_seconds=schedule)
        queue_answers(world, *[500] * 20)
        for pause in (0, 6, 6):
            await world.generate()
            await world.run(pause * DAY)
        assert await standing(world, subscriber) == ("active", None)
        for _ in range(5):
            assert await standing(world, subscriber) == ("active", None)
            await world.generate()
            await world.run(DAY)
        assert await standing(world, subscriber) == ("disabled", "failing")


@pytest.mark.sqlite_only("it runs due work hundreds of times")
async def test_one_success_in_between_starts_the_five_days_anew(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE, retry_schedule_seconds=[0])
        queue_answers(world, 500, 500, 200, 500, 500)
        for _ in range(5):
            await world.generate()
            await world.run()
            await world.run(2 * DAY)
        assert await standing(world, subscriber) == ("active", None)


async def test_a_disabled_subscriber_keeps_its_backlog_and_is_probed_when_enabled(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, shutdown_seconds=0) as world:
        subscriber = await world.subscribe(**ONE, max_in_flight=5)
        queue_answers(world, *[500] * 6)
        for _ in range(6):
            await world.generate()
        await world.run()
        await set_status(world, subscriber, "disabled")
        assert await standing(world, subscriber) == ("disabled", "manual")
        await world.run(DAY)
        assert len(world.subscribers.webhooks) == 6
        assert {found["status"] for found in await deliveries(world)} == {"pending"}
        refused = await world.client.post(
            f"/v1/deliveries/{(await deliveries(world))[0]['id']}/retry"
        )
        assert (refused.status_code, refused.json()["code"]) == (409, "subscriber_disabled")
        probe, rest = Gate(), Gate()
        queue_answers(world, probe, *[rest] * 5)
        async with attach_worker(world) as dispatcher:
            await set_status(world, subscriber, "active")
            await dispatcher.run_due(world.clock())
            await probe.wait_for(1)
            await dispatcher.run_due(world.clock())
            assert (probe.waiting, rest.waiting) == (1, 0)
            probe.is_open.set()
            await rest.wait_for(3)  # A quarter of the five is for first attempts.
            rest.is_open.set()
        assert {found["status"] for found in await deliveries(world)} == {"delivered"}


async def test_a_probe_that_fails_keeps_the_lane_narrow(tmp_path: Path) -> None:
    async with opened(tmp_path, shutdown_seconds=0) as world:
        subscriber = await world.subscribe(**ONE, max_in_flight=5)
        await set_status(world, subscriber, "disabled")
        await set_status(world, subscriber, "active")
        gate = Gate(500)
        queue_answers(world, *[gate] * 4)
        for _ in range(4):
            await world.generate()
        async with attach_worker(world) as dispatcher:
            await dispatcher.scan()
            await dispatcher.run_due(world.clock())
            await gate.wait_for(1)
            gate.is_open.set()
            await gate.wait_for(4)
        assert gate.most_waiting == 1
        await world.restart()
        gate = Gate()
        queue_answers(world, *[gate] * 4)
        world.clock.advance(5)
        async with attach_worker(world) as dispatcher:
            await dispatcher.scan()
            await dispatcher.run_due(world.clock())
            await gate.wait_for(1)
            assert gate.waiting == 1
            gate.is_open.set()


async def test_what_happens_while_it_is_disabled_is_no_delivery_and_can_be_replayed(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE)
        await set_status(world, subscriber, "disabled")
        generation = await world.generate()
        await world.run()
        assert await deliveries(world) == []
        await set_status(world, subscriber, "active")
        span = {"since": "2026-11-01T00:00:00Z", "until": "2026-12-01T00:00:00Z"}
        body = {"subscriber_id": subscriber["id"], "only": "all", **span}
        assert (await world.client.post("/v1/replays", json=body)).status_code == 202
        await world.run()
        [sent] = world.subscribers.webhooks
        assert sent.event["data"]["id"] == generation["id"]


async def test_a_notify_url_that_is_gone_is_tried_again_once_it_is_named_again(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await world.subscribe(OTHER_URL, event_types=["subscriber.disabled"])
        queue_answers(world, 410)
        for index in range(3):
            await world.generate(notify_url=URL if index != 1 else None)
            assert (await world.call_back()).status_code == 200
            await world.run()
        assert len(world.subscribers.webhooks_to(URL)) == 2
        [notice] = world.subscribers.webhooks_to(OTHER_URL)
        statuses = {found["subscriber_id"]: found["status"] for found in await deliveries(world)}
        assert statuses[notice.event["data"]["id"]] == "delivered"
        assert notice.event["data"]["disabled_reason"] == "gone"


async def test_an_outcome_that_comes_after_disabling_changes_nothing_about_it(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE, max_in_flight=2)
        good, gone = Gate(200), Gate(410)
        gone.is_open.set()
        queue_answers(world, good, gone)
        async with attach_worker(world) as dispatcher:
            await world.generate()
            await good.wait_for(1)
            await world.generate()
            await gone.wait_for(1)
            while dispatcher.slots.in_use > 1:
                await standing(world, subscriber)
            good.is_open.set()
        assert await standing(world, subscriber) == ("disabled", "gone")
        assert [d["status"] for d in await deliveries(world)] == ["delivered", "dead"]
