"""A lane: what it holds, what may leave, and at which pace."""

import itertools
import os
from typing import Any

import pytest

from service.delivery import lanes, signing
from service.delivery.attempt import Recipient
from service.delivery.lanes import READY_BYTES_MAX, READY_MAX, Bodies, Lane
from service.delivery.receivers import Receiver
from service.delivery.target import parse_target
from service.model.delivery import DueDelivery
from service.model.subscriber import Subscriber
from tests.harness import START, SUBSCRIBER_URL


def recipient(**fields: Any) -> Recipient:
    defaults: dict[str, Any] = {"id": "sub_1", "tenant": "default", "url": SUBSCRIBER_URL}
    times = {"created_at": 0, "updated_at": 0}
    subscriber = Subscriber(**{**defaults, "retry_schedule_seconds": [0], **times, **fields})
    signer = signing.Signer(signing.new_secrets(os.urandom))
    return Recipient(subscriber, parse_target(subscriber.url), {}, signer)


def lane_of(receiver: Receiver | None = None, **fields: Any) -> Lane:
    lane = Lane(fields.get("id", "sub_1"))
    lane.set_recipient(recipient(**fields), receiver or Receiver())
    return lane


def due(
    number: int, attempt_count: int = 0, body: bytes = b"{}", trigger: str = "scheduled"
) -> DueDelivery:
    return DueDelivery(
        manual_count=0,
        planned_at=None,
        tenant="default",
        id=f"dlv_{number}",
        subscriber_id="sub_1",
        event_id="evt_1",
        event_type="ping",
        generation_id=None,
        attempt_count=attempt_count,
        trigger=trigger,
        ordered=False,
        body=body,
    )


def pop_next(lane: Lane, now: int) -> DueDelivery | None:
    backlog = lane.next_backlog(now)
    return None if backlog is None else lane.pop(backlog, now)


def popped(lane: Lane, now: int = START) -> list[str]:
    ids = []
    while (one := pop_next(lane, now)) is not None:
        ids.append(one.id)
    return ids


def test_retries_leave_slots_for_first_attempts() -> None:
    lane = lane_of(max_in_flight=8)
    for number in range(20):
        lane.hold(due(number, attempt_count=1))
    assert len(popped(lane)) == 6
    lane.hold(due(100))
    lane.hold(due(101))
    lane.hold(due(102))
    assert popped(lane) == ["dlv_100", "dlv_101"]


def test_what_a_person_asked_for_leaves_slots_for_first_attempts() -> None:
    lane = lane_of(max_in_flight=8)
    for number in range(10):
        lane.hold(due(number, attempt_count=1))
        lane.hold(due(number + 20, attempt_count=1, trigger="manual"))
    assert popped(lane) == [f"dlv_{number + 20}" for number in range(6)]
    for number in range(3):
        lane.hold(due(number + 100))
    assert popped(lane) == ["dlv_100", "dlv_101"]


def test_every_second_is_one_that_a_person_asked_for_where_first_attempts_wait() -> None:
    lane = lane_of(max_in_flight=1)
    for number in range(3):
        lane.hold(due(number))
        lane.hold(due(number + 10, attempt_count=1, trigger="manual"))
    order = []
    while (one := pop_next(lane, START)) is not None:
        order.append(one.trigger)
        lane.release(one)
    assert order == ["manual", "scheduled"] * 3


def test_a_rest_lets_only_what_a_person_asked_for_leave() -> None:
    lane = lane_of()
    lane.receiver.rest_until = START + 1
    lane.hold(due(1))
    lane.hold(due(2, attempt_count=1, trigger="manual"))
    lane.hold(due(3, attempt_count=1, trigger="manual"))
    assert popped(lane) == ["dlv_2", "dlv_3"]
    assert popped(lane, START + 1) == ["dlv_1"]


def test_every_fourth_is_a_retry_where_both_wait() -> None:
    lane = lane_of(max_in_flight=1)
    for number in range(6):
        lane.hold(due(number))
        lane.hold(due(number + 10, attempt_count=1))
    order = []
    while (one := pop_next(lane, START)) is not None:
        order.append(one.attempt_count)
        lane.release(one)
    assert order == [0, 0, 0, 1, 0, 0, 0, 1, 1, 1, 1, 1]


