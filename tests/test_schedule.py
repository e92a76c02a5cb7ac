"""Due times: what each outcome leads to, with floors and caps that hold for any input."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import schedule
from service.clock import DAY, HOUR, MINUTE, SECOND
from service.schedule import Delivered, Failed, GiveUp, Responded, Retry

NOW = 784_111_777_000  # 1994-11-06 08:49:37 UTC, the example date of RFC 9110
ALMOST_ONE = 1 - 2**-53
TIMEOUT = Failed("timeout", permanent=False)

jitters = st.floats(0, 1, exclude_max=True)
moments = st.integers(0, 4_000_000_000_000)
schedules = st.lists(st.integers(0, 604_800), min_size=1, max_size=20)
relaxed = settings(deadline=None)


def decide(
    result: Responded | Failed,
    attempt_number: int = 1,
    jitter: float = 0.0,
    schedule_seconds: tuple[int, ...] = schedule.DEFAULT_RETRY_SECONDS,
) -> schedule.Outcome:
    return schedule.decide(
        result,
        attempt_number=attempt_number,
        schedule_seconds=schedule_seconds,
        now=NOW,
        jitter=jitter,
    )


def answered(status_code: int, **headers: str) -> Responded:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Responded(status_code, names)


def retried(outcome: schedule.Outcome) -> Retry:
    assert isinstance(outcome, Retry)
    return outcome


# Delivery


def test_the_default_schedule_is_that_of_the_specification_and_spans_three_days() -> None:
    assert sum(schedule.DEFAULT_RETRY_SECONDS) == 272_105
    assert len(schedule.DEFAULT_RETRY_SECONDS) == 10


@pytest.mark.parametrize("status_code", [200, 201, 202, 204, 206, 226, 299])
def test_every_2xx_is_a_delivery(status_code: int) -> None:
    assert decide(answered(status_code)) == Delivered()
    assert decide(answered(status_code, webhook_delivery="disable"), 99) == Delivered()


@pytest.mark.parametrize(
    "status_code", [100, 101, 199, 300, 301, 302, 308, 400, 404, 418, 500, 599]
)
def test_everything_else_is_retried_redirects_too(status_code: int) -> None:
    assert decide(answered(status_code)) == Retry(NOW + 5 * SECOND, None)


def test_a_failure_without_an_answer_is_retried() -> None:
    assert decide(TIMEOUT) == Retry(NOW + 5 * SECOND, None)


def test_a_permanent_failure_ends_the_delivery_under_its_own_code() -> None:
    assert decide(Failed("address_refused", permanent=True)) == GiveUp(
        "address_refused", disable=False
    )


def test_410_ends_the_delivery_and_disables_the_subscriber() -> None:
    assert decide(answered(410)) == GiveUp("gone", disable=True)
    assert decide(answered(410, webhook_delivery="abort-message")) == GiveUp("gone", disable=True)


@pytest.mark.parametrize("status_code", [300, 400, 404, 429, 500, 503])
@pytest.mark.parametrize(
    ("value", "outcome"),
    [
        ("abort-message", GiveUp("abort_requested", disable=False)),
        (" Abort-Message ", GiveUp("abort_requested", disable=False)),
        ("disable", GiveUp("disable_requested", disable=True)),
        ("DISABLE", GiveUp("disable_requested", disable=True)),
    ],
)
def test_a_subscriber_may_ask_for_no_more_in_a_header(
    status_code: int, value: str, outcome: GiveUp
) -> None:
    assert decide(answered(status_code, webhook_delivery=value, retry_after="9")) == outcome


@pytest.mark.parametrize("value", ["", "continue", "abort", "disable, abort-message"])
def test_another_value_of_that_header_means_nothing(value: str) -> None:
    assert decide(answered(500, webhook_delivery=value)) == Retry(NOW + 5 * SECOND, None)


def test_the_whole_default_schedule_is_walked_and_then_exhausted() -> None:
    due = [retried(decide(TIMEOUT, number)).due_at - NOW for number in range(1, 10)]
    assert due == [seconds * SECOND for seconds in schedule.DEFAULT_RETRY_SECONDS[1:]]
    for number in (10, 11, 1000):
        assert decide(TIMEOUT, number) == GiveUp("exhausted", disable=False)
        assert decide(answered(503, retry_after="1"), number) == GiveUp("exhausted", disable=False)


def test_a_schedule_of_one_entry_means_one_attempt() -> None:
    assert decide(TIMEOUT, 1, schedule_seconds=(0,)) == GiveUp("exhausted", disable=False)


@pytest.mark.parametrize(
    ("delay_seconds", "latest_ms"),
    [(0, 999), (5, 5_999), (10, 10_999), (300, 329_999), (86_400, 95_039_999)],
)
def test_jitter_adds_up_to_a_tenth_and_up_to_a_second_at_least(
    delay_seconds: int, latest_ms: int
) -> None:
    plan = (0, delay_seconds)
    assert retried(decide(TIMEOUT, 1, 0.0, plan)).due_at == NOW + delay_seconds * SECOND
    latest = retried(decide(TIMEOUT, 1, ALMOST_ONE, plan)).due_at
    assert NOW + latest_ms <= latest <= NOW + latest_ms + 1


def test_retry_after_is_a_floor_and_not_a_ceiling() -> None:
    assert retried(decide(answered(400, retry_after="60"), 1)).due_at == NOW + MINUTE
    assert retried(decide(answered(400, retry_after="60"), 2)).due_at == NOW + 5 * MINUTE
    assert retried(decide(answered(400, retry_after="999999"), 1)).due_at == NOW + DAY
    date = "Sun, 06 Nov 1994 08:50:37 GMT"
    assert retried(decide(answered(301, retry_after=date), 1)).due_at == NOW + MINUTE


@pytest.mark.parametrize("status_code", [429, 502, 503, 504])
def test_a_throttled_subscriber_goes_to_the_slow_lane(status_code: int) -> None:
    for headers, number, slow_ms in (
        ({"retry-after": "60"}, 2, MINUTE),
        ({"retry-after": "0"}, 2, SECOND),
        ({"retry-after": "7200"}, 1, 2 * HOUR),
        ({"retry-after": "nonsense"}, 1, 5 * SECOND),
        ({}, 1, 5 * SECOND),
        ({}, 2, 5 * MINUTE),
        ({}, 9, 15 * MINUTE),
    ):
        outcome = retried(decide(Responded(status_code, headers), number))
        assert outcome.slow_lane_until == NOW + slow_ms
    short = retried(decide(Responded(status_code, {}), 1, schedule_seconds=(0, 0)))
    assert short.slow_lane_until == NOW + SECOND


headers = st.dictionaries(
    st.sampled_from(["retry-after", "webhook-delivery"]),
    st.one_of(st.text(max_size=70), st.integers().map(str), st.just("abort-message")),
)


@relaxed
@given(
    st.one_of(
        st.builds(Responded, st.integers(-1, 700), headers),
        st.builds(Failed, st.just("timeout"), st.booleans()),
    ),
    st.integers(1, 25),
    schedules,
    moments,
    jitters,
)
def test_no_retry_is_earlier_than_its_delay_or_later_than_its_bounds(
    result: Responded | Failed,
    attempt_number: int,
    schedule_seconds: list[int],
    now: int,
    jitter: float,
) -> None:
    outcome = schedule.decide(
        result,
        attempt_number=attempt_number,
        schedule_seconds=schedule_seconds,
        now=now,
        jitter=jitter,
    )
    if not isinstance(outcome, Retry):
        return
    delay_ms = schedule_seconds[attempt_number] * SECOND
    assert delay_ms <= outcome.due_at - now < max(delay_ms, DAY) * 1.1 + SECOND
    if outcome.slow_lane_until is not None:
        assert SECOND <= outcome.slow_lane_until - now <= DAY


@relaxed
@given(st.integers(0, 86_400), st.integers(0, 86_400), jitters)
def test_who_asks_for_a_longer_wait_never_waits_less(a: int, b: int, jitter: float) -> None:
    shorter, longer = sorted((a, b))
    early = retried(decide(answered(503, retry_after=str(shorter)), 3, jitter))
    late = retried(decide(answered(503, retry_after=str(longer)), 3, jitter))
    assert early.due_at <= late.due_at
    assert late.due_at >= NOW + longer * SECOND


@relaxed
@given(schedules, moments)
def test_the_first_attempt_is_due_after_the_first_delay_exactly(
    schedule_seconds: list[int], now: int
) -> None:
    assert schedule.first_due(schedule_seconds, now) == now + schedule_seconds[0] * SECOND


# Retry-After


@pytest.mark.parametrize(
    ("value", "wait_ms"),
    [
        ("0", 0),
        ("120", 2 * MINUTE),
        (" 7 ", 7 * SECOND),
        ("007", 7 * SECOND),
        ("86400", DAY),
        ("86401", DAY),
        ("9" * 64, DAY),
        ("Sun, 06 Nov 1994 08:50:37 GMT", MINUTE),
        ("Sunday, 06-Nov-94 08:50:37 GMT", MINUTE),
        ("Sun Nov  6 08:50:37 1994", MINUTE),
        ("Sun, 06 Nov 1994 10:50:37 +0200", MINUTE),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0),
        ("Sun, 06 Nov 1994 08:49:36 GMT", 0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", DAY),
    ],
)
def test_retry_after_is_understood_in_all_its_forms(value: str, wait_ms: int) -> None:
    assert schedule.parse_retry_after(value, NOW) == wait_ms


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        " ",
        "soon",
        "-5",
        "+5",
        "1.5",
        "1e3",
        "0x10",
        "5 s",
        "1_000",
        "٣",
        "²",
        "\ud800",
        "9" * 65,
        "1994-11-06T08:50:37Z",
        "Sun, 99 Nov 1994 08:50:37 GMT",
        "Sun, 06 Nov 1994 99:50:37 GMT",
        "Sun, 06 Nov 99999 08:50:37 GMT",
    ],
)
def test_retry_after_that_is_garbage_is_no_wish(value: str | None) -> None:
    assert schedule.parse_retry_after(value, NOW) is None


date_like = st.lists(
    st.sampled_from(["Sun", ",", " ", "06", "Nov", "1994", "08:50:37", "GMT", "-", "+9999", "00:"])
).map("".join)


@relaxed
@given(st.one_of(st.text(), date_like, st.integers().map(str)), moments)
def test_retry_after_never_raises_nor_leaves_its_bounds(value: str, now: int) -> None:
    wait_ms = schedule.parse_retry_after(value, now)
    assert wait_ms is None or 0 <= wait_ms <= DAY


# Polling


def next_poll(polls: int, *, callback: bool, now: int = NOW, **changed: Any) -> int:
    facts: Mapping[str, Any] = {
        "submitted_at": NOW,
        "usual_seconds": 10.0,
        "p95_seconds": 90.0,
        "safety_seconds": None,
        "jitter": 0.5,  # The middle: no jitter.
        **changed,
    }
    return schedule.next_poll(expects_callback=callback, polls=polls, now=now, **facts)


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
    assert gaps == [2 * MINUTE, 5 * MINUTE, 10 * MINUTE, *[20 * MINUTE] * 4]


def test_the_first_safety_poll_takes_a_minute_at_least_unless_it_is_set() -> None:
    assert next_poll(0, callback=True, p95_seconds=3.0) == NOW + MINUTE
    assert next_poll(0, callback=True, safety_seconds=3.0) == NOW + 3 * SECOND
    assert next_poll(0, callback=True, safety_seconds=0.0) == NOW
    assert next_poll(0, callback=False, safety_seconds=3.0) == NOW + 10 * SECOND


def test_a_short_first_safety_poll_draws_the_later_ones_in_with_it() -> None:
    gaps = [next_poll(n, callback=True, safety_seconds=3.0) - NOW for n in range(1, 6)]
    assert gaps == [6 * SECOND, 15 * SECOND, 30 * SECOND, MINUTE, MINUTE]
    assert next_poll(1, callback=True, safety_seconds=0.0) == NOW + 2 * SECOND
    assert next_poll(1, callback=True, safety_seconds=90.0) == NOW + 2 * MINUTE


def test_a_model_that_is_quick_is_not_asked_in_the_first_two_seconds() -> None:
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


@relaxed
@given(
    callback=st.booleans(),
    polls=st.integers(0, 100_000),
    submitted_at=moments,
    elapsed=st.integers(0, 10 * DAY),
    usual=seconds,
    p95=seconds,
    safety=st.one_of(st.none(), st.floats(-10, 86_400)),
    jitter=jitters,
)
def test_a_poll_is_never_in_the_past_nor_beyond_reason(
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
    due = schedule.next_poll(
        expects_callback=callback,
        polls=polls,
        submitted_at=submitted_at,
        now=now,
        usual_seconds=usual,
        p95_seconds=p95,
        safety_seconds=safety,
        jitter=jitter,
    )
    bound_ms = 1.2 * max(usual * SECOND, p95 * SECOND, (safety or 0) * SECOND, 20 * MINUTE)
    assert now <= due <= now + bound_ms + 1
    if polls > 0:
        assert due - now >= 0.8 * 2 * SECOND


@relaxed
@given(
    polls=st.integers(1, 1000),
    callback=st.booleans(),
    elapsed=st.integers(0, HOUR),
    jitter=jitters,
)
def test_polls_never_come_closer_together(
    *, polls: int, callback: bool, elapsed: int, jitter: float
) -> None:
    now = NOW + elapsed
    one = next_poll(polls, callback=callback, now=now, jitter=jitter) - now
    two = next_poll(polls + 1, callback=callback, now=now + one, jitter=jitter) - (now + one)
    assert one <= two


def test_trouble_backs_off_to_five_minutes() -> None:
    waits = [schedule.after_trouble(count, NOW, 0.5) - NOW for count in range(1, 9)]
    assert waits == [s * SECOND for s in (5, 10, 20, 40, 80, 160, 300, 300)]


@relaxed
@given(st.integers(0, 10**9), moments, jitters)
def test_trouble_never_stops_the_asking(consecutive: int, now: int, jitter: float) -> None:
    wait_ms = schedule.after_trouble(consecutive, now, jitter) - now
    assert 4 * SECOND <= wait_ms <= 6 * MINUTE
    assert schedule.after_trouble(consecutive + 1, now, jitter) - now >= wait_ms


def test_after_the_deadline_there_are_four_slow_polls_and_no_fifth() -> None:
    late = [schedule.after_deadline(NOW, polls, 0.5) for polls in range(4)]
    assert late == [NOW + 10 * MINUTE, NOW + HOUR, NOW + 6 * HOUR, NOW + DAY]
    assert schedule.after_deadline(NOW, 4, 0.5) is None
    assert schedule.after_deadline(NOW, 400, 0.0) is None


@relaxed
@given(jitters, jitters, st.integers(0, 2))
def test_slow_polls_stay_in_order_whatever_the_jitter(a: float, b: float, polls: int) -> None:
    earlier, later = (
        schedule.after_deadline(NOW, polls, a),
        schedule.after_deadline(NOW, polls + 1, b),
    )
    assert earlier is not None
    assert later is not None
    assert NOW < earlier < later


def test_a_submission_is_put_off_by_a_second_doubling_to_a_minute() -> None:
    waits = [schedule.submission_retry(count, NOW, None, 0.0) - NOW for count in range(1, 9)]
    assert waits == [s * SECOND for s in (1, 2, 4, 8, 16, 32, 60, 60)]


def test_a_submission_waits_as_long_as_upstream_asks() -> None:
    assert schedule.submission_retry(1, NOW, 30 * SECOND, 0.0) == NOW + 30 * SECOND
    assert schedule.submission_retry(7, NOW, 30 * SECOND, 0.0) == NOW + MINUTE


@relaxed
@given(st.integers(0, 10**9), moments, st.one_of(st.none(), st.integers(0, DAY)), jitters)
def test_a_submission_is_never_repeated_early(
    attempts: int, now: int, retry_after_ms: int | None, jitter: float
) -> None:
    wait_ms = schedule.submission_retry(attempts, now, retry_after_ms, jitter) - now
    floor_ms = max(SECOND, retry_after_ms or 0)
    assert floor_ms <= wait_ms <= 1.2 * max(floor_ms, MINUTE)
