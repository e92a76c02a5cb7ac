"""What follows from an attempt, with floors and caps that hold for any input."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.delivery import retry
from service.delivery.retry import Delivered, Failed, GiveUp, Responded, Retry
from service.model.clock import DAY, HOUR, MINUTE, SECOND

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
    schedule_seconds: tuple[int, ...] = retry.DEFAULT_RETRY_SECONDS,
) -> retry.Outcome:
    return retry.decide(
        result,
        attempt_number=attempt_number,
        schedule_seconds=schedule_seconds,
        now=NOW,
        jitter=jitter,
    )


def answered(status_code: int, **headers: str) -> Responded:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Responded(status_code, names)


def retried(outcome: retry.Outcome) -> Retry:
    assert isinstance(outcome, Retry)
    return outcome


# Delivery


def test_the_default_schedule_is_that_of_the_specification_and_spans_three_days() -> None:
    assert sum(retry.DEFAULT_RETRY_SECONDS) == 272_105
    assert len(retry.DEFAULT_RETRY_SECONDS) == 10


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
    assert due == [seconds * SECOND for seconds in retry.DEFAULT_RETRY_SECONDS[1:]]
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
    outcome = retry.decide(
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
    assert retry.first_due(schedule_seconds, now) == now + schedule_seconds[0] * SECOND


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
    assert retry.parse_retry_after(value, NOW) == wait_ms


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
    assert retry.parse_retry_after(value, NOW) is None


date_like = st.lists(
    st.sampled_from(["Sun", ",", " ", "06", "Nov", "1994", "08:50:37", "GMT", "-", "+9999", "00:"])
).map("".join)


@relaxed
@given(st.one_of(st.text(), date_like, st.integers().map(str)), moments)
def test_retry_after_never_raises_nor_leaves_its_bounds(value: str, now: int) -> None:
    wait_ms = retry.parse_retry_after(value, now)
    assert wait_ms is None or 0 <= wait_ms <= DAY
