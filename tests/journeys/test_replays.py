"""Replays: stored events sent again, in batches that survive crashes and can be called off."""

from pathlib import Path
from typing import Any

import pytest

from service.delivery import replay
from service.store.deliveries import fetch_due
from tests.faults import execute
from tests.harness import START, SUBSCRIBER_URL, Harness, opened
from tests.journeys.gates import Gate, attach_worker, by_hand, deliveries, queue_answers, take_over

OTHER_URL = "http://127.0.0.1:7/other"
ONE = {"event_types": ["generation.submitted"]}
SPAN = {"since": "2026-11-18T00:00:00Z", "until": "2026-12-01T00:00:00Z"}


async def ask(world: Harness, subscriber: dict[str, Any], **fields: Any) -> Any:
    body = {"subscriber_id": subscriber["id"], **SPAN, **fields}
    return await world.client.post("/v1/replays", json=body)


async def started(world: Harness, subscriber: dict[str, Any], **fields: Any) -> dict[str, Any]:
    answered = await ask(world, subscriber, **fields)
    assert answered.status_code == 202, answered.text
    found: dict[str, Any] = answered.json()
    return found


async def seen(world: Harness, made: dict[str, Any]) -> tuple[str, int, int]:
    found = await world.get(f"/v1/replays/{made['id']}")
    return found["status"], found["done"], found["total"]


def ids(world: Harness, url: str = SUBSCRIBER_URL) -> list[str]:
    return [sent.headers["webhook-id"] for sent in world.subscribers.webhooks_to(url)]


async def test_a_replay_of_dead_ones_sends_them_again_under_their_own_ids(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE, retry_schedule_seconds=[0])
        queue_answers(world, 500, 200, 500)
        for _ in range(3):
            await world.generate()
            await world.run()
        first = ids(world)
        made = await started(world, subscriber)
        assert (made["status"], made["total"], made["done"]) == ("running", 2, 0)
        assert made["finished_at"] is None
        await world.run()
        assert ids(world)[3:] == [first[0], first[2]]
        assert await seen(world, made) == ("done", 2, 2)
        again = (await deliveries(world))[3:]
        assert {found["status"] for found in again} == {"delivered"}
        one = await world.get(f"/v1/deliveries/{again[0]['id']}")
        assert one["attempts"][0]["trigger"] == "replay"
        assert (await started(world, subscriber))["total"] == 0  # The latest one is not dead.


async def test_a_replay_counts_in_its_total_what_ended_since_it_was_counted(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE)
        for _ in range(2):
            await world.generate()
        made = await started(world, subscriber, only="all")
        assert (made["total"], made["done"]) == (0, 0)  # Both are pending.
        async with attach_worker(world) as dispatcher:
            await dispatcher.scan()
            await dispatcher.run_due(world.clock())
            await dispatcher.settle()
        await world.run()
        assert await seen(world, made) == ("done", 2, 2)


