"""The slots that all lanes share."""

import gc
import itertools
import random  # noqa: TID251  a history is its seed
from collections import Counter
from collections.abc import Collection
from typing import Any

import pytest

from service.delivery.lanes import Lane
from service.delivery.receivers import FAILING, PROVEN, UNTRIED, Receiver
from service.delivery.shares import PUSHES, Share
from service.delivery.slots import Slots
from service.delivery.window import Window
from service.model.delivery import DueDelivery
from tests.delivery.test_lanes import due, lane_of
from tests.harness import START

_number = itertools.count()


def lane_with(slots: Slots, held: int, *, standing: int = PROVEN, **fields: Any) -> Lane:
    """A lane of its own receiver and tenant, with attempts under way and one that waits."""
    number = next(_number)
    defaults = {"id": f"sub_{number}", "url": f"http://{number}.test/", "tenant": f"t{number}"}
    lane = lane_of(**{**defaults, **fields})
    lane.receiver.standing = standing
    for index in range(held):
        slots.take(lane, f"{lane.subscriber_id} {index}")
    lane.hold(due(1))
    return lane


def release(slots: Slots, lane: Lane, index: int = 0) -> None:
    slots.release(f"{lane.subscriber_id} {index}")


def test_a_lane_takes_more_only_while_more_is_free_than_it_holds() -> None:
    slots = Slots(10)
    first = lane_with(slots, 4)
    lane_with(slots, 1)
    assert slots.are_free_for(first)
    slots.take(first, "fifth")
    assert not slots.are_free_for(first)
    assert slots.are_free_for(lane_with(slots, 1))
    assert not slots.are_free_for(lane_with(slots, 2))
    assert not slots.are_free_for(lane_with(slots, 1))


def test_lanes_that_fail_never_get_the_last_quarter() -> None:
    slots = Slots(8)
    for _ in range(5):
        lane_with(slots, 1)
    assert slots.are_free_for(lane_with(slots, 0, standing=FAILING))
    lane_with(slots, 1)
    assert not slots.are_free_for(lane_with(slots, 0, standing=FAILING))
    assert slots.are_free_for(lane_with(slots, 0))


def test_lanes_that_hold_the_fewest_are_served_first_and_then_in_turn() -> None:
    slots = Slots(8)
    greedy, first, second = (lane_with(slots, held) for held in (3, 0, 0))
    others = [lane_with(slots, 1) for _ in range(5)]
    for lane in (greedy, first, second):
        slots.wait(lane)
    assert slots.next_waiting() is None
    release(slots, others[0])
    assert slots.next_waiting() is first
    assert slots.next_waiting() is second
    assert slots.next_waiting() is None
    for other in others[1:4]:
        release(slots, other)
    assert slots.next_waiting() is greedy


@pytest.mark.parametrize("standing", [PROVEN, UNTRIED])
def test_lanes_take_turns_in_the_only_slot(standing: int) -> None:
    slots = Slots(1)
    lanes = [lane_with(slots, 0, tenant="t", standing=s) for s in (PROVEN, standing)]
    served = [lanes[0]]
    slots.take(lanes[0], "attempt")
    for lane in lanes:
        slots.wait(lane)
    for _ in range(6):
        slots.release("attempt")
        following = slots.next_waiting()
        assert following is not None
        slots.take(following, "attempt")
        slots.wait(following)
        served.append(following)
    assert min(map(served.count, lanes)) >= 3


def test_a_lane_that_holds_fewer_by_now_moves_up_and_is_served_once() -> None:
    slots = Slots(4)
    lane = lane_with(slots, 3)
    lane_with(slots, 1)
    slots.wait(lane)
    for index in range(3):
        release(slots, lane, index)
    assert slots.next_waiting() is lane
    assert slots.next_waiting() is None


def test_however_many_lanes_a_tenant_has_it_leaves_slots_to_the_others() -> None:
    slots = Slots(100)
    taken = 0
    for index in range(200):
        lane = lane_with(slots, 0, tenant="greedy", url=f"http://{index}.test/")
        if slots.are_free_for(lane):
            slots.take(lane, f"greedy {index}")
            taken += 1
    assert taken == 80
    for _ in range(4):
        other = lane_with(slots, 0)
        assert slots.are_free_for(other)
        slots.take(other, other.subscriber_id)


