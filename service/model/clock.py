"""The current time in milliseconds since the epoch, and times as RFC 3339 text."""

import datetime
import re
import time
from collections.abc import Callable
from functools import lru_cache

Clock = Callable[[], int]

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
EPOCH_SECONDS_MIN = 10**9  # Fewer seconds (until 2001) are a duration, and no date.

_RFC3339 = re.compile(
    r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.(?P<fraction>\d{1,9}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MILLISECOND = datetime.timedelta(milliseconds=1)


def now_ms() -> int:
    """Return the current time, in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000  # noqa: TID251  the only place that reads the clock


def rfc3339(at: int) -> str:
    """Format a time as the API does: in UTC with milliseconds."""
    second, ms = divmod(at, SECOND)
    return f"{_format_second(second)}.{ms:03d}Z"


@lru_cache(maxsize=4_096)
def _format_second(second: int) -> str:
    return (_EPOCH + datetime.timedelta(seconds=second)).isoformat()[:19]


def parse_rfc3339(text: str, *, round_up: bool = False) -> int:
    """Return milliseconds since the epoch; ValueError unless `text` is in RFC 3339.

    A finer time is rounded down. Round up a bound used as `< bound` or `>= bound`.
    """
    if not (match := _RFC3339.fullmatch(text)):
        raise ValueError("a time looks like 2026-11-22T18:20:00Z")
    at = (datetime.datetime.fromisoformat(text.upper()) - _EPOCH) // _MILLISECOND
    is_finer = bool((match["fraction"] or "")[3:].strip("0"))
    return at + (round_up and is_finer)


def rfc3339_or_none(at: int | None) -> str | None:
    """Format a time as `rfc3339` does; return None for None."""
    return None if at is None else rfc3339(at)
