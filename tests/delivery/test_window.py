"""A window opens while answers are quick, and closes when they slow down or fail."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.delivery.window import FLOOR, SLOW_MS, START, Window

relaxed = settings(deadline=None)
limits = st.integers(1, 100)


class Receiver:
    """Attempts in rounds: all that the window allows, answered together after `latency_ms`."""

    def __init__(self, limit: int = 100) -> None:
        self.window = Window(limit)
        self.now = 1_000

    def rounds(self, count: int, latency_ms: int) -> list[int]:
        """Answer so many rounds; return the window's size after each."""
        return [self._round(latency_ms) for _ in range(count)]

    def _round(self, latency_ms: int) -> int:
        started_at, in_flight = self.now, self.window.size
        self.now += latency_ms
        for _ in range(in_flight):
            self.window.answered(
                latency_ms, started_at=started_at, now=self.now, in_flight=in_flight
            )
        self.now += 1
        return self.window.size

    def fail_round(self, latency_ms: int = 5) -> int:
        """Let every attempt of a round fail; return the window's size."""
        started_at, in_flight = self.now, self.window.size
        self.now += latency_ms
        for _ in range(in_flight):
            self.window.failed(started_at=started_at, now=self.now)
        self.now += 1
        return self.window.size


def test_while_answers_are_quick_the_window_doubles_each_round_up_to_the_limit() -> None:
    assert Window(100).size == START
    assert Receiver().rounds(5, latency_ms=5) == [16, 32, 64, 100, 100]
    assert Receiver(20).rounds(3, latency_ms=5) == [16, 20, 20]


def test_a_receiver_that_always_takes_long_is_quick_by_its_own_measure() -> None:
    assert Receiver().rounds(4, latency_ms=2_000) == [16, 32, 64, 100]


def test_answers_that_are_neither_quick_nor_slow_open_the_window_by_one_a_round() -> None:
    receiver = Receiver()
    receiver.rounds(1, latency_ms=5)
    assert receiver.rounds(3, latency_ms=SLOW_MS - 50) == [17, 18, 19]


def test_answers_that_slow_down_halve_the_window_once_a_round() -> None:
    receiver = Receiver()
    receiver.rounds(4, latency_ms=5)
    assert receiver.rounds(3, latency_ms=2_000) == [50, 25, 12]


def test_one_slow_answer_among_quick_ones_closes_nothing() -> None:
    receiver = Receiver()
    receiver.rounds(4, latency_ms=5)
    window, now = receiver.window, receiver.now
    window.answered(1_000, started_at=now, now=now + 1_000, in_flight=100)
    assert window.size == 100


def test_failures_halve_the_window_once_a_round_down_to_the_floor() -> None:
    receiver = Receiver()
    receiver.rounds(4, latency_ms=5)
    assert [receiver.fail_round() for _ in range(7)] == [50, 25, 12, 6, 3, FLOOR, FLOOR]


def test_after_a_cut_the_window_opens_by_one_a_round() -> None:
    receiver = Receiver()
    receiver.rounds(4, latency_ms=5)
    receiver.fail_round()
    assert receiver.rounds(3, latency_ms=5) == [51, 52, 53]
    assert receiver.rounds(100, latency_ms=5)[-1] == 100


def test_what_was_under_way_at_a_cut_neither_opens_nor_closes_the_window() -> None:
    receiver = Receiver()
    window, now = receiver.window, receiver.now
    window.failed(started_at=now, now=now + 10)
    assert window.size == START // 2
    window.failed(started_at=now + 9, now=now + 20)
    for _ in range(START):
        window.answered(5, started_at=now + 9, now=now + 20, in_flight=START // 2)
    assert window.size == START // 2


def test_a_window_that_is_not_used_does_not_open() -> None:
    window = Window(100)
    for now in range(1_000, 1_100):
        window.answered(5, started_at=now, now=now + 5, in_flight=START // 2 - 1)
    assert window.size == START
    window.answered(5, started_at=2_000, now=2_005, in_flight=START // 2)
    assert window.size == START + 1


def test_a_receiver_that_has_become_slower_for_good_is_measured_anew_at_the_floor() -> None:
    receiver = Receiver()
    receiver.rounds(4, latency_ms=5)
    sizes = receiver.rounds(25, latency_ms=400)
    assert min(sizes) == FLOOR
    assert sizes[-1] == 100


def test_a_receiver_that_answers_much_more_slowly_from_now_on_is_soon_given_what_it_takes() -> None:
    receiver = Receiver()
    receiver.rounds(1, latency_ms=5)
    sizes = receiver.rounds(12, latency_ms=5_000)
    assert sizes[sizes.index(FLOOR) :][:8] == [FLOOR, 3, 6, 12, 24, 48, 96, 100]


def test_one_slow_answer_at_the_floor_hides_no_later_slowness() -> None:
    receiver = Receiver()
    receiver.rounds(1, latency_ms=5)
    receiver.rounds(4, latency_ms=5_000)
    receiver.rounds(20, latency_ms=5)
    assert receiver.window.size > FLOOR
    assert receiver.rounds(20, latency_ms=400)[-1] > FLOOR


def test_a_lower_limit_closes_the_window_and_a_higher_one_lets_it_open() -> None:
    receiver = Receiver()
    receiver.rounds(4, latency_ms=5)
    receiver.window.set_limit(3)
    assert receiver.window.size == 3
    receiver.window.set_limit(100)
    assert receiver.rounds(2, latency_ms=5) == [6, 12]


@pytest.mark.parametrize("limit", [1, 2])
def test_a_small_limit_is_a_floor_of_its_own(limit: int) -> None:
    receiver = Receiver(limit)
    assert receiver.fail_round() == limit
    assert receiver.rounds(2, latency_ms=5) == [limit, limit]


answers = st.tuples(st.just("answer"), st.integers(0, 20_000), st.integers(1, 120))
failures = st.tuples(st.just("failure"), st.integers(0, 20_000), st.just(1))
changes = st.tuples(st.just("limit"), limits, st.just(1))


@relaxed
@given(limits, st.lists(st.one_of(answers, failures, changes), max_size=200))
def test_whatever_happens_a_window_stays_between_floor_and_limit_and_can_open_again(
    limit: int, history: list[tuple[str, int, int]]
) -> None:
    receiver = Receiver(limit)
    window = receiver.window
    for kind, number, in_flight in history:
        before, started_at = window.size, receiver.now
        if kind == "limit":
            window.set_limit(number)
        else:
            receiver.now += number
        if kind == "answer":
            window.answered(number, started_at=started_at, now=receiver.now, in_flight=in_flight)
            assert window.size <= before + 1
        elif kind == "failure":
            window.failed(started_at=started_at, now=receiver.now)
            assert window.size == max(before // 2, min(FLOOR, window.limit))
        assert min(FLOOR, window.limit) <= window.size <= window.limit
    receiver.now += 1
    assert receiver.rounds(100 + SLOW_MS, latency_ms=5)[-1] == window.limit