def test_however_many_lanes_lead_to_a_receiver_it_leaves_slots_to_the_others() -> None:
    slots = Slots(90)
    taken = 0
    for index in range(90):
        lane = lane_with(slots, 0, tenant="one", url=f"http://same.test/{index}")
        if slots.are_free_for(lane):
            slots.take(lane, f"same {index}")
            taken += 1
    assert taken == 60
    assert slots.are_free_for(lane_with(slots, 0, tenant="one"))


def fill(slots: Slots, tenant: str, standing: int) -> int:
    """Let new lanes of a tenant take what they can; return how many slots that is."""
    taken = 0
    for _ in range(slots.count):
        lane = lane_with(slots, 0, tenant=tenant, standing=standing)
        if slots.are_free_for(lane):
            slots.take(lane, lane.subscriber_id)
            taken += 1
    return taken


def test_what_fails_leaves_slots_to_what_is_new_and_both_to_what_has_answered() -> None:
    slots = Slots(100)
    assert [fill(slots, "one", standing) for standing in (FAILING, UNTRIED, PROVEN)] == [50, 17, 13]
    assert fill(slots, "other", UNTRIED) == 14
    assert fill(Slots(100), "one", UNTRIED) == 67


@pytest.mark.parametrize("count", range(6, 40))
def test_however_few_slots_there_are_what_has_answered_finds_one(count: int) -> None:
    slots = Slots(count)
    for standing in (UNTRIED, FAILING, UNTRIED):
        fill(slots, "one", standing)
    assert fill(slots, "one", PROVEN) > 0


def test_a_lane_whose_receiver_answers_waits_no_longer_for_those_that_do_not() -> None:
    slots = Slots(100)
    lane = lane_with(slots, 1, tenant="one", standing=UNTRIED)
    fill(slots, "one", UNTRIED)
    slots.wait(lane)
    assert slots.next_waiting() is None
    lane.receiver.standing = PROVEN
    slots.update_share(lane)
    assert slots.next_waiting() is lane
    assert slots.next_waiting() is None
    release(slots, lane)


def test_notify_urls_of_one_receiver_change_their_standing_together() -> None:
    slots, receiver = Slots(100), Receiver(window=Window(10))
    same: dict[str, Any] = {"receiver": receiver, "is_notify": True, "tenant": "one"}
    first, second = [
        lane_with(slots, 1, url=f"http://same.test/?job={i}", standing=UNTRIED, **same)
        for i in range(2)
    ]
    fill(slots, "one", UNTRIED)
    slots.wait(second)
    assert slots.next_waiting() is None
    receiver.standing = PROVEN
    slots.update_share(first)
    assert slots.next_waiting() is second


def test_a_lane_counts_as_new_from_when_another_at_its_origin_fails_until_it_answers() -> None:
    slots, origin = Slots(100), Receiver()
    same: dict[str, Any] = {"tenant": "one", "url": "http://same.test/"}
    lane, other = [lane_with(slots, 0, **same, receiver=Receiver(origin)) for _ in range(2)]
    lane.receiver.note_answer(START)
    fill(slots, "one", UNTRIED)
    other.receiver.note_failure(START)
    assert slots.are_free_for(lane)  # It has answered since that attempt began.
    other.receiver.note_failure(START + 1)
    assert not slots.are_free_for(lane)
    lane.receiver.standing = PROVEN
    lane.receiver.note_answer(START)  # Even if the clock went back.
    slots.update_share(lane)
    assert slots.are_free_for(lane)


def test_lanes_that_wait_count_as_new_once_another_at_their_origin_fails() -> None:
    slots, origin = Slots(100), Receiver()
    same: dict[str, Any] = {"tenant": "one", "url": "http://same.test/"}
    fill(slots, "one", UNTRIED)
    lanes = [lane_with(slots, 0, **same, receiver=Receiver(origin)) for _ in range(20)]
    good = lane_with(slots, 1, tenant="one")
    for lane in (*lanes, good):
        slots.wait(lane)
    lanes[0].receiver.note_failure(START)
    assert slots.next_waiting() is good  # Though it came last and holds more.
    assert slots.next_waiting() is None
    assert set(slots.waiting.values()) == set(lanes)


