"""Ordered subscribers: the events of one generation one after the other, and no others waiting."""

import asyncio
from pathlib import Path
from typing import Any

from service.delivery.lanes import NEVER
from service.delivery.target import Answer
from service.model import ids
from tests.harness import START, SUBSCRIBER_URL, Harness, opened
from tests.journeys.gates import Gate, attach_worker, deliveries, queue_answers, take_over
from tests.journeys.test_ticks import until_nothing_is_due


def story(world: Harness) -> list[tuple[int, str, float]]:
    """Which generation, which event, when; in the order of sending."""
    found = []
    ids: list[str] = []
    for sent in world.subscribers.webhooks:
        id_ = sent.event["data"]["id"]
        if id_ not in ids:
            ids.append(id_)
        word = sent.event["type"].removeprefix("generation.")
        found.append((ids.index(id_) + 1, word, (sent.at - START) / 1_000))
    return found


async def pass_seconds(world: Harness, seconds: int) -> None:
    for _ in range(seconds):
        await world.run(1)


async def test_a_later_event_waits_for_the_retry_of_an_earlier_one(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await world.subscribe(ordered=True)
        queue_answers(world, 500, 200, 500)
        await world.generate()
        await world.run()
        assert (await world.call_back()).status_code == 200
        await world.generate()
        await world.run(4.999)
        await world.run(0.001)
        await world.run(299.999)
        await world.run(0.001)
        assert story(world) == [
            (1, "submitted", 0),
            (2, "submitted", 4.999),
            (1, "submitted", 5),
            (1, "submitted", 305),
            (1, "succeeded", 305),
        ]


async def test_the_order_holds_between_processes_whose_clocks_differ(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        for n in range(5):  # Their deliveries are made first, and only of the first event.
            url = f"http://127.0.0.1:7/{n}"
            await world.subscribe(url, event_types=["generation.submitted"])
        await world.subscribe(ordered=True)
        queue_answers(world, 500, url=SUBSCRIBER_URL)
        await world.generate()
        await world.run()
        world.clock.now -= 1_000
        ids._state.update(ms=0, counter=0)  # As in another process.
        assert (await world.call_back()).status_code == 200
        for seconds, words in ((5, ["submitted"]), (1, ["submitted", "submitted", "succeeded"])):
            await world.run(seconds)
            sent = world.subscribers.webhooks_to(SUBSCRIBER_URL)
            assert [each.event["type"].removeprefix("generation.") for each in sent] == words


async def test_while_an_earlier_event_is_under_way_the_later_one_waits(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body", shutdown_seconds=0) as world:
        gate = Gate()
        queue_answers(world, gate)
        await world.subscribe(ordered=True)
        assert world.app.worker is not None
        world.app.worker.start()
        await world.generate()
        await gate.wait_for(1)
        assert (await world.call_back()).status_code == 200
        after = Gate()
        after.is_open.set()
        queue_answers(world, after, after)
        await world.generate()
        await after.wait_for(1)
        assert [(one, word) for one, word, _ in story(world)] == [
            (1, "submitted"),
            (2, "submitted"),
        ]
        gate.is_open.set()
        await after.wait_for(2)
        assert story(world)[2][:2] == (1, "succeeded")


async def test_the_death_of_an_earlier_event_releases_the_later_one(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await world.subscribe(ordered=True, retry_schedule_seconds=[0, 60])
        queue_answers(world, 500, 500)
        await world.generate()
        await world.run()
        assert (await world.call_back()).status_code == 200
        await world.run(59)
        assert len(world.subscribers.webhooks) == 1
        await world.run(1)
        assert [word for _, word, _ in story(world)] == ["submitted", "submitted", "succeeded"]
        assert [d["status"] for d in await deliveries(world)] == ["dead", "delivered"]


async def test_the_end_of_an_earlier_event_makes_no_first_attempt_before_its_delay(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await world.subscribe(ordered=True, retry_schedule_seconds=[6, 10])
        queue_answers(world, 500)
        await world.generate()
        await pass_seconds(world, 4)
        assert (await world.call_back()).status_code == 200
        await pass_seconds(world, 12)
        assert [(word, at) for _, word, at in story(world)] == [
            ("submitted", 6),
            ("submitted", 16),
            ("succeeded", 16),
        ]
        await world.generate()
        await pass_seconds(world, 4)
        assert (await world.call_back(index=1)).status_code == 200
        await pass_seconds(world, 6)
        assert [(word, at) for _, word, at in story(world)[3:]] == [
            ("submitted", 22),
            ("succeeded", 26),
        ]


async def test_the_end_of_an_earlier_event_makes_no_retry_before_retry_after(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await world.subscribe(ordered=True)
        abort = Answer(500, (("webhook-delivery", "abort-message"),), b"")
        queue_answers(world, abort, Answer(500, (("retry-after", "600"),), b""))
        await world.generate()
        await world.run()
        assert (await world.call_back()).status_code == 200
        await world.run()
        [first, second] = await deliveries(world)
        assert (first["status"], second["status"]) == ("dead", "pending")
        await world.client.post(f"/v1/deliveries/{first['id']}/retry")
        await pass_seconds(world, 599)
        words = [word for _, word, _ in story(world)]
        assert words == ["submitted", "succeeded", "submitted"]
        [_, later] = await deliveries(world)
        assert later["next_attempt_at"] == second["next_attempt_at"]
        await pass_seconds(world, 100)
        assert [word for _, word, _ in story(world)] == [*words, "succeeded"]


async def test_a_retry_by_hand_of_an_event_that_waited_leaves_its_own_schedule_as_it_was(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await world.subscribe(ordered=True, retry_schedule_seconds=[0, 600])
        queue_answers(world, 500, 200, 500)
        await world.generate()
        assert (await world.call_back()).status_code == 200
        await world.run(1)
        for each in await deliveries(world):
            await world.client.post(f"/v1/deliveries/{each['id']}/retry")
        await pass_seconds(world, 3)
        assert [word for _, word, _ in story(world)] == ["submitted"] * 2 + ["succeeded"] * 2


async def test_an_attempt_that_is_recorded_after_another_process_delivered_holds_up_no_later_event(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, callback_trust="body", shutdown_seconds=0) as world:
        await until_nothing_is_due(world)
        await world.subscribe(ordered=True)
        gate = Gate(Answer(500, (("retry-after", "80000"),), b""))
        queue_answers(world, gate, 200, 500)
        await world.generate()
        assert (await world.call_back()).status_code == 200
        ticking = asyncio.create_task(world.app.worker.tick(60))
        await gate.wait_for(1)
        before = await take_over(world)
        await world.run()
        gate.is_open.set()
        await asyncio.wait([ticking])
        await before.stop()
        await pass_seconds(world, 10)
        words = [word for _, word, _ in story(world)]
        assert words == ["submitted", "submitted", "succeeded", "succeeded"]


async def test_order_holds_after_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await world.subscribe(ordered=True, max_in_flight=10)
        generations = [await world.generate() for _ in range(5)]
        for index in range(5):
            body = {"code": 200, "data": {"task_id": f"task{index + 1}", "status": "failed"}}
            assert (await world.call_back(body, index=index)).status_code == 200
        queue_answers(world, *[500] * 5)
        await world.run()
        await world.restart()
        await world.run(5)
        for generation in generations:
            of_one = [
                s for s in world.subscribers.webhooks if s.event["data"]["id"] == generation["id"]
            ]
            words = [sent.event["type"] for sent in of_one]
            assert words == ["generation.submitted"] * 2 + ["generation.failed"]


async def test_asking_for_a_later_event_by_hand_does_not_break_the_order(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await world.subscribe(ordered=True)
        queue_answers(world, 500)
        await world.generate()
        await world.run()
        assert (await world.call_back()).status_code == 200
        later = (await deliveries(world))[1]
        await world.client.post(f"/v1/deliveries/{later['id']}/retry")
        await world.run()
        assert [word for _, word, _ in story(world)] == ["submitted"]
        await world.run(5)
        assert [word for _, word, _ in story(world)] == ["submitted", "submitted", "succeeded"]


async def test_an_earlier_event_that_is_asked_for_again_waits_for_a_later_one_under_way(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await world.subscribe(ordered=True, retry_schedule_seconds=[0])
        gate = Gate()
        queue_answers(world, 500, gate)
        async with attach_worker(world) as dispatcher:
            await world.generate()
            await dispatcher.settle()
            assert (await world.call_back()).status_code == 200
            await gate.wait_for(1)
            [first, _] = await deliveries(world)
            await world.client.post(f"/v1/deliveries/{first['id']}/retry")
            [lane] = dispatcher.lanes.values()
            while lane.is_loading:
                await world.get("/v1/events")
            assert lane.next_backlog(world.clock()) is None
            assert lane.plan(world.clock()) == ([], NEVER)  # Nothing is read again and again.
            assert [word for _, word, _ in story(world)] == ["submitted", "succeeded"]
            gate.is_open.set()
            await dispatcher.settle()
        assert [word for _, word, _ in story(world)] == ["submitted", "succeeded", "submitted"]
        assert {found["status"] for found in await deliveries(world)} == {"delivered"}


async def test_without_order_a_later_event_does_not_wait(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await world.subscribe()
        queue_answers(world, Answer(500, (), b""))
        await world.generate()
        await world.run()
        assert (await world.call_back()).status_code == 200
        await world.run()
        words: list[Any] = [word for _, word, _ in story(world)]
        assert words == ["submitted", "succeeded"]
