"""Timers: the earliest time for each name, in bounded memory."""

from hypothesis import given
from hypothesis import strategies as st

from service.delivery.timers import OUTDATED_MIN, Timers


def test_a_later_time_for_a_name_changes_nothing_and_an_earlier_one_replaces_it() -> None:
    timers = Timers()
    assert timers.set(50, "a")
    assert not timers.set(70, "a")
    assert timers.set(30, "a")
    assert list(timers.take_due(49)) == ["a"]
    assert list(timers.take_due(100)) == [], "what was replaced is not due again"
    assert timers.next_at is None


def test_all_times_without_a_name_are_kept() -> None:
    timers = Timers()
    assert timers.set(10)
    assert not timers.set(20)
    assert list(timers.take_due(15)) == []
    assert timers.next_at == 20


def test_a_name_that_is_set_again_while_it_is_taken_is_due_again() -> None:
    timers = Timers()
    timers.set(10, "a")
    taken = []
    for name in timers.take_due(20):
        taken.append(name)
        if len(taken) < 3:
            timers.set(15, name)
    assert taken == ["a"] * 3


def test_what_is_replaced_again_and_again_takes_no_more_memory() -> None:
    timers = Timers()
    for number in range(10 * OUTDATED_MIN):
        timers.set(10**9 - number, "rests")
    assert len(timers._queue) <= OUTDATED_MIN + 3


@given(st.lists(st.tuples(st.integers(0, 50), st.sampled_from("abc")), max_size=60), st.data())
def test_each_name_is_due_at_its_earliest_time(
    times: list[tuple[int, str]], data: st.DataObject
) -> None:
    timers, expected = Timers(), dict[str, int]()
    for at, name in times:
        is_next = at < expected.get(name, at + 1) and at <= min(expected.values(), default=at)
        assert timers.set(at, name) is is_next
        expected[name] = min(at, expected.get(name, at))
    now = data.draw(st.integers(0, 50))
    assert sorted(timers.take_due(now)) == sorted(n for n, at in expected.items() if at <= now)