@pytest.mark.parametrize("offered", [[], [due(2)]])
def test_a_lane_that_was_dropped_has_no_turn_and_holds_up_no_other(
    offered: Collection[DueDelivery],
) -> None:
    slots, origin = Slots(100), Receiver()
    same: dict[str, Any] = {"tenant": "one", "url": "http://same.test/"}
    changed, other = [lane_with(slots, 0, **same, receiver=Receiver(origin)) for _ in range(2)]
    good = lane_with(slots, 0, tenant="one")
    for lane in (changed, good):
        slots.wait(lane)
    changed.drop_recipient()  # It is read again, or, if another process had it, is another lane.
    for delivery in offered:
        changed.hold(delivery)
    other.receiver.note_failure(START)
    assert changed.receiver.is_doubted()
    assert [slots.next_waiting() for _ in range(2)] == [good, None]
    assert slots.waiting == {}


def test_a_lane_that_is_dropped_leaves_its_turn_to_the_other_lanes_of_its_tenant() -> None:
    slots = Slots(100)
    dropped, mine = (lane_with(slots, 0, tenant="first") for _ in range(2))
    others = lane_with(slots, 0, tenant="second")
    for lane in (dropped, mine, others):
        slots.wait(lane)
    dropped.drop_recipient()
    assert [slots.next_waiting() for _ in range(3)] == [mine, others, None]


def test_a_lane_that_leads_to_another_receiver_by_now_has_no_turn_in_its_old_place() -> None:
    slots = Slots(100)
    lane = lane_with(slots, 0, tenant="one", url="http://old.test/")
    good = lane_with(slots, 1, tenant="one")
    for each in (lane, good):
        slots.wait(each)
    moved = lane_of(id=lane.subscriber_id, url="http://new.test/", tenant="one").recipient
    assert moved is not None
    lane.set_recipient(moved, Receiver())
    slots.wait(lane)
    assert [slots.next_waiting() for _ in range(3)] == [lane, good, None]


def test_tenants_that_hold_the_fewest_are_served_first() -> None:
    slots = Slots(40)
    greedy = [lane_with(slots, 1, tenant="greedy") for _ in range(30)]
    lane_with(slots, 10)
    modest = lane_with(slots, 0, tenant="modest")
    for lane in (*greedy, modest):
        slots.wait(lane)
    assert slots.next_waiting() is None
    release(slots, greedy[0])
    assert slots.next_waiting() is modest
    assert slots.next_waiting() is None


def test_notify_urls_of_one_receiver_share_its_window() -> None:
    window = Window(10)
    slots, receiver = Slots(100), Receiver(window=window)
    same: dict[str, Any] = {"receiver": receiver, "is_notify": True, "tenant": "one"}
    lanes = [lane_with(slots, 0, url=f"http://same.test/?job={i}", **same) for i in range(20)]
    size = window.size
    for lane in lanes[:size]:
        assert slots.are_free_for(lane)
        slots.take(lane, lane.subscriber_id)
    last = lanes[size]
    assert not slots.are_free_for(last)
    slots.wait(last)
    assert slots.next_waiting() is None
    slots.release(lanes[0].subscriber_id)
    assert slots.next_waiting() is last


def test_nothing_is_kept_of_lanes_that_hold_nothing() -> None:
    slots = Slots(4)
    lanes = [lane_with(slots, 1) for _ in range(4)]
    waiting = lane_with(slots, 0)
    slots.wait(waiting)
    for lane in lanes:
        release(slots, lane)
    assert slots.next_waiting() is waiting
    assert slots.next_waiting() is None
    assert (slots.in_use, slots.waiting, slots._taken) == (0, {}, {})
    lanes.clear()
    del lane, waiting
    gc.collect()
    assert len(slots._shares) == 0


