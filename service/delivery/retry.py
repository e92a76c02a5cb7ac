"""When an attempt is repeated, and when a delivery is given up."""

# In this module, times are milliseconds since the epoch, and `jitter` is a random number from 0 to
# below 1 that the caller draws.

import datetime
import email.utils
from collections.abc import Sequence

import msgspec

from service.delivery.target import Answer, SendError
from service.model import clock

DEFAULT_RETRY_SECONDS = (0, 5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)

RETRY_AFTER_MAX_MS = clock.DAY
_RETRY_AFTER_LENGTH_MAX = 64
_RETRY_SPREAD = 0.1
_RETRY_SPREAD_MIN_MS = clock.SECOND

_ASKS_FOR_REST = frozenset({429, 502, 503, 504})
REST_MIN_MS = clock.SECOND
REST_MAX_MS = clock.MINUTE // 2


class Consequence(msgspec.Struct, frozen=True, kw_only=True):
    """What follows from an attempt, for its delivery and its subscriber."""

    status: str  # The delivery's status from now on.
    due_at: int | None = None  # When the next attempt is due; None unless it is `pending`.
    rest_until: int | None = None  # The receiver rests until then, as its answer asked.
    disabled_reason: str | None = None  # Set if the subscriber is to be disabled.

    @property
    def outcome(self) -> str:
        """The attempt's outcome in logs and metrics: `delivered`, `retried` or `dead`."""
        return "retried" if self.status == "pending" else self.status


DELIVERED = Consequence(status="delivered")
GONE = Consequence(status="dead", disabled_reason="gone")


def decide(
    result: Answer | SendError,
    *,
    attempt_number: int,
    schedule_seconds: Sequence[int],
    now: int,
    jitter: float,
    is_manual: bool = False,
    planned_at: int | None = None,
) -> Consequence:
    """Decide what follows from an attempt (Standard Webhooks 1.0, and the answer headers of Svix).

    attempt_number: how many attempts of the schedule were made, this one too unless it is manual.
    schedule_seconds: the delay before each attempt; [0] belongs to the first.
    planned_at: when the schedule goes on after a manual retry; None if it is over.
    """
    status_code = result.status_code if isinstance(result, Answer) else 0
    if 200 <= status_code < 300:
        return DELIVERED
    headers = dict(result.headers) if isinstance(result, Answer) else {}
    instruction = headers.get("webhook-delivery", "").strip().lower()
    if status_code == 410 or instruction == "disable":
        return GONE
    is_last = planned_at is None if is_manual else attempt_number >= len(schedule_seconds)
    delay_ms = schedule_seconds[min(attempt_number, len(schedule_seconds) - 1)] * clock.SECOND
    requested_ms = parse_retry_after(headers.get("retry-after"), now)
    rest_until = _rest_until(status_code, delay_ms, requested_ms, now)
    if instruction == "abort-message" or is_last:  # Its other deliveries rest all the same.
        return Consequence(status="dead", rest_until=rest_until)
    # Short delays need jitter most: deliveries that failed together would come back together.
    floor_ms = max(delay_ms, requested_ms or 0)
    spread_ms = max(floor_ms * _RETRY_SPREAD, _RETRY_SPREAD_MIN_MS)
    due_at = now + floor_ms + int(spread_ms * jitter)
    if planned_at is not None:
        due_at = max(planned_at, now + requested_ms) if requested_ms else planned_at
    return Consequence(status="pending", due_at=due_at, rest_until=rest_until)


def _rest_until(status_code: int, delay_ms: int, requested_ms: int | None, now: int) -> int | None:
    if status_code not in _ASKS_FOR_REST:
        return None
    # One 503 is too little to stop a lane for long, unless the receiver asks for it: the delay of a
    # delivery says how long that delivery has failed, not when the receiver will be well again.
    rest_ms = min(delay_ms, REST_MAX_MS) if requested_ms is None else requested_ms
    return now + max(rest_ms, REST_MIN_MS)


def parse_retry_after(value: str | None, now: int) -> int | None:
    """Return the milliseconds from `now` that a `Retry-After` asks for (RFC 9110 section 10.2.3).

    It is in seconds or any form of HTTP-date. The result is at most RETRY_AFTER_MAX_MS; None if
    the value is neither.
    """
    text = (value or "").strip()
    if not text.isascii():
        return None
    if text.isdigit():
        # So many digits are enough to ask for longer than the maximum.
        number = int(text.lstrip("0")[:_RETRY_AFTER_LENGTH_MAX] or "0")
        # Nobody asks for 30 years: that is a time since the epoch, in seconds or in milliseconds.
        if number < clock.EPOCH_SECONDS_MIN:
            at = now + number * clock.SECOND
        elif number < clock.EPOCH_SECONDS_MIN * clock.SECOND:
            at = number * clock.SECOND
        else:
            at = number
    elif not text or len(text) > _RETRY_AFTER_LENGTH_MAX:
        return None
    else:
        try:
            moment = email.utils.parsedate_to_datetime(text)
            moment = moment.replace(tzinfo=moment.tzinfo or datetime.UTC)  # asctime names no zone.
            at = int(moment.timestamp()) * clock.SECOND
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
    return min(max(at - now, 0), RETRY_AFTER_MAX_MS)
