"""Lanes: each subscriber's own pace and its own slots, and how all share what there is."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from service.delivery.attempt import read_recipient
from service.delivery.target import Answer
from service.delivery.window import START as START_SIZE
from service.store import deliveries as stored
from tests.faults import execute
from tests.harness import START, SUBSCRIBER_URL, opened
from tests.journeys.gates import Gate, attach_worker, deliveries, delivery, queue_answers, take_over

ONE = {"event_types": ["generation.submitted"]}
OTHER_URL = "http://127.0.0.1:7/other"
ELSEWHERE_URL = "http://127.0.0.1:8/inbox"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
async def test_two_backlogs_share_the_slots_however_few(tmp_path: Path, count: int) -> None:
    async with opened(tmp_path, max_in_flight=count) as world:
        gate = Gate()
        for url in (SUBSCRIBER_URL, OTHER_URL):
            await world.subscribe(url, **ONE)
            queue_answers(world, *[gate] * 12, url=url)
        for _ in range(12):
            await world.generate()
        async with attach_worker(world) as dispatcher:
            await dispatcher.scan()
            await dispatcher.run_due(world.app.context.clock())
            lanes = dispatcher.lanes.values()
            # Each lane reads all of its rows at once. It then looks for retries, and waits for a
            # slot only afterwards.
            async with asyncio.timeout(60):
                while sum(lane.waiting for lane in lanes) + dispatcher.slots.in_use < 24 or any(
                    lane.is_loading for lane in lanes
                ):
                    await world.app.database.schema_problem()
            gate.is_open.set()
        order = [sent.url for sent in world.subscribers.webhooks]
        assert order.count(SUBSCRIBER_URL) == order.count(OTHER_URL) == 12
        half = order[: 12 + count]
        assert min(half.count(SUBSCRIBER_URL), half.count(OTHER_URL)) >= 3


async def test_no_more_attempts_are_under_way_than_the_subscriber_allows(tmp_path: Path) -> None:
    async with opened(tmp_path, shutdown_seconds=0) as world:
        gate = Gate()
        queue_answers(world, *[gate] * 10)
        await world.subscribe(**ONE, max_in_flight=3)
        assert world.app.worker is not None
        world.app.worker.start()
        for _ in range(10):
            await world.generate()
        await gate.wait_for(3)
        gate.is_open.set()
        await gate.wait_for(10)
        assert gate.most_waiting == 3


async def test_a_lane_opens_while_a_burst_is_answered_quickly(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE)
        path = f"/v1/subscribers/{subscriber['id']}"
        await world.client.patch(path, json={"status": "paused"})
        for _ in range(40):
            await world.generate()
        quick, gate = Gate(), Gate()
        quick.is_open.set()
        queue_answers(world, *[quick] * START_SIZE, *[gate] * 40)
        async with attach_worker(world) as dispatcher:
            await world.client.patch(path, json={"status": "active"})
            await dispatcher.run_due(world.clock())
            await gate.wait_for(2 * START_SIZE)
            lane = dispatcher.lanes[subscriber["id"]]
            assert (lane.in_flight, gate.waiting) == (2 * START_SIZE, 2 * START_SIZE)
            gate.is_open.set()
        assert len(world.subscribers.webhooks) == 40


async def test_a_rate_spaces_attempts_and_survives_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.rounds.HELD_UP_SECONDS_MAX", 0)  # A tick would wait for the rate.
    async with opened(tmp_path) as world:
        await world.subscribe(**ONE, rate_per_second=0.1)
        for _ in range(4):
            await world.generate()
        for _ in range(25):
            await world.run(1)
        assert [(sent.at - START) // 1_000 for sent in world.subscribers.webhooks] == [1, 11, 21]
        await world.restart()
        for _ in range(10):
            await world.run(1)
        assert [(sent.at - START) // 1_000 for sent in world.subscribers.webhooks][3:] == [31]


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_throttled_subscriber_gets_nothing_until_it_asked_for_more(
    tmp_path: Path, status: int
) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(**ONE, max_in_flight=1)
        await world.subscribe(ELSEWHERE_URL, **ONE)
        queue_answers(world, Answer(status, (("retry-after", "120"),), b""))
        for _ in range(3):
            await world.generate()
        await world.run()
        await world.generate()
        await world.run(119)
        assert len(world.subscribers.webhooks_to(SUBSCRIBER_URL)) == 1
        assert len(world.subscribers.webhooks_to(ELSEWHERE_URL)) == 4
        await world.restart()
        await world.run(0.999)
        assert len(world.subscribers.webhooks_to(SUBSCRIBER_URL)) == 1
        await world.run(0.001)
        assert len(world.subscribers.webhooks_to(SUBSCRIBER_URL)) == 5


async def test_a_429_rests_every_subscriber_of_the_receiver(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(**ONE, max_in_flight=1)
        queue_answers(world, Answer(429, (("retry-after", "60"),), b""))
        async with attach_worker(world) as dispatcher:
            await world.generate()
            await dispatcher.settle()
            for url in (OTHER_URL, ELSEWHERE_URL):
                await world.subscribe(url, **ONE)
            await world.generate()
            await dispatcher.settle()
            sent = [webhook.url for webhook in world.subscribers.webhooks]
            assert sent == [SUBSCRIBER_URL, ELSEWHERE_URL]
            world.clock.advance(60)
            await dispatcher.run_due(world.clock.now)
            await dispatcher.settle()
        assert len(world.subscribers.webhooks_to(OTHER_URL)) == 1


@pytest.mark.sqlite_only("it runs due work hundreds of times")
async def test_notify_urls_that_differ_in_their_query_are_one_receiver(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        gate = Gate(Answer(429, (("retry-after", "60"),), b""))
        urls = [f"{SUBSCRIBER_URL}?job={number}" for number in range(30)]
        async with attach_worker(world) as dispatcher:
            for url in urls:
                queue_answers(world, gate, url=url)
                await world.generate(notify_url=url)
                assert (await world.call_back()).status_code == 200
            await gate.wait_for(START_SIZE)
            while any(lane.is_loading for lane in dispatcher.lanes.values()):
                await world.get("/v1/subscribers")
            assert gate.requests == dispatcher.slots.in_use == START_SIZE
            gate.is_open.set()
        assert gate.requests == START_SIZE
        for url in urls:
            world.subscribers.answers[url].clear()
        await world.run(70)
        assert len({sent.url for sent in world.subscribers.webhooks}) == len(urls)


async def test_a_success_beside_it_does_not_lift_what_a_receiver_asked_for(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(**ONE, max_in_flight=2)
        throttled, good = Gate(Answer(429, (("retry-after", "60"),), b"")), Gate()
        queue_answers(world, throttled, good)
        async with attach_worker(world) as dispatcher:
            await world.generate()
            await world.generate()
            await good.wait_for(1)
            throttled.is_open.set()
            while dispatcher.slots.in_use == 2:
                await world.get("/v1/subscribers")
            good.is_open.set()
        assert [d["status"] for d in await deliveries(world)] == ["pending", "delivered"]
        await world.restart()
        await world.generate()
        await world.run(59)
        assert len(world.subscribers.webhooks) == 2
        await world.run(1)
        assert len(world.subscribers.webhooks) == 4


async def test_a_paused_subscriber_keeps_its_backlog_in_order(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE, max_in_flight=1)
        path = f"/v1/subscribers/{subscriber['id']}"
        await world.client.patch(path, json={"status": "paused"})
        made = []
        for _ in range(5):  # What is due at the same millisecond has no order.
            made.append((await world.generate())["id"])
            await world.run(1)
        await world.run(3_600)
        assert world.subscribers.webhooks == []
        assert {found["status"] for found in await deliveries(world)} == {"pending"}
        await world.client.patch(path, json={"status": "active"})
        await world.run()
        assert [sent.event["data"]["id"] for sent in world.subscribers.webhooks] == made


async def test_a_change_reaches_a_lane_that_is_reading_at_that_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE)
        database = world.app.database
        vault, gate = world.app.context.vault, Gate()
        old = await database.read(read_recipient, vault, subscriber["id"])

        async def slow(unit: Any, *args: Any) -> Any:
            if unit is read_recipient and not gate.is_open.is_set():
                await gate()
                return old  # Read before the change, told after it.
            return await type(database).read(database, unit, *args)

        async with attach_worker(world) as dispatcher:
            monkeypatch.setattr(database, "read", slow)
            dispatcher.refill(subscriber["id"])
            await gate.wait_for(1)
            path = f"/v1/subscribers/{subscriber['id']}"
            await world.client.patch(path, json={"url": OTHER_URL})
            gate.is_open.set()
            await dispatcher.settle()
            await world.generate()
            for _ in range(2):
                await dispatcher.run_due(world.clock())
                await dispatcher.settle()
        assert [sent.url for sent in world.subscribers.webhooks] == [OTHER_URL]


async def test_a_subscriber_that_is_changed_while_its_rows_are_read_stalls_nothing(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE)
        await world.generate()
        async with attach_worker(world) as dispatcher:
            await dispatcher.scan()
            await dispatcher.run_due(world.clock())
            for _ in range(5):
                dispatcher.reload(subscriber["id"])
                await dispatcher.run_due(world.clock())
            await dispatcher.settle()
            assert len(world.subscribers.webhooks) == 1


async def test_a_retry_that_falls_due_while_first_attempts_are_read_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        database, sent, reading = world.app.database, Gate(500), Gate()
        queue_answers(world, 500, sent)
        subscriber = await world.subscribe(**ONE, retry_schedule_seconds=[0, 1, 1])

        async def slow(unit: Any, *args: Any) -> Any:
            if unit is stored.fetch_due and args[2] == "first":
                await reading()  # First attempts, while a retry is being recorded.
            return await type(database).read(database, unit, *args)

        async with attach_worker(world) as dispatcher:
            await world.generate()
            await dispatcher.settle()
            world.clock.advance(1)
            await dispatcher.run_due(world.clock())
            await sent.wait_for(1)
            monkeypatch.setattr(database, "read", slow)
            dispatcher.refill(subscriber["id"])
            await reading.wait_for(1)
            sent.is_open.set()
            while dispatcher.lanes[subscriber["id"]].held_ids:
                await deliveries(world)
            world.clock.advance(1)
            reading.is_open.set()
            await dispatcher.settle()
            assert len(world.subscribers.webhooks) == 3


async def test_another_process_that_pauses_a_subscriber_is_heeded(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        gate = Gate()
        queue_answers(world, gate)
        subscriber = await world.subscribe(**ONE, max_in_flight=1)
        worker = world.app.worker
        assert worker is not None
        async with attach_worker(world) as dispatcher:
            await worker.session.watch(world.clock())
            await world.generate()
            await world.generate()
            await gate.wait_for(1)
            mine, world.app = world.app, world.new_app()
            await world.app.start(worker=False)
            path = f"/v1/subscribers/{subscriber['id']}"
            await world.client.patch(path, json={"status": "paused"})
            await world.app.stop()
            world.app = mine
            await worker.session.watch(world.clock())
            gate.is_open.set()
            await dispatcher.run_due(world.clock())
            await dispatcher.settle()
            assert len(world.subscribers.webhooks) == 1


async def test_lanes_without_work_are_dropped_when_there_are_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.delivery.dispatch.LANES_MAX", 4)
    async with opened(tmp_path) as world, attach_worker(world) as dispatcher:
        dispatcher._lanes_max = 4
        for number in range(12):
            await world.subscribe(f"http://127.0.0.1:7/{number}", **ONE)
            await world.generate()
            await dispatcher.settle()
        assert len(world.subscribers.webhooks) == sum(range(13))
        assert len(dispatcher.lanes) == 12  # All had work at the same time.
        dispatcher._lanes_max = 13
        dispatcher._lane("sub_more")
        dispatcher._lanes_max = 4
        dispatcher._lane("sub_one_more")
        assert list(dispatcher.lanes) == ["sub_one_more"]


async def test_a_tick_leaves_nothing_in_memory_that_another_process_might_send(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(**ONE)
        await world.run()
        await world.generate()
        old = await take_over(world)
        await world.run()
        assert (await delivery(world))["status"] == "delivered"
        mine, world.app = world.app, old
        await world.run()
        world.app = mine
        await old.stop()
        assert len(world.subscribers.webhooks) == 1


async def test_a_delivery_that_is_due_since_the_epoch_is_sent(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(**ONE)
        await world.generate()
        await execute(world, "UPDATE deliveries SET due_at = 0")
        await world.run()
        assert (await delivery(world))["status"] == "delivered"


async def test_a_lane_reads_no_row_again_and_again_while_a_retry_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.delivery.lanes.BODIES_BYTES_MAX", 0)
    reads, fetch_due = list[Any](), stored.fetch_due

    async def count(tx: Any, *args: Any) -> Any:
        reads.append(args)
        return await fetch_due(tx, *args)

    monkeypatch.setattr(stored, "fetch_due", count)
    async with opened(tmp_path) as world:
        gate = Gate()
        await world.subscribe(**ONE, retry_schedule_seconds=[0])
        queue_answers(world, 500, 500, gate)
        for _ in range(2):
            await world.generate()
        await world.run()
        async with attach_worker(world) as dispatcher:
            for dead in await deliveries(world, status="dead"):
                await world.client.post(f"/v1/deliveries/{dead['id']}/retry")
            await gate.wait_for(1)
            reads.clear()
            for _ in range(20):
                await world.app.database.schema_problem()
            assert len(reads) <= 3
            gate.is_open.set()
            await dispatcher.settle()
        assert {each["status"] for each in await deliveries(world)} == {"delivered"}