def test_a_lane_whose_turn_does_not_come_lets_no_queue_grow() -> None:
    slots = Slots(12)
    first, lane = lane_with(slots, 4, tenant="one"), lane_with(slots, 6, tenant="one")
    slots.wait(first)
    for _ in range(4 * PUSHES):
        slots.wait(lane)
        release(slots, lane)
        assert slots.next_waiting() is None
        slots.take(lane, f"{lane.subscriber_id} 0")
        assert slots.next_waiting() is None
    each = lane.share
    while each is not None:
        assert len(each.queue) <= PUSHES
        each = each.parent


def place(share: Share, waiting: Collection[Share]) -> tuple[int, int]:
    """How many slots a share needs, and how many it holds: whoever has less comes first."""
    needed = max(share.held // share.weight, share.reserve)
    if share not in waiting:
        needed = max(needed, min(place(part, waiting) for part in parts(share, waiting))[0])
    return needed, share.held


def parts(share: Share, waiting: Collection[Share]) -> Collection[Share]:
    """The parts of a share under which a lane waits."""
    above: dict[Share, None] = dict.fromkeys(waiting)
    for each in waiting:
        while (each := each.parent or share) is not share:
            above[each] = None
    return [each for each in above if each.parent is share]


def check_held(slots: Slots, held: Collection[tuple[Lane, str]]) -> None:
    """Each share holds what its lanes hold, wherever they have moved to."""
    counts: Counter[Share] = Counter()
    for lane, _ in held:
        each = lane.share
        while each is not None:
            counts[each] += 1
            each = each.parent
    assert {share: share.held for share in slots._shares.values() if share.held} == {
        share: count for share, count in counts.items() if share is not slots._root
    }
    assert slots._root.held == slots.in_use == len(held)


def test_who_frees_a_slot_and_is_the_next_has_it_again_in_its_old_place() -> None:
    slots = Slots(24)
    lane, other = (lane_with(slots, held, tenant="one") for held in (4, 5))
    for _ in range(11):
        lane_with(slots, 1)
    slots.wait(lane)
    slots.wait(other)
    assert slots.next_waiting() is None
    assert lane.share is not None
    assert lane.share.parent is not None
    places = lane.share.entry, lane.share.parent.entry
    for index in range(4):
        release(slots, lane, index)
        assert slots.next_waiting() is lane
        slots.take(lane, f"again {index}")
        slots.wait(lane)
        assert slots.next_waiting() is None
        assert (lane.share.entry, lane.share.parent.entry) == places
    assert slots._outdated == {}


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happened_before_the_next_is_who_holds_the_fewest_at_each_level(
    seed: int,
) -> None:
    slots, held, dice = Slots(24), list[tuple[Lane, str]](), random.Random(seed)
    lanes = [
        lane_of(id=f"sub_{i}", tenant=f"t{i % 3}", url=f"http://{i % 2}.test/") for i in range(12)
    ]
    for lane in lanes:
        lane.hold(due(1))
    for number in range(400):
        lane = dice.choice(lanes)
        act = dice.choice(("wait", "take", "take", "stand", "release"))
        if act == "wait":
            slots.wait(lane)
        elif act == "take" and slots.free:
            held.append((lane, f"{number}"))
            slots.take(*held[-1])
        elif act == "stand":
            lane.receiver.standing = dice.choice((PROVEN, UNTRIED, FAILING))
            slots.update_share(lane)
            check_held(slots, held)
        elif held:
            slots.release(held.pop(dice.randrange(len(held)))[1])
            waiting = [share for share in slots.waiting if share is not None]
            first = min((place(p, waiting) for p in parts(slots._root, waiting)), default=None)
            chosen = slots.next_waiting()
            assert (chosen is not None) == (first is not None and first[0] < slots.free)
            each = chosen.share if chosen else None
            while each is not None and each.parent is not None:
                beside = parts(each.parent, waiting)
                assert place(each, waiting) == min(place(part, waiting) for part in beside)
                each = each.parent
            if chosen and dice.random() < 0.7:
                held.append((chosen, f"{number} again"))
                slots.take(*held[-1])
                slots.wait(chosen)
