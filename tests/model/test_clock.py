"""Times: milliseconds inside, RFC 3339 outside."""

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.model.clock import now_ms, parse_rfc3339, rfc3339

AT = 1_795_371_600_123


def test_a_time_is_written_in_utc_with_milliseconds() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(AT) == "2026-11-22T18:20:00.123Z"


@given(st.integers(min_value=0, max_value=253_402_300_799_999))
def test_a_written_time_is_read_as_the_same_time(at: int) -> None:
    assert parse_rfc3339(rfc3339(at)) == at


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-22T18:20:00.123Z",
        "2026-11-22t18:20:00.123z",
        "2026-11-22T19:20:00.123+01:00",
        "2026-11-22T12:50:00.123456789-05:30",
    ],
)
def test_every_form_of_the_rfc_is_read(text: str) -> None:
    assert parse_rfc3339(text) == AT


@pytest.mark.parametrize(
    ("fraction", "up"),
    [("123", 0), ("123000000", 0), ("1235", 1), ("123000001", 1), ("123999999", 1)],
)
def test_a_time_finer_than_a_millisecond_is_between_two(fraction: str, up: int) -> None:
    for second, at in (("2026-11-22T18:20:00", AT), ("1969-12-31T23:59:59", -877)):
        text = f"{second}.{fraction}Z"
        assert (parse_rfc3339(text), parse_rfc3339(text, round_up=True)) == (at, at + up)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "1795371600",
        "2026-11-22",
        "2026-11-22T18:20:00",
        "2026-11-22 18:20:00Z",
        "2026-11-22T18Z",
        "2026-11-22T18:20Z",
        "20261122T182000Z",
        "2026-W47-7T18:20:00+00:00",
        "2026-11-22T18:20:00,5Z",
        "2026-13-22T18:20:00Z",
        "2026-11-31T18:20:00Z",
        "2026-11-22T25:00:00Z",
        "2026-11-22T18:20:00+0100",
        " 2026-11-22T18:20:00Z",
        "٢٠٢٦-11-22T18:20:00Z",
    ],
)
def test_text_that_is_no_rfc_3339_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_rfc3339(text)


def test_the_clock_is_the_wall_clock() -> None:
    written = datetime.datetime.fromisoformat(rfc3339(now_ms()))
    wall = datetime.datetime.now(tz=datetime.UTC)  # noqa: TID251  to compare with
    assert abs((written - wall).total_seconds()) < 5