async def test_a_replay_of_all_reaches_a_subscriber_that_came_later(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        made = [(await world.generate())["id"] for _ in range(3)]
        late = await world.subscribe(**ONE)
        other = await world.subscribe(OTHER_URL, **ONE)
        await world.client.post(f"/v1/subscribers/{other['id']}/test")
        await world.run()
        assert ids(world) == []
        await started(world, late, only="all")
        await world.run()
        sent = world.subscribers.webhooks_to(SUBSCRIBER_URL)
        assert sorted(webhook.event["data"]["id"] for webhook in sent) == sorted(made)


async def test_the_subscribers_filter_and_the_asked_types_both_apply(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        for model, team in (("imagen4", "a"), ("imagen4", "b"), ("imagen4-fast", "a")):
            await world.generate(model, metadata={"team": team, "more": "x"})
        failed = {"data": {"task_id": "task1", "status": "failed"}}
        assert (await world.call_back(failed, index=0)).is_success
        wanted = await world.subscribe(filter={"models": ["imagen4"], "metadata": {"team": "a"}})
        totals = {}
        for types in ([], ["generation.submitted"], ["ping"], ["generation.failed", "ping"]):
            made = await started(world, wanted, only="all", event_types=types, dry_run=True)
            totals[", ".join(types)] = made["total"]
        assert totals == {
            "": 2,
            "generation.submitted": 1,
            "ping": 0,
            "generation.failed, ping": 1,
        }
        every = await world.subscribe(OTHER_URL)
        assert (await started(world, every, only="all", dry_run=True))["total"] == 4
        deaf = await world.subscribe("http://127.0.0.1:7/deaf", event_types=["ping"])
        assert (await started(world, deaf, only="all", dry_run=True))["total"] == 0


async def test_pings_come_only_when_asked_for_by_name(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe()
        await world.client.post(f"/v1/subscribers/{subscriber['id']}/test")
        assert (await started(world, subscriber, only="all", dry_run=True))["total"] == 0
        made = await started(world, subscriber, only="all", event_types=["ping"])
        assert made["total"] == 1
        await world.run()
        assert len(set(ids(world))) == 1
        assert len(ids(world)) == 2


async def test_a_dead_notice_is_replayed_too_but_not_among_all(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        told = await world.subscribe(OTHER_URL, retry_schedule_seconds=[0])
        gone = await world.subscribe(**ONE)
        queue_answers(world, 410)
        queue_answers(world, 204, 500, url=OTHER_URL)  # It takes the generation's event only.
        await world.generate()
        await world.run()
        [dead] = await deliveries(world, subscriber_id=told["id"], status="dead")
        assert dead["event_type"] == "subscriber.disabled"
        assert (await started(world, told, only="all", dry_run=True))["total"] == 1
        made = await started(world, told)
        assert made["total"] == 1
        await world.run()
        assert world.subscribers.webhooks_to(OTHER_URL)[-1].event["data"]["id"] == gone["id"]
        [_, again] = await deliveries(world, event_id=dead["event_id"])
        assert again["status"] == "delivered"


async def test_the_span_takes_its_beginning_and_not_its_end(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE)
        for _ in range(3):
            await world.generate()
            await world.run(1)
        span = {"since": "2026-11-18T11:06:40.000Z", "until": "2026-11-18T11:06:42.000Z"}
        assert (await started(world, subscriber, only="all", dry_run=True, **span))["total"] == 2
        span = {"since": "2026-11-18T12:06:40.001+01:00", "until": "2026-11-18T11:06:42.001Z"}
        assert (await started(world, subscriber, only="all", dry_run=True, **span))["total"] == 2
        span = {"since": "2026-11-18T11:06:40.0000001Z", "until": "2026-11-18T11:06:42.0005Z"}
        assert (await started(world, subscriber, only="all", dry_run=True, **span))["total"] == 2
        span["since"] = "2026-11-18T11:06:39Z"
        assert (await started(world, subscriber, only="all", dry_run=True, **span))["total"] == 3


async def test_a_dry_run_counts_and_sends_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE)
        await world.generate()
        await world.run()
        made = await started(world, subscriber, only="all", dry_run=True)
        assert (made["status"], made["total"], made["done"]) == ("done", 1, 0)
        assert made["finished_at"] == made["created_at"]
        await world.run(60)
        assert len(world.subscribers.webhooks) == 1


async def test_what_is_still_on_its_way_is_not_sent_twice(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE)
        queue_answers(world, 500)
        await world.generate()
        await world.generate()
        await world.run()
        assert (await started(world, subscriber, only="all"))["total"] == 1
        await world.run(5)
        assert len(ids(world)) == 4


async def test_what_happens_after_the_start_is_no_part_of_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE)
        await world.generate()
        await world.run()
        made = await started(world, subscriber, only="all")
        await world.generate()
        await world.run()
        assert await seen(world, made) == ("done", 1, 1)
        assert len(ids(world)) == 3


async def test_a_second_replay_to_the_same_subscriber_waits_its_turn(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber, other = await world.subscribe(**ONE), await world.subscribe(OTHER_URL, **ONE)
        await world.generate()
        await world.run()
        await started(world, subscriber, only="all")
        refused = await ask(world, subscriber, only="all")
        assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
        await started(world, other, only="all")
        assert (await ask(world, subscriber, only="all", dry_run=True)).status_code == 202
        await world.run()
        assert (await ask(world, subscriber, only="all")).status_code == 202


async def test_a_replay_ends_when_its_subscriber_gets_disabled(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE)
        for _ in range(5):
            await world.generate()
        await world.run()
        made = await started(world, subscriber, only="all", rate_per_second=1)
        queue_answers(world, 410)
        await world.run(1)
        await world.run(10)
        assert (await seen(world, made))[0] == "canceled"
        assert "pending" not in {found["status"] for found in await deliveries(world)}


@pytest.mark.parametrize("change", ["disable", "delete"])
async def test_a_replay_that_is_slow_ends_at_once_with_its_subscriber(
    tmp_path: Path, change: str
) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE)
        for _ in range(5):
            await world.generate()
        await world.run()
        made = await started(world, subscriber, only="all", rate_per_second=0.02)
        await world.run(1)
        path = f"/v1/subscribers/{subscriber['id']}"
        if change == "delete":
            assert (await world.client.delete(path)).is_success
        else:
            for status in ("disabled", "active"):
                assert (await world.client.patch(path, json={"status": status})).is_success
        for seconds in (1, 300):
            await world.run(seconds)
            status, done, *_ = await seen(world, made)
            assert (status, done) == ("canceled", 1)


async def test_a_replay_whose_row_is_damaged_keeps_no_subscriber_from_being_disabled(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE)
        await world.generate()
        await world.run()
        await started(world, subscriber, only="all", rate_per_second=0.02)
        await execute(world, "UPDATE replays SET event_types = '{'")
        queue_answers(world, 410)
        await world.generate()
        await world.run()
        found = await world.get(f"/v1/subscribers/{subscriber['id']}")
        assert (found["status"], found["disabled_reason"]) == ("disabled", "gone")
        path = f"/v1/subscribers/{subscriber['id']}"
        assert (await world.client.delete(path)).is_success


async def test_a_disabled_subscriber_gets_no_replay(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE)
        path = f"/v1/subscribers/{subscriber['id']}"
        await world.client.patch(path, json={"status": "disabled"})
        refused = await ask(world, subscriber)
        assert (refused.status_code, refused.json()["code"]) == (409, "subscriber_disabled")
        assert (await ask(world, subscriber, dry_run=True)).status_code == 202


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"until": "2026-11-18T00:00:00Z"}, "/until"),
        ({"since": "yesterday"}, "/since"),
        ({"since": "2026-11-18T00:00:00"}, "/since"),
        ({"event_types": ["generation.lost"]}, "/event_types/0"),
        ({"only": "some"}, "/only"),
        ({"rate_per_second": 0}, "/rate_per_second"),
        ({"subscriber_id": "sub_1"}, "/subscriber_id"),
        ({"speed": 1}, "/speed"),
    ],
)
async def test_a_wrong_field_is_named(tmp_path: Path, fields: Any, pointer: str) -> None:
    async with opened(tmp_path) as world:
        refused = await ask(world, await world.subscribe(), **fields)
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
        assert [error["pointer"] for error in refused.json()["errors"]] == [pointer]


