"""When an attempt is repeated, and when a delivery is given up."""

# Everywhere here: times are milliseconds since the epoch, and `jitter` is drawn by the caller,
# evenly from 0 up to but not including 1.

import datetime
import email.utils
from collections.abc import Mapping, Sequence

import msgspec

from service.model import clock

DEFAULT_RETRY_SECONDS = (0, 5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)

RETRY_AFTER_MAX_MS = clock.DAY
_RETRY_AFTER_LENGTH_MAX = 64
_RETRY_SPREAD = 0.1
_RETRY_SPREAD_MIN_MS = clock.SECOND

_THROTTLED = frozenset({429, 502, 503, 504})
SLOW_LANE_MIN_MS = clock.SECOND
SLOW_LANE_MAX_MS = 15 * clock.MINUTE


class Responded(msgspec.Struct, frozen=True):
    """An attempt that got an answer; header names are lower-case."""

    status_code: int
    headers: Mapping[str, str]


class Failed(msgspec.Struct, frozen=True):
    """An attempt without an answer; `permanent` if no repetition could end otherwise."""

    code: str
    permanent: bool


class Delivered(msgspec.Struct, frozen=True):
    """The subscriber has it."""


class Retry(msgspec.Struct, frozen=True):
    """Try again at `due_at`; until `slow_lane_until`, if set, the subscriber asked for less."""

    due_at: int
    slow_lane_until: int | None


class GiveUp(msgspec.Struct, frozen=True):
    """The delivery is dead; `disable` if the subscriber wants no others either.

    reason: `exhausted`, `gone`, `abort_requested`, `disable_requested`, or the code of a
        permanent failure.
    """

    reason: str
    disable: bool


Outcome = Delivered | Retry | GiveUp


def first_due(schedule_seconds: Sequence[int], now: int) -> int:
    """When the first attempt is due: no jitter, since events do not come in step."""
    return now + schedule_seconds[0] * clock.SECOND


def decide(
    result: Responded | Failed,
    *,
    attempt_number: int,
    schedule_seconds: Sequence[int],
    now: int,
    jitter: float,
) -> Outcome:
    """What follows from an attempt (Standard Webhooks 1.0, and the answer headers of Svix).

    attempt_number: how many attempts were made, this one included.
    schedule_seconds: the delay before each attempt; [0] belongs to the first.
    """
    if isinstance(result, Responded) and 200 <= result.status_code < 300:
        return Delivered()
    refusal = _refusal(result)
    if refusal is not None:
        return refusal
    if attempt_number >= len(schedule_seconds):
        return GiveUp("exhausted", disable=False)
    delay_ms = schedule_seconds[attempt_number] * clock.SECOND
    return _retry(result, delay_ms, now, jitter)


def parse_retry_after(value: str | None, now: int) -> int | None:
    """Milliseconds from `now` that a `Retry-After` asks for (RFC 9110 section 10.2.3).

    Seconds or any form of HTTP-date, from zero to `RETRY_AFTER_MAX_MS`; None if it is neither.
    """
    text = (value or "").strip()
    if not text or len(text) > _RETRY_AFTER_LENGTH_MAX or not text.isascii():
        return None
    if text.isdigit():
        return min(int(text) * clock.SECOND, RETRY_AFTER_MAX_MS)
    try:
        moment = email.utils.parsedate_to_datetime(text)
        moment = moment.replace(tzinfo=moment.tzinfo or datetime.UTC)  # asctime names no zone.
        at = int(moment.timestamp()) * clock.SECOND
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return min(max(at - now, 0), RETRY_AFTER_MAX_MS)


def _refusal(result: Responded | Failed) -> GiveUp | None:
    """The answers after which another attempt would be unwelcome or useless."""
    if isinstance(result, Failed):
        return GiveUp(result.code, disable=False) if result.permanent else None
    if result.status_code == 410:
        return GiveUp("gone", disable=True)
    match result.headers.get("webhook-delivery", "").strip().lower():
        case "disable":
            return GiveUp("disable_requested", disable=True)
        case "abort-message":
            return GiveUp("abort_requested", disable=False)
    return None


def _retry(result: Responded | Failed, delay_ms: int, now: int, jitter: float) -> Retry:
    """Jitter adds up to a tenth, but spreads over a second at least: short delays need it most."""
    asked_ms, throttled = None, False
    if isinstance(result, Responded):
        asked_ms = parse_retry_after(result.headers.get("retry-after"), now)
        throttled = result.status_code in _THROTTLED
    floor_ms = max(delay_ms, asked_ms or 0)
    spread_ms = max(floor_ms * _RETRY_SPREAD, _RETRY_SPREAD_MIN_MS)
    due_at = now + floor_ms + int(spread_ms * jitter)
    return Retry(due_at, now + _slow_ms(delay_ms, asked_ms) if throttled else None)


def _slow_ms(delay_ms: int, asked_ms: int | None) -> int:
    """What was asked for; else the delay, within a quarter of an hour: one 503 is no verdict."""
    if asked_ms is not None:
        return max(asked_ms, SLOW_LANE_MIN_MS)
    return min(max(delay_ms, SLOW_LANE_MIN_MS), SLOW_LANE_MAX_MS)
