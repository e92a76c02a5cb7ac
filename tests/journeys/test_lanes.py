"""Lanes: each subscriber's own pace and its own slots, and how all share what there is."""

import itertools
import os
from pathlib import Path
from typing import Any

import pytest

from service.delivery import signing_keys
from service.delivery.lanes import READY_BYTES_MAX, READY_MAX, Lane, Settings, Slots, find
from service.delivery.webhook.request import Answer, parse_target
from service.model.delivery import Due
from service.model.subscriber import Subscriber
from service.store import deliveries as stored
from service.store.sqlite.database import Database
from tests.harness import START, SUBSCRIBER_URL, opened
from tests.journeys.gates import Gate, answer, attached, crash, deliveries, delivery

ONE = {"event_types": ["generation.submitted"]}
OTHER_URL = "http://127.0.0.1:7/other"


def settings(**fields: Any) -> Settings:
    subscriber = Subscriber(
        id="sub_1",
        tenant="default",
        url=SUBSCRIBER_URL,
        retry_schedule_seconds=[0],
        created_at=0,
        updated_at=0,
        **fields,
    )
    signer = signing_keys.Signer(signing_keys.new_secrets(os.urandom))
    return Settings(subscriber, parse_target(SUBSCRIBER_URL), {}, signer)


def lane_of(**fields: Any) -> Lane:
    lane = Lane("sub_1")
    lane.use(settings(**fields))
    return lane


def due(number: int, attempt_count: int = 0, body: bytes = b"{}") -> Due:
    return Due(
        tenant="default",
        id=f"dlv_{number}",
        subscriber_id="sub_1",
        event_id="evt_1",
        event_type="ping",
        generation_id=None,
        attempt_count=attempt_count,
        trigger="scheduled",
        ordered=False,
        body=body,
    )


def taken(lane: Lane, now: int = START) -> list[str]:
    found = []
    while (one := lane.take_next(now)) is not None:
        found.append(one.id)
    return found


# One lane


def test_retries_leave_slots_for_first_attempts() -> None:
    lane = lane_of(max_in_flight=8)
    for number in range(20):
        lane.take_in(due(number, attempt_count=1))
    assert len(taken(lane)) == 6
    lane.take_in(due(100))
    lane.take_in(due(101))
    lane.take_in(due(102))
    assert taken(lane) == ["dlv_100", "dlv_101"]


def test_every_fourth_is_a_retry_where_both_wait() -> None:
    lane = lane_of(max_in_flight=1)
    for number in range(6):
        lane.take_in(due(number))
        lane.take_in(due(number + 10, attempt_count=1))
    order = []
    while (one := lane.take_next(START)) is not None:
        order.append(one.attempt_count)
        lane.release(one)
    assert order == [0, 0, 0, 1, 0, 0, 0, 1, 1, 1, 1, 1]