async def test_nobody_replays_to_a_strangers_subscriber_or_sees_his_replays(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe()
        made = await started(world, subscriber)
        body = {"name": "b", "scopes": ["manage"], "tenant": "b"}
        key = (await world.client.post("/v1/keys", json=body)).json()["key"]
        async with world.new_client(key) as stranger:
            body = {"subscriber_id": subscriber["id"], **SPAN}
            assert (await stranger.post("/v1/replays", json=body)).status_code == 404
            assert (await stranger.get(f"/v1/replays/{made['id']}")).status_code == 404
            assert (await stranger.post(f"/v1/replays/{made['id']}/cancel")).status_code == 404
            assert (await stranger.get("/v1/replays")).json() == {"data": [], "next": None}
        assert [one["id"] for one in (await world.get("/v1/replays"))["data"]] == [made["id"]]


async def test_asking_twice_under_one_idempotency_key_makes_one_replay(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe()
        body = {"subscriber_id": subscriber["id"], **SPAN}
        headers = {"idempotency-key": "one"}
        first = await world.client.post("/v1/replays", json=body, headers=headers)
        second = await world.client.post("/v1/replays", json=body, headers=headers)
        assert first.json() == second.json()
        assert second.headers["idempotency-replayed"] == "true"


async def many(world: Harness, count: int) -> dict[str, Any]:
    for _ in range(count):
        await world.generate()
    return await world.subscribe(**ONE)


async def test_batches_follow_each_other_until_all_is_sent_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "BATCH", 3)
    monkeypatch.setattr(replay, "SPAN", 4)
    monkeypatch.setattr(replay, "COUNT_SPAN", 2)
    async with opened(tmp_path) as world:
        subscriber = await many(world, 11)
        made = await started(world, subscriber, only="all")
        assert made["total"] == 11
        await world.run()
        assert len(ids(world)) == len(set(ids(world))) == 11
        assert await seen(world, made) == ("done", 11, 11)


async def test_a_crash_between_batches_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "BATCH", 3)
    async with opened(tmp_path) as world:
        subscriber = await many(world, 8)
        made = await started(world, subscriber, only="all")
        count, next_at = await by_hand(
            world, replay.run_due(world.app.worker.context, world.clock())
        )
        assert (count, next_at) == (3, START)
        old = await take_over(world)
        assert await seen(world, made) == ("running", 3, 8)
        await world.run()
        assert await seen(world, made) == ("done", 8, 8)
        assert len(ids(world)) == len(set(ids(world))) == 8
        await old.stop()