def test_a_lane_holds_so_many_deliveries_and_so_many_bytes() -> None:
    lane = lane_of()
    assert [lane.hold(due(number)) for number in range(READY_MAX + 1)].count(True) == READY_MAX
    heavy = lane_of()
    big = b"x" * (READY_BYTES_MAX // 2)
    assert [heavy.hold(due(number, body=big)) for number in range(3)] == [True, True, False]
    assert len(popped(heavy)) == 2
    assert heavy.hold(due(4, body=big))


def test_a_delivery_is_held_once() -> None:
    lane = lane_of()
    assert lane.hold(due(1))
    assert not lane.hold(due(1))
    [one] = [pop_next(lane, START)]
    assert one is not None
    assert not lane.hold(due(1))
    lane.release(one)
    assert lane.hold(due(1))


def test_a_closed_lane_holds_nothing() -> None:
    lane = lane_of()
    lane.hold(due(1))
    lane.set_recipient(recipient(status="paused"), Receiver())
    assert lane.waiting == 0
    assert not lane.hold(due(2))
    assert popped(lane) == []


def test_a_rate_is_kept_exactly_over_many_sends_and_a_late_timer_does_not_slow_it() -> None:
    lane = lane_of(max_in_flight=100, rate_per_second=300.0)
    now, sent = START, 0
    for _ in range(3_000):
        while (one := pop_next(lane, now)) is not None:
            lane.release(one)
            sent += 1
        lane.hold(due(now))
        now += 1
    assert 899 <= sent <= 901
    slow = lane_of(rate_per_second=10.0)
    at = []
    for number, late in enumerate((0, 30, 0, 49, 0)):
        slow.hold(due(number))
        now = (slow.blocked_until(now) or now) + late
        assert pop_next(slow, now) is not None
        at.append(now - late)
    assert [b - a for a, b in itertools.pairwise(at)] == [100] * 4


def test_after_a_rest_a_lane_does_not_make_up_for_it() -> None:
    lane = lane_of(rate_per_second=1.0)
    for number in range(3):
        lane.hold(due(number))
    assert popped(lane, START) == ["dlv_0"]
    assert popped(lane, START + 60_000) == ["dlv_1"]
    assert lane.blocked_until(START + 60_000) == START + 61_000


@pytest.mark.parametrize(("rate", "next_at"), [(None, None), (0.5, START + 2_000), (1_000, None)])
def test_a_changed_rate_counts_from_the_last_attempt(rate: float, next_at: int | None) -> None:
    lane = lane_of(rate_per_second=0.01)
    lane.hold(due(0))
    assert popped(lane, START) == ["dlv_0"]
    lane.drop_recipient()
    lane.set_recipient(recipient(rate_per_second=rate), Receiver())
    assert lane.blocked_until(START + 1_500) == next_at


def test_a_first_rate_counts_from_the_last_attempt_too() -> None:
    lane = lane_of()
    lane.hold(due(0))
    assert popped(lane, START) == ["dlv_0"]
    lane.set_recipient(recipient(rate_per_second=0.5), Receiver())
    assert lane.blocked_until(START) == START + 2_000


def test_all_lanes_share_one_budget_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "BODIES_BYTES_MAX", 1_000)
    bodies = Bodies()
    many = [Lane(f"sub_{number}", bodies) for number in range(3)]
    for lane in many:
        lane.set_recipient(recipient(id=lane.subscriber_id), Receiver())
    first, second, third = many
    assert [first.hold(due(number, body=b"x" * 500)) for number in range(3)] == [True, True, False]
    assert second.hold(due(3, body=b"x" * 500))  # Each lane goes on, one by one.
    assert not second.hold(due(4))
    assert second.room_in(third.first_attempts) == 1
    second.drop_waiting()
    assert bodies.held_bytes == 1_000
    leaving = pop_next(first, START)
    assert leaving is not None
    assert bodies.held_bytes == 1_000  # What is under way counts.
    first.release(leaving)
    assert bodies.held_bytes == 500
    assert second.hold(due(5))
    assert second.hold(due(6))


def test_a_lane_that_leads_to_another_origin_begins_with_a_new_window() -> None:
    wide, elsewhere = Receiver(), Receiver()
    lane = lane_of(Receiver(wide), max_in_flight=50)
    lane.window.size = 40
    lane.drop_recipient()
    lane.set_recipient(recipient(max_in_flight=45), Receiver(wide))
    assert (lane.window.size, lane.window.limit) == (40, 45)
    lane.drop_recipient()
    lane.set_recipient(recipient(max_in_flight=45), Receiver(elsewhere))
    assert (lane.window.size, lane.window.limit) == (8, 45)
