"""When to try again: deliveries, polls, and submissions that upstream put off."""

# Everywhere here: times are milliseconds since the epoch, and `jitter` is drawn by the caller,
# evenly from 0 up to but not including 1.

import datetime
import email.utils
from collections.abc import Mapping, Sequence

import msgspec

from service import clock

DEFAULT_RETRY_SECONDS = (0, 5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)

RETRY_AFTER_MAX_MS = clock.DAY
_RETRY_AFTER_LENGTH_MAX = 64
_RETRY_SPREAD = 0.1
_RETRY_SPREAD_MIN_MS = clock.SECOND

_THROTTLED = frozenset({429, 502, 503, 504})
SLOW_LANE_MIN_MS = clock.SECOND
SLOW_LANE_MAX_MS = 15 * clock.MINUTE

_POLL_SPREAD = 0.2
_POLL_FIRST_MS = 2 * clock.SECOND
_POLL_GROWTH = 1.5
_POLL_QUICK_MAX_MS = 15 * clock.SECOND
_POLL_QUICK_FOR_MS = 5 * clock.MINUTE
_POLL_SLOW_MS = clock.MINUTE
_SAFETY_POLL_MIN_MS = clock.MINUTE
_SAFETY_POLLS_MS = tuple(minutes * clock.MINUTE for minutes in (2, 5, 10, 20))
_TROUBLE_FIRST_MS = 5 * clock.SECOND
_TROUBLE_MAX_MS = 5 * clock.MINUTE
_LATE_POLLS_MS = (10 * clock.MINUTE, clock.HOUR, 6 * clock.HOUR, 24 * clock.HOUR)
_SUBMISSION_FIRST_MS = clock.SECOND
_SUBMISSION_MAX_MS = clock.MINUTE


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


def next_poll(
    *,
    expects_callback: bool,
    polls: int,
    submitted_at: int,
    now: int,
    usual_seconds: float,
    p95_seconds: float,
    safety_seconds: float | None,
    jitter: float,
) -> int:
    """When to ask for an open task next, after `polls` that found it open; every delay ±20 %.

    Without a callback: at the model's usual time, then every 2 s, growing to 15 s, and every
    minute once 5 minutes have passed since that usual time. With one: at the model's p95, at
    least a minute, or after `safety_seconds` where that is set; then 2, 5, 10, 20 minutes apart,
    or as many times `safety_seconds` where that is under a minute.
    """
    usual_ms = max(round(usual_seconds * clock.SECOND), _POLL_FIRST_MS)
    if polls == 0:
        safety_ms = _safety_poll_ms(p95_seconds, safety_seconds)
        first_ms = safety_ms if expects_callback else usual_ms
        return max(submitted_at + _spread(first_ms, jitter), now)
    if expects_callback:
        delay_ms = _later_safety_poll_ms(polls, safety_seconds)
    elif now < submitted_at + usual_ms + _POLL_QUICK_FOR_MS:
        delay_ms = _quick_poll_ms(polls)
    else:
        delay_ms = _POLL_SLOW_MS
    return now + _spread(delay_ms, jitter)


def after_trouble(consecutive: int, now: int, jitter: float) -> int:
    """When to ask again after `consecutive` 5xx or timeouts: 5 s, doubling to 5 minutes, ±20 %."""
    delay_ms = _doubling(_TROUBLE_FIRST_MS, consecutive, _TROUBLE_MAX_MS)
    return now + _spread(delay_ms, jitter)


def after_deadline(deadline_at: int, late_polls: int, jitter: float) -> int | None:
    """When to ask after a task that timed out, `late_polls` having been made; None: never again.

    10 minutes, 1, 6 and 24 hours after the deadline, ±20 %.
    """
    if late_polls >= len(_LATE_POLLS_MS):
        return None
    return deadline_at + _spread(_LATE_POLLS_MS[late_polls], jitter)


def submission_retry(attempts: int, now: int, retry_after_ms: int | None, jitter: float) -> int:
    """When to submit again what upstream certainly did not take, after `attempts`.

    1 s, doubling to a minute, or `retry_after_ms` if that is longer; up to 20 % is added.
    """
    delay_ms = _doubling(_SUBMISSION_FIRST_MS, attempts, _SUBMISSION_MAX_MS)
    floor_ms = max(delay_ms, retry_after_ms or 0)
    return now + floor_ms + int(floor_ms * _POLL_SPREAD * jitter)


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


def _quick_poll_ms(polls: int) -> int:
    steps = min(polls - 1, 10)  # The cap is reached long before.
    return min(round(_POLL_FIRST_MS * _POLL_GROWTH**steps), _POLL_QUICK_MAX_MS)


def _safety_poll_ms(p95_seconds: float, safety_seconds: float | None) -> int:
    if safety_seconds is not None:
        return round(max(safety_seconds, 0) * clock.SECOND)
    return max(round(p95_seconds * clock.SECOND), _SAFETY_POLL_MIN_MS)


def _later_safety_poll_ms(polls: int, safety_seconds: float | None) -> int:
    """A first poll after less than a minute draws the later ones in with it, to 2 s at least."""
    delay_ms = _SAFETY_POLLS_MS[min(polls, len(_SAFETY_POLLS_MS)) - 1]
    first_ms = _safety_poll_ms(0, safety_seconds)
    if first_ms >= _SAFETY_POLL_MIN_MS:
        return delay_ms
    return max(delay_ms * first_ms // _SAFETY_POLL_MIN_MS, _POLL_FIRST_MS)


def _doubling(first_ms: int, times: int, max_ms: int) -> int:
    return min(first_ms << min(max(times - 1, 0), 16), max_ms)


def _spread(delay_ms: int, jitter: float) -> int:
    return round(delay_ms * (1 - _POLL_SPREAD + 2 * _POLL_SPREAD * jitter))
