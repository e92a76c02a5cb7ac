"""The one place that reads the time: integer milliseconds since the epoch, and RFC 3339."""

import datetime
import time
from collections.abc import Callable

Clock = Callable[[], int]

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def now_ms() -> int:
    """Milliseconds since the epoch, by the wall clock."""
    return time.time_ns() // 1_000_000  # noqa: TID251  this is the place


def rfc3339(at: int) -> str:
    """`at` in UTC with milliseconds, as every time in the API is written."""
    moment = _EPOCH + datetime.timedelta(milliseconds=at)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_rfc3339(text: str) -> int:
    """Milliseconds since the epoch; ValueError unless `text` is an RFC 3339 time with an offset."""
    moment = datetime.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time needs an offset, for example 2026-11-22T18:20:00Z")
    return (moment - _EPOCH) // datetime.timedelta(milliseconds=1)
