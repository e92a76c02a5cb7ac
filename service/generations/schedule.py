"""When the next poll of a generation is due, and when a submission is repeated.

Times are milliseconds since the epoch. `jitter` is a random number from 0 to below 1.
"""

from service.context import Context
from service.model import clock
from service.model.generation import Generation

_JITTER_SHARE = 0.2
_POLL_FIRST_MS = 2 * clock.SECOND
_POLL_QUICK_MS = (_POLL_FIRST_MS, 15 * clock.SECOND)  # The first delay and the longest.
_POLL_QUICK_FOR_MS = 5 * clock.MINUTE
_POLL_SLOW_MS = clock.MINUTE
_SAFETY_POLL_MIN_MS = clock.MINUTE
_SAFETY_POLLS_MS = tuple(minutes * clock.MINUTE for minutes in (2, 5, 10, 20))
_TROUBLE_MS = (5 * clock.SECOND, 5 * clock.MINUTE)
_LATE_POLLS_MS = (10 * clock.MINUTE, clock.HOUR, 6 * clock.HOUR, 24 * clock.HOUR)
_SUBMISSION_MS = (clock.SECOND, clock.MINUTE)


def next_poll(context: Context, generation: Generation, polls: int, now: int) -> int:
    """Return when to poll an open generation again, after `polls` polls, every delay ±20 %.

    Without a callback: at the model's usual time, then every 2 s, growing to 15 s, and every
    minute once 5 minutes have passed since the usual time. With a callback: after
    `safety_poll_seconds`, by default the model's p95 and at least a minute; then after 2, 5, 10
    and 20 minutes, or 2, 5, 10 and 20 times `safety_poll_seconds` if that is under a minute.
    """
    model, jitter = context.catalogue.get(generation.model), context.jitter()
    expects_callback = generation.route == "callback"
    submitted_at = generation.submitted_at or now
    usual_seconds, p95_seconds = model.seconds if model else (2, 60)
    usual_ms = max(round(usual_seconds * clock.SECOND), _POLL_FIRST_MS)
    safety_ms = max(round(p95_seconds * clock.SECOND), _SAFETY_POLL_MIN_MS)
    if context.settings.safety_poll_seconds is not None:
        safety_ms = round(max(context.settings.safety_poll_seconds, 0) * clock.SECOND)
    if polls == 0:
        first_ms = safety_ms if expects_callback else usual_ms
        return max(submitted_at + _with_jitter(first_ms, jitter), now)
    if expects_callback:
        delay_ms = _SAFETY_POLLS_MS[min(polls, len(_SAFETY_POLLS_MS)) - 1]
        delay_ms = delay_ms * min(safety_ms, _SAFETY_POLL_MIN_MS) // _SAFETY_POLL_MIN_MS
        delay_ms = max(delay_ms, _POLL_FIRST_MS)
    elif now < submitted_at + usual_ms + _POLL_QUICK_FOR_MS:
        delay_ms = _grown(polls, *_POLL_QUICK_MS, growth=1.5)
    else:
        delay_ms = _POLL_SLOW_MS
    return now + _with_jitter(delay_ms, jitter)


def poll_after_trouble(failures: int, now: int, jitter: float) -> int:
    """Return when to poll after consecutive failures: 5 s, doubling to 5 minutes, ±20 %."""
    return now + _with_jitter(_grown(failures, *_TROUBLE_MS), jitter)


def poll_after_deadline(deadline_at: int, late_polls: int, jitter: float) -> int | None:
    """Return when to poll a timed out generation after `late_polls` late polls; None: never.

    10 minutes, 1, 6 and 24 hours after the deadline, ±20 %.
    """
    if late_polls >= len(_LATE_POLLS_MS):
        return None
    return deadline_at + _with_jitter(_LATE_POLLS_MS[late_polls], jitter)


def next_submission(attempts: int, now: int, retry_after_ms: int | None, jitter: float) -> int:
    """Return when to repeat a submission that upstream certainly did not take.

    After 1 s, doubling to a minute, or `retry_after_ms` if that is longer; up to 20 % is added.
    """
    floor_ms = max(_grown(attempts, *_SUBMISSION_MS), retry_after_ms or 0)
    return now + floor_ms + int(floor_ms * _JITTER_SHARE * jitter)


def _grown(count: int, first_ms: int, max_ms: int, *, growth: float = 2) -> int:
    steps = min(max(count - 1, 0), 16)  # Every maximum is reached in fewer steps.
    return min(round(first_ms * growth**steps), max_ms)


def _with_jitter(delay_ms: int, jitter: float) -> int:
    return round(delay_ms * (1 - _JITTER_SHARE + 2 * _JITTER_SHARE * jitter))
