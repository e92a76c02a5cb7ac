"""Due times of polls and repeated submissions, with bounds that hold for any input."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from service.context import Context
from service.generations import schedule
from service.model.clock import DAY, HOUR, MINUTE, SECOND
from service.model.generation import Generation
from service.settings import Settings

NOW = 784_111_777_000  # 1994-11-06 08:49:37 UTC, the example date of RFC 9110
ALMOST_ONE = 1 - 2**-53

jitters = st.floats(0, 1, exclude_max=True)
times = st.integers(0, 4_000_000_000_000)
no_time_limit = settings(deadline=None)


GENERATION = Generation(
    id="gen_1",
    tenant="default",
    model="model",
    status="processing",
    route="callback",
    input={},
    metadata={},
    created_at=NOW,
    deadline_at=NOW + DAY,
    nonce="nonce",
    submission="taken",
)


def next_poll(
    polls: int,
    *,
    callback: bool,
    now: int = NOW,
    submitted_at: int = NOW,
    usual_seconds: float = 10.0,
    p95_seconds: float = 90.0,
    safety_seconds: float | None = None,
    jitter: float = 0.5,  # The middle: no jitter.
) -> int:
    context = SimpleNamespace(
        catalogue={"model": SimpleNamespace(seconds=(usual_seconds, p95_seconds))},
        settings=Settings(safety_poll_seconds=safety_seconds),
        jitter=lambda: jitter,
    )
    route: Any = "callback" if callback else "poll"
    generation = replace(GENERATION, route=route, submitted_at=submitted_at)
    return schedule.next_poll(cast("Context", context), generation, polls, now)


def test_without_a_callback_polls_start_at_the_usual_time_and_slow_down() -> None:
    at = next_poll(0, callback=False)
    assert at == NOW + 10 * SECOND
    gaps = []
    for polls in range(1, 40):
        due = next_poll(polls, callback=False, now=at)
        gaps.append(due - at)
        at = due
    assert gaps[:7] == [2000, 3000, 4500, 6750, 10125, 15000, 15000]
    assert gaps == sorted(gaps)
    assert set(gaps[7:]) == {15 * SECOND, MINUTE}
    quick = sum(gap for gap in gaps if gap < MINUTE)
    assert 5 * MINUTE <= quick < 5 * MINUTE + 15 * SECOND


def test_with_a_callback_safety_polls_are_far_apart() -> None:
    assert next_poll(0, callback=True) == NOW + 90 * SECOND
    gaps = [next_poll(polls, callback=True) - NOW for polls in range(1, 8)]
    assert gaps == [2 * MINUTE, 5 * MINUTE, *[10 * MINUTE] * 5]


def test_the_first_safety_poll_is_after_a_minute_at_least_unless_it_is_set() -> None:
    assert next_poll(0, callback=True, p95_seconds=3.0) == NOW + MINUTE
    assert next_poll(0, callback=True, safety_seconds=3.0) == NOW + 3 * SECOND
    assert next_poll(0, callback=True, safety_seconds=0.0) == NOW
    assert next_poll(0, callback=False, safety_seconds=3.0) == NOW + 10 * SECOND


def test_a_short_first_safety_poll_shortens_the_later_delays() -> None:
    gaps = [next_poll(n, callback=True, safety_seconds=3.0) - NOW for n in range(1, 6)]
    assert gaps == [6 * SECOND, 15 * SECOND, *[30 * SECOND] * 3]
    assert next_poll(1, callback=True, safety_seconds=0.0) == NOW + 2 * SECOND
    assert next_poll(1, callback=True, safety_seconds=90.0) == NOW + 2 * MINUTE


def test_a_quick_model_is_not_polled_in_the_first_two_seconds() -> None:
    assert next_poll(0, callback=False, usual_seconds=0.1) == NOW + 2 * SECOND


def test_a_first_poll_that_was_missed_is_due_now() -> None:
    for callback in (True, False):
        assert next_poll(0, callback=callback, now=NOW + HOUR) == NOW + HOUR


@pytest.mark.parametrize("callback", [True, False])
@pytest.mark.parametrize("polls", [0, 1, 3, 50])
def test_polls_are_spread_by_a_fifth_both_ways(polls: int, *, callback: bool) -> None:
    middle = next_poll(polls, callback=callback) - NOW
    early = next_poll(polls, callback=callback, jitter=0.0) - NOW
    late = next_poll(polls, callback=callback, jitter=ALMOST_ONE) - NOW
    assert early == pytest.approx(0.8 * middle, abs=1)
    assert late == pytest.approx(1.2 * middle, abs=1)


seconds = st.floats(0, 86_400)


@no_time_limit
@given(
    callback=st.booleans(),
    polls=st.integers(0, 100_000),
    submitted_at=times,
    elapsed=st.integers(0, 10 * DAY),
    usual=seconds,
    p95=seconds,
    safety=st.one_of(st.none(), st.floats(-10, 86_400)),
    jitter=jitters,
)
def test_a_poll_is_never_due_in_the_past_or_beyond_its_bound(
    *,
    callback: bool,
    polls: int,
    submitted_at: int,
    elapsed: int,
    usual: float,
    p95: float,
    safety: float | None,
    jitter: float,
) -> None:
    now = submitted_at + elapsed
    due = next_poll(
        polls,
        callback=callback,
        now=now,
        submitted_at=submitted_at,
        usual_seconds=usual,
        p95_seconds=p95,
        safety_seconds=safety,
        jitter=jitter,
    )
    bound_ms = 1.2 * max(usual * SECOND, p95 * SECOND, (safety or 0) * SECOND, 20 * MINUTE)
    assert now <= due <= now + bound_ms + 1
    if polls > 0:
        assert due - now >= 0.8 * 2 * SECOND


@no_time_limit
@given(
    polls=st.integers(1, 1000),
    callback=st.booleans(),
    elapsed=st.integers(0, HOUR),
    jitter=jitters,
)
def test_the_delay_between_polls_never_shrinks(
    *, polls: int, callback: bool, elapsed: int, jitter: float
) -> None:
    now = NOW + elapsed
    first_at = next_poll(polls, callback=callback, now=now, jitter=jitter)
    second_at = next_poll(polls + 1, callback=callback, now=first_at, jitter=jitter)
    assert first_at - now <= second_at - first_at


def test_failed_polls_back_off_to_five_minutes() -> None:
    waits = [schedule.poll_after_trouble(count, NOW, 0.5) - NOW for count in range(1, 9)]
    assert waits == [s * SECOND for s in (5, 10, 20, 40, 80, 160, 300, 300)]


@no_time_limit
@given(st.integers(0, 10**9), times, jitters)
def test_polls_continue_after_any_number_of_failures(
    failures: int, now: int, jitter: float
) -> None:
    wait_ms = schedule.poll_after_trouble(failures, now, jitter) - now
    assert 4 * SECOND <= wait_ms <= 6 * MINUTE
    assert schedule.poll_after_trouble(failures + 1, now, jitter) - now >= wait_ms


def test_after_the_deadline_there_are_four_late_polls() -> None:
    late = [schedule.poll_after_deadline(NOW, polls, NOW, 0.5) for polls in range(4)]
    assert late == [NOW + 10 * MINUTE, NOW + HOUR, NOW + 6 * HOUR, NOW + DAY]
    assert schedule.poll_after_deadline(NOW, 4, NOW, 0.5) is None
    assert schedule.poll_after_deadline(NOW, 400, NOW, 0.0) is None


@pytest.mark.parametrize("polls", range(4))
def test_late_polls_that_were_missed_do_not_come_all_at_once(polls: int) -> None:
    now = NOW + 2 * DAY
    assert schedule.poll_after_deadline(NOW, polls, now, 0.5) == now + 10 * MINUTE


@no_time_limit
@given(jitters, jitters, st.integers(0, 2))
def test_late_polls_stay_in_order_with_any_jitter(a: float, b: float, polls: int) -> None:
    earlier = schedule.poll_after_deadline(NOW, polls, NOW, a)
    later = schedule.poll_after_deadline(NOW, polls + 1, NOW, b)
    assert earlier is not None
    assert later is not None
    assert NOW < earlier < later


def test_a_submission_is_repeated_after_a_second_doubling_to_a_minute() -> None:
    waits = [schedule.next_submission(count, NOW, None, 0.0) - NOW for count in range(1, 9)]
    assert waits == [s * SECOND for s in (1, 2, 4, 8, 16, 32, 60, 60)]


def test_a_submission_waits_at_least_for_retry_after() -> None:
    assert schedule.next_submission(1, NOW, 30 * SECOND, 0.0) == NOW + 30 * SECOND
    assert schedule.next_submission(7, NOW, 30 * SECOND, 0.0) == NOW + MINUTE


@no_time_limit
@given(st.integers(0, 10**9), times, st.one_of(st.none(), st.integers(0, DAY)), jitters)
def test_a_submission_is_never_repeated_early(
    attempts: int, now: int, retry_after_ms: int | None, jitter: float
) -> None:
    wait_ms = schedule.next_submission(attempts, now, retry_after_ms, jitter) - now
    floor_ms = max(SECOND, retry_after_ms or 0)
    assert floor_ms <= wait_ms <= 1.2 * max(floor_ms, MINUTE)
