"""What follows from an attempt, with floors and caps that hold for any input."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.delivery import retry
from service.delivery.retry import DELIVERED, GONE, Consequence
from service.delivery.target import Answer, SendError
from service.model.clock import DAY, HOUR, MINUTE, SECOND

NOW = 784_111_777_000  # 1994-11-06 08:49:37 UTC, the example date of RFC 9110
ALMOST_ONE = 1 - 2**-53
TIMEOUT = SendError("timeout", "No answer.")

jitters = st.floats(0, 1, exclude_max=True)
moments = st.integers(0, 4_000_000_000_000)
schedules = st.lists(st.integers(0, 604_800), min_size=1, max_size=20)
relaxed = settings(deadline=None)


def decide(
    result: Answer | SendError,
    attempt_number: int = 1,
    jitter: float = 0.0,
    schedule_seconds: tuple[int, ...] = retry.DEFAULT_RETRY_SECONDS,
) -> Consequence:
    return retry.decide(
        result,
        attempt_number=attempt_number,
        schedule_seconds=schedule_seconds,
        now=NOW,
        jitter=jitter,
    )


def answered(status_code: int, **headers: str) -> Answer:
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Answer(status_code, named, b"")


DEAD = Consequence(status="dead")


def retried(due_at: int, rest_until: int | None = None) -> Consequence:
    return Consequence(status="pending", due_at=due_at, rest_until=rest_until)


def due_at(consequence: Consequence) -> int:
    assert (consequence.outcome, consequence.status, consequence.disabled_reason) == (
        "retried",
        "pending",
        None,
    )
    assert consequence.due_at is not None
    return consequence.due_at


# Delivery


def test_the_default_schedule_is_that_of_the_specification_and_spans_three_days() -> None:
    assert sum(retry.DEFAULT_RETRY_SECONDS) == 272_105
    assert len(retry.DEFAULT_RETRY_SECONDS) == 10


@pytest.mark.parametrize("status_code", [200, 201, 202, 204, 206, 226, 299])
def test_every_2xx_is_a_delivery(status_code: int) -> None:
    assert decide(answered(status_code)) == DELIVERED
    assert decide(answered(status_code, webhook_delivery="disable"), 99) == DELIVERED


@pytest.mark.parametrize(
    "status_code", [100, 101, 199, 300, 301, 302, 308, 400, 404, 418, 500, 599]
)
def test_everything_else_is_retried_redirects_too(status_code: int) -> None:
    assert decide(answered(status_code)) == retried(NOW + 5 * SECOND)


def test_a_failure_without_an_answer_is_retried() -> None:
    assert decide(TIMEOUT) == retried(NOW + 5 * SECOND)


def test_410_ends_the_delivery_and_disables_the_subscriber() -> None:
    assert decide(answered(410)) == GONE
    assert decide(answered(410, webhook_delivery="abort-message")) == GONE


@pytest.mark.parametrize("status_code", [300, 400, 404, 429, 500, 503])
@pytest.mark.parametrize(
    ("value", "consequence"),
    [("abort-message", DEAD), (" Abort-Message ", DEAD), ("disable", GONE), ("DISABLE", GONE)],
)
def test_a_subscriber_may_ask_for_no_more_in_a_header(
    status_code: int, value: str, consequence: Consequence
) -> None:
    decided = decide(answered(status_code, webhook_delivery=value))
    assert msgspec.structs.replace(decided, rest_until=None) == consequence


@pytest.mark.parametrize("value", ["", "continue", "abort", "disable, abort-message"])
def test_another_value_of_that_header_means_nothing(value: str) -> None:
    assert decide(answered(500, webhook_delivery=value)) == retried(NOW + 5 * SECOND)


def test_the_whole_default_schedule_is_walked_and_then_exhausted() -> None:
    due = [due_at(decide(TIMEOUT, number)) - NOW for number in range(1, 10)]
    assert due == [seconds * SECOND for seconds in retry.DEFAULT_RETRY_SECONDS[1:]]
    for number in (10, 11, 1000):
        assert decide(TIMEOUT, number) == DEAD
        assert decide(answered(500, retry_after="1"), number) == DEAD


@pytest.mark.parametrize("headers", [{}, {"webhook_delivery": "abort-message"}])
def test_a_rest_is_heeded_though_the_delivery_has_no_further_attempt(
    headers: dict[str, str],
) -> None:
    number = 1 if headers else 10
    consequence = decide(answered(429, retry_after="60", **headers), number)
    assert (consequence.status, consequence.rest_until) == ("dead", NOW + 60 * SECOND)


def test_a_schedule_of_one_entry_means_one_attempt() -> None:
    assert decide(TIMEOUT, 1, schedule_seconds=(0,)) == DEAD


@pytest.mark.parametrize(
    ("delay_seconds", "latest_ms"),
    [(0, 999), (5, 5_999), (10, 10_999), (300, 329_999), (86_400, 95_039_999)],
)
def test_jitter_adds_up_to_a_tenth_and_up_to_a_second_at_least(
    delay_seconds: int, latest_ms: int
) -> None:
    plan = (0, delay_seconds)
    assert due_at(decide(TIMEOUT, 1, 0.0, plan)) == NOW + delay_seconds * SECOND
    latest = due_at(decide(TIMEOUT, 1, ALMOST_ONE, plan))
    assert NOW + latest_ms <= latest <= NOW + latest_ms + 1


def test_retry_after_is_a_floor_and_not_a_ceiling() -> None:
    assert due_at(decide(answered(400, retry_after="60"), 1)) == NOW + MINUTE
    assert due_at(decide(answered(400, retry_after="60"), 2)) == NOW + 5 * MINUTE
    assert due_at(decide(answered(400, retry_after="999999"), 1)) == NOW + DAY
    date = "Sun, 06 Nov 1994 08:50:37 GMT"
    assert due_at(decide(answered(301, retry_after=date), 1)) == NOW + MINUTE


@pytest.mark.parametrize("status_code", [429, 502, 503, 504])
def test_a_throttled_subscriber_goes_to_the_slow_lane(status_code: int) -> None:
    for headers, number, slow_ms in (
        ({"retry-after": "60"}, 2, MINUTE),
        ({"retry-after": "0"}, 2, SECOND),
        ({"retry-after": "7200"}, 1, 2 * HOUR),
        ({"retry-after": "nonsense"}, 1, 5 * SECOND),
        ({}, 1, 5 * SECOND),
        ({}, 2, MINUTE // 2),
        ({}, 9, MINUTE // 2),
    ):
        consequence = decide(Answer(status_code, tuple(headers.items()), b""), number)
        assert consequence.rest_until == NOW + slow_ms
    short = decide(answered(status_code), 1, schedule_seconds=(0, 0))
    assert short.rest_until == NOW + SECOND


headers = st.dictionaries(
    st.sampled_from(["retry-after", "webhook-delivery"]),
    st.one_of(st.text(max_size=70), st.integers().map(str), st.just("abort-message")),
).map(lambda named: tuple(named.items()))


@relaxed
@given(
    st.one_of(
        st.builds(Answer, st.integers(-1, 700), headers, st.just(b"")),
        st.just(TIMEOUT),
    ),
    st.integers(1, 25),
    schedules,
    moments,
    jitters,
)
def test_no_retry_is_earlier_than_its_delay_or_later_than_its_bounds(
    result: Answer | SendError,
    attempt_number: int,
    schedule_seconds: list[int],
    now: int,
    jitter: float,
) -> None:
    consequence = retry.decide(
        result,
        attempt_number=attempt_number,
        schedule_seconds=schedule_seconds,
        now=now,
        jitter=jitter,
    )
    if consequence.status != "pending":
        assert consequence.due_at is None
        return
    delay_ms = schedule_seconds[attempt_number] * SECOND
    assert delay_ms <= due_at(consequence) - now < max(delay_ms, DAY) * 1.1 + SECOND
    if consequence.rest_until is not None:
        assert SECOND <= consequence.rest_until - now <= DAY


@relaxed
@given(st.integers(0, 86_400), st.integers(0, 86_400), jitters)
def test_who_asks_for_a_longer_wait_never_waits_less(a: int, b: int, jitter: float) -> None:
    shorter, longer = sorted((a, b))
    early = due_at(decide(answered(503, retry_after=str(shorter)), 3, jitter))
    late = due_at(decide(answered(503, retry_after=str(longer)), 3, jitter))
    assert early <= late
    assert late >= NOW + longer * SECOND


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
        ("9" * 65, DAY),
        ("9" * 5_000, DAY),
        ("0" * 5_000 + "7", 7 * SECOND),
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


@pytest.mark.parametrize(("ahead_ms", "wait_ms"), [(MINUTE, MINUTE), (-MINUTE, 0), (2 * DAY, DAY)])
@pytest.mark.parametrize("unit_ms", [1, SECOND])
def test_a_time_since_the_epoch_is_read_as_one(ahead_ms: int, wait_ms: int, unit_ms: int) -> None:
    now = 1_795_000_000_000
    value = str((now + ahead_ms) // unit_ms)
    assert retry.parse_retry_after(value, now) == wait_ms


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
        "x" * 65,
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
