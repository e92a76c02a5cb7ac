"""The slots that all lanes share."""

from service.delivery.lanes import Lane
from service.delivery.slots import Slots
from tests.delivery.test_lanes import due, lane_of


def busy(in_flight: int, *, failing: bool = False) -> Lane:
    lane = lane_of(max_in_flight=100)
    lane.in_flight = in_flight
    lane.failing_since = 1 if failing else None
    lane.hold(due(1))
    return lane


def test_a_lane_takes_more_only_while_more_is_free_than_it_holds() -> None:
    slots = Slots(10)
    slots.in_use = 5
    assert slots.are_free_for(busy(4))
    assert not slots.are_free_for(busy(5))
    slots.in_use = 9
    assert slots.are_free_for(busy(0))
    assert not slots.are_free_for(busy(1))


def test_lanes_that_fail_never_get_the_last_quarter() -> None:
    slots = Slots(8)
    slots.in_use = 5
    assert slots.are_free_for(busy(0, failing=True))
    slots.in_use = 6
    assert not slots.are_free_for(busy(0, failing=True))
    assert slots.are_free_for(busy(0))


def test_lanes_that_hold_the_fewest_are_served_first_and_then_in_turn() -> None:
    slots = Slots(8)
    slots.in_use = 8
    greedy, first, second = busy(3), busy(0), busy(0)
    for lane in (greedy, first, second):
        slots.wait(lane)
    assert slots.next_waiting() is None
    slots.in_use = 7
    assert slots.next_waiting() is first
    assert slots.next_waiting() is second
    assert slots.next_waiting() is None
    slots.in_use = 4
    assert slots.next_waiting() is greedy


def test_a_lane_that_holds_fewer_by_now_moves_up_and_is_served_once() -> None:
    slots = Slots(4)
    slots.in_use = 4
    lane = busy(3)
    slots.wait(lane)
    lane.in_flight = 0
    slots.wait(lane)
    slots.in_use = 3
    assert slots.next_waiting() is lane
    slots.in_use = 0
    assert slots.next_waiting() is None