async def test_live_events_do_not_queue_behind_a_long_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "BATCH", 2)
    monkeypatch.setattr(replay, "UNTRIED_MAX", 4)
    async with opened(tmp_path) as world:
        subscriber = await many(world, 10)
        path = f"/v1/subscribers/{subscriber['id']}"
        await world.client.patch(path, json={"max_in_flight": 1})
        made = await started(world, subscriber, only="all")
        context = world.app.worker.context
        for _ in range(5):
            await by_hand(world, replay.run_due(context, world.clock()))
        assert (await seen(world, made))[1] == 4  # The others wait until these were tried.
        live = await world.generate()
        await world.run(0.5)
        order = [sent.event["data"]["id"] for sent in world.subscribers.webhooks]
        assert order.index(live["id"]) == 4
        for _ in range(10):
            await world.run(0.5)
        assert await seen(world, made) == ("done", 10, 10)
        assert len(ids(world)) == len(set(ids(world))) == 11


async def test_a_failing_receiver_does_not_stop_a_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "UNTRIED_MAX", 4)
    monkeypatch.setattr(replay, "BATCH", 2)
    async with opened(tmp_path) as world:
        subscriber = await many(world, 10)
        queue_answers(world, *[500] * 10)
        made = await started(world, subscriber, only="all")
        for _ in range(10):
            await world.run(0.5)
        assert await seen(world, made) == ("done", 10, 10)