def test_a_lane_holds_so_many_deliveries_and_so_many_bytes() -> None:
    lane = lane_of()
    assert [lane.take_in(due(number)) for number in range(READY_MAX + 1)].count(True) == READY_MAX
    heavy = lane_of()
    big = b"x" * (READY_BYTES_MAX // 2)
    assert [heavy.take_in(due(number, body=big)) for number in range(3)] == [True, True, False]
    assert len(taken(heavy)) == 2
    assert heavy.take_in(due(4, body=big))


def test_a_delivery_is_held_once() -> None:
    lane = lane_of()
    assert lane.take_in(due(1))
    assert not lane.take_in(due(1))
    [one] = [lane.take_next(START)]
    assert one is not None
    assert not lane.take_in(due(1))
    lane.release(one)
    assert lane.take_in(due(1))


def test_a_closed_lane_holds_nothing() -> None:
    lane = lane_of()
    lane.take_in(due(1))
    lane.use(settings(status="paused"))
    assert lane.waiting == 0
    assert not lane.take_in(due(2))
    assert taken(lane) == []


def test_a_rate_is_kept_exactly_over_many_sends_and_a_late_timer_does_not_slow_it() -> None:
    lane = lane_of(max_in_flight=100, rate_per_second=300.0)
    now, sent = START, 0
    for _ in range(3_000):
        while (one := lane.take_next(now)) is not None:
            lane.release(one)
            sent += 1
        lane.take_in(due(now))
        now += 1
    assert 899 <= sent <= 901
    slow = lane_of(rate_per_second=10.0)
    at = []
    for number, late in enumerate((0, 30, 0, 49, 0)):
        slow.take_in(due(number))
        now = (slow.blocked_until(now) or now) + late
        assert slow.take_next(now) is not None
        at.append(now - late)
    assert [b - a for a, b in itertools.pairwise(at)] == [100] * 4


def test_after_a_rest_a_lane_does_not_make_up_for_it() -> None:
    lane = lane_of(rate_per_second=1.0)
    for number in range(3):
        lane.take_in(due(number))
    assert taken(lane, START) == ["dlv_0"]
    assert taken(lane, START + 60_000) == ["dlv_1"]
    assert lane.blocked_until(START + 60_000) == START + 61_000


# Slots


def busy(in_flight: int, *, failing: bool = False) -> Lane:
    lane = lane_of(max_in_flight=100)
    lane.first.in_flight = in_flight
    lane.failing_since = 1 if failing else None
    lane.take_in(due(1))
    return lane


def test_a_lane_takes_more_only_while_more_is_free_than_it_holds() -> None:
    slots = Slots(10)
    slots.taken = 5
    assert slots.are_free_for(busy(4))
    assert not slots.are_free_for(busy(5))
    slots.taken = 9
    assert slots.are_free_for(busy(0))
    assert not slots.are_free_for(busy(1))


def test_lanes_that_fail_never_get_the_last_quarter() -> None:
    slots = Slots(8)
    slots.taken = 5
    assert slots.are_free_for(busy(0, failing=True))
    slots.taken = 6
    assert not slots.are_free_for(busy(0, failing=True))
    assert slots.are_free_for(busy(0))


def test_lanes_that_hold_the_fewest_are_served_first_and_then_in_turn() -> None:
    slots = Slots(8)
    slots.taken = 8
    greedy, first, second = busy(3), busy(0), busy(0)
    for lane in (greedy, first, second):
        slots.wait(lane)
    assert slots.next_waiting() is None
    slots.taken = 7
    assert slots.next_waiting() is first
    assert slots.next_waiting() is second
    assert slots.next_waiting() is None
    slots.taken = 4
    assert slots.next_waiting() is greedy


def test_a_lane_that_holds_fewer_by_now_moves_up_and_is_served_once() -> None:
    slots = Slots(4)
    slots.taken = 4
    lane = busy(3)
    slots.wait(lane)
    lane.first.in_flight = 0
    slots.wait(lane)
    slots.taken = 3
    assert slots.next_waiting() is lane
    slots.taken = 0
    assert slots.next_waiting() is None


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
async def test_two_backlogs_share_the_slots_however_few(tmp_path: Path, count: int) -> None:
    async with opened(tmp_path, max_in_flight=count) as world:
        for url in (SUBSCRIBER_URL, OTHER_URL):
            await world.subscribe(url, **ONE)
        for _ in range(12):
            await world.generate()
        await world.run()
        order = [sent.url for sent in world.subscribers.sent]
        assert order.count(SUBSCRIBER_URL) == order.count(OTHER_URL) == 12
        half = order[: 12 + count]
        assert min(half.count(SUBSCRIBER_URL), half.count(OTHER_URL)) >= 3


# Through the service


async def test_no_more_attempts_are_under_way_than_the_subscriber_allows(tmp_path: Path) -> None:
    async with opened(tmp_path, shutdown_seconds=0) as world:
        gate = Gate()
        answer(world, *[gate] * 10)
        await world.subscribe(**ONE, max_in_flight=3)
        assert world.app.worker is not None
        world.app.worker.start()
        for _ in range(10):
            await world.generate()
        await gate.wait_for(3)
        gate.is_open.set()
        await gate.wait_for(10)
        assert gate.most_held == 3


async def test_a_rate_spaces_attempts_and_survives_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(**ONE, rate_per_second=0.1)
        for _ in range(4):
            await world.generate()
        for _ in range(25):
            await world.run(1)
        assert [(sent.at - START) // 1_000 for sent in world.subscribers.sent] == [1, 11, 21]
        await world.restart()
        for _ in range(10):
            await world.run(1)
        assert [(sent.at - START) // 1_000 for sent in world.subscribers.sent][3:] == [31]


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_throttled_subscriber_gets_nothing_until_it_asked_for_more(
    tmp_path: Path, status: int
) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(**ONE, max_in_flight=1)
        await world.subscribe(OTHER_URL, **ONE)
        answer(world, Answer(status, (("retry-after", "120"),), b"", False))
        for _ in range(3):
            await world.generate()
        await world.run()
        await world.generate()
        await world.run(119)
        assert len(world.subscribers.to(SUBSCRIBER_URL)) == 1
        assert len(world.subscribers.to(OTHER_URL)) == 4
        await world.restart()
        await world.run(0.999)
        assert len(world.subscribers.to(SUBSCRIBER_URL)) == 1
        await world.run(0.001)
        assert len(world.subscribers.to(SUBSCRIBER_URL)) == 5


async def test_a_success_beside_it_does_not_lift_what_a_receiver_asked_for(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(**ONE, max_in_flight=2)
        throttled, good = Gate(Answer(429, (("retry-after", "60"),), b"", False)), Gate()
        answer(world, throttled, good)
        async with attached(world) as deliverer:
            await world.generate()
            await world.generate()
            await good.wait_for(1)
            throttled.is_open.set()
            while deliverer.slots.taken == 2:
                await world.get("/v1/subscribers")
            good.is_open.set()
        assert [d["status"] for d in await deliveries(world)] == ["pending", "delivered"]
        await world.restart()
        await world.generate()
        await world.run(59)
        assert len(world.subscribers.sent) == 2
        await world.run(1)
        assert len(world.subscribers.sent) == 4


async def test_a_paused_subscriber_keeps_its_backlog_in_order(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE, max_in_flight=1)
        path = f"/v1/subscribers/{subscriber['id']}"
        await world.client.patch(path, json={"status": "paused"})
        made = [(await world.generate())["id"] for _ in range(5)]
        await world.run(3_600)
        assert world.subscribers.sent == []
        assert {found["status"] for found in await deliveries(world)} == {"pending"}
        await world.client.patch(path, json={"status": "active"})
        await world.run()
        assert [sent.event["data"]["id"] for sent in world.subscribers.sent] == made


async def test_a_change_reaches_a_lane_that_is_reading_at_that_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE)
        database = world.app.database
        old, gate = await database.read(find, subscriber["id"]), Gate()

        async def slow(unit: Any, *args: Any) -> Any:
            if unit is find and not gate.is_open.is_set():
                await gate()
                return old  # Read before the change, told after it.
            return await Database.read(database, unit, *args)

        async with attached(world) as deliverer:
            monkeypatch.setattr(database, "read", slow)
            deliverer.look(subscriber["id"])
            await gate.wait_for(1)
            path = f"/v1/subscribers/{subscriber['id']}"
            await world.client.patch(path, json={"url": OTHER_URL})
            gate.is_open.set()
            await deliverer.settle()
            await world.generate()
            for _ in range(2):
                await deliverer.run_due(world.clock())
                await deliverer.settle()
        assert [sent.url for sent in world.subscribers.sent] == [OTHER_URL]


async def test_a_subscriber_that_is_changed_while_its_rows_are_read_stalls_nothing(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE)
        await world.generate()
        async with attached(world) as deliverer:
            await deliverer.scan()
            await deliverer.run_due(world.clock())
            for _ in range(5):
                deliverer.reload(subscriber["id"])
                await deliverer.run_due(world.clock())
            await deliverer.settle()
            assert len(world.subscribers.sent) == 1


async def test_a_retry_that_falls_due_while_first_attempts_are_read_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        database, sent, reading = world.app.database, Gate(500), Gate()
        answer(world, 500, sent)
        subscriber = await world.subscribe(**ONE, retry_schedule_seconds=[0, 1, 1])

        async def slow(unit: Any, *args: Any) -> Any:
            if unit is stored.due and args[2] is False:
                await reading()  # First attempts, while a retry is being recorded.
            return await Database.read(database, unit, *args)

        async with attached(world) as deliverer:
            await world.generate()
            await deliverer.settle()
            world.clock.advance(1)
            await deliverer.run_due(world.clock())
            await sent.wait_for(1)
            monkeypatch.setattr(database, "read", slow)
            deliverer.look(subscriber["id"])
            await reading.wait_for(1)
            sent.is_open.set()
            while deliverer.lanes[subscriber["id"]].known:
                await deliveries(world)
            world.clock.advance(1)
            reading.is_open.set()
            await deliverer.settle()
            assert len(world.subscribers.sent) == 3


async def test_another_process_that_pauses_a_subscriber_is_heeded(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        gate = Gate()
        answer(world, gate)
        subscriber = await world.subscribe(**ONE, max_in_flight=1)
        worker = world.app.worker
        assert worker is not None
        async with attached(world) as deliverer:
            await worker._watch(world.clock())
            await world.generate()
            await world.generate()
            await gate.wait_for(1)
            mine, world.app = world.app, world.new_app()
            await world.app.start(worker=False)
            path = f"/v1/subscribers/{subscriber['id']}"
            await world.client.patch(path, json={"status": "paused"})
            await world.app.stop()
            world.app = mine
            await worker._watch(world.clock())
            gate.is_open.set()
            await deliverer.run_due(world.clock())
            await deliverer.settle()
            assert len(world.subscribers.sent) == 1


async def test_lanes_without_work_are_dropped_when_there_are_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.delivery.dispatch.LANES_MAX", 4)
    async with opened(tmp_path) as world:
        async with attached(world) as deliverer:
            deliverer._lanes_max = 4
            for number in range(12):
                await world.subscribe(f"http://127.0.0.1:7/{number}", **ONE)
                await world.generate()
                await deliverer.settle()
        assert len(world.subscribers.sent) == sum(range(13))
        assert len(deliverer.lanes) == 12  # All had work at the same time.
        deliverer.lanes["sub_more"] = deliverer._lane("sub_more")
        deliverer._lanes_max = 4
        deliverer._lane("sub_one_more")
        assert list(deliverer.lanes) == ["sub_one_more"]


async def test_a_tick_leaves_nothing_in_memory_that_another_process_might_send(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(**ONE)
        await world.run()
        await world.generate()
        old = await crash(world)
        await world.run()
        assert (await delivery(world))["status"] == "delivered"
        mine, world.app = world.app, old
        await world.run()
        world.app = mine
        await old.stop()
        assert len(world.subscribers.sent) == 1