async def test_a_rate_spreads_the_deliveries_over_time(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await many(world, 7)
        made = await started(world, subscriber, only="all", rate_per_second=2)
        counts = []
        for _ in range(5):
            await world.run(1)
            counts.append(len(ids(world)))
        assert counts == [2, 4, 6, 7, 7]
        assert await seen(world, made) == ("done", 7, 7)
        slow = await started(world, subscriber, only="all", rate_per_second=0.1)
        await world.run(0)
        await world.run(9.999)
        assert (await seen(world, slow))[1] == 1
        await world.run(0.001)
        assert (await seen(world, slow))[1] == 2


@pytest.mark.parametrize("at_once", [1, 3, 500])
async def test_a_canceled_replay_makes_no_more_and_what_is_pending_is_canceled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(replay, "BATCH", 3)
    monkeypatch.setattr("service.store.deliveries.CANCEL_BATCH", at_once)
    async with opened(tmp_path) as world:
        subscriber = await many(world, 8)
        live = await world.generate()
        queue_answers(world, *[500] * 9)
        made = await started(world, subscriber, only="all")
        assert await by_hand(world, replay.run_due(world.app.worker.context, world.clock())) == (
            3,
            START,
        )
        for _ in range(2):
            canceled = await world.client.post(f"/v1/replays/{made['id']}/cancel")
            assert (canceled.status_code, canceled.json()["status"]) == (200, "canceled")
            assert canceled.json()["finished_at"] is not None
        await world.run()
        await world.run(3_600)
        assert await seen(world, made) == ("canceled", 3, 8)
        assert [found["status"] for found in await deliveries(world)] == [
            "pending",
            "canceled",
            "canceled",
            "canceled",
        ]
        if at_once >= 3:
            about = {sent.event["data"]["id"] for sent in world.subscribers.webhooks}
            assert about == {live["id"]}
        # A delivery that was canceled says nothing: a new replay starts from the beginning.
        assert (await started(world, subscriber, only="all", dry_run=True))["total"] == 8


async def test_after_a_canceled_replay_what_was_dead_is_still_to_be_replayed(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE, retry_schedule_seconds=[0, 60])
        queue_answers(world, *[500] * 3)
        await world.generate()
        await world.run()
        await world.run(60)
        made = await started(world, subscriber, rate_per_second=0.01)
        await world.run()
        assert [d["status"] for d in await deliveries(world)] == ["dead", "pending"]
        await world.client.post(f"/v1/replays/{made['id']}/cancel")
        assert [d["status"] for d in await deliveries(world)] == ["dead", "canceled"]
        assert (await started(world, subscriber))["total"] == 1
        await world.run()
        assert (await deliveries(world))[-1]["status"] == "delivered"


async def test_canceling_reaches_what_is_held_in_memory(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await many(world, 4)
        path = f"/v1/subscribers/{subscriber['id']}"
        await world.client.patch(path, json={"max_in_flight": 1})
        gate = Gate()
        queue_answers(world, gate)
        made = await started(world, subscriber, only="all")
        async with attach_worker(world) as dispatcher:
            await replay.run_due(world.app.worker.context, world.clock())
            await gate.wait_for(1)
            await world.client.post(f"/v1/replays/{made['id']}/cancel")
            gate.is_open.set()
            await dispatcher.settle()
            await dispatcher.run_due(world.clock())
        assert len(ids(world)) == 1
        statuses = [found["status"] for found in await deliveries(world)]
        assert statuses == ["canceled"] * 4  # The first was canceled while it was under way.


async def test_canceling_reaches_what_was_read_a_moment_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        subscriber = await many(world, 2)
        made = await started(world, subscriber, only="all")
        context, gate = world.app.worker.context, Gate()
        await by_hand(world, replay.run_due(context, world.clock()))

        async def slow(unit: Any, *args: Any) -> Any:
            found = await type(world.app.database).read(world.app.database, unit, *args)
            if unit is fetch_due and not gate.is_open.is_set():
                await gate()
            return found

        async with attach_worker(world) as dispatcher:
            monkeypatch.setattr(context.database, "read", slow)
            dispatcher.refill(subscriber["id"])
            await gate.wait_for(1)
            await world.client.post(f"/v1/replays/{made['id']}/cancel")
            gate.is_open.set()
            await dispatcher.settle()
            await dispatcher.run_due(world.clock())
        assert world.subscribers.webhooks == []


async def test_a_replay_that_is_done_cannot_be_canceled(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe()
        made = await started(world, subscriber, dry_run=True)
        refused = await world.client.post(f"/v1/replays/{made['id']}/cancel")
        assert (refused.status_code, refused.json()["code"]) == (409, "conflict")


async def test_while_the_subscriber_is_paused_a_replay_waits(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await many(world, 2)
        path = f"/v1/subscribers/{subscriber['id']}"
        await world.client.patch(path, json={"status": "paused"})
        made = await started(world, subscriber, only="all")
        await world.run(60)
        assert await seen(world, made) == ("running", 0, 2)
        await world.client.patch(path, json={"status": "active"})
        await world.run(5)
        assert await seen(world, made) == ("done", 2, 2)


async def test_when_the_subscriber_is_deleted_its_replay_is_canceled(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await many(world, 2)
        made = await started(world, subscriber, only="all")
        await world.client.delete(f"/v1/subscribers/{subscriber['id']}")
        await world.run()
        assert await seen(world, made) == ("canceled", 0, 2)
        assert world.subscribers.webhooks == []


async def test_a_tick_says_how_many_deliveries_it_made_for_replays(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await many(world, 3)
        await started(world, subscriber, only="all")
        done = (await world.client.post("/v1/tick")).json()
        assert (done["replayed"], done["attempted"], done["more"]) == (3, 3, False)
