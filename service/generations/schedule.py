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
_SAFETY_POLLS_MS = tuple(minutes * clock.MINUTE for minutes in (2, 5, 10))
_UNKNOWN_SECONDS = (2, 60)  # The usual time and the p95 of a model that is not in the catalogue.
_TROUBLE_MS = (5 * clock.SECOND, 5 * clock.MINUTE)
_LATE_POLLS_MS = (10 * clock.MINUTE, clock.HOUR, 6 * clock.HOUR, 24 * clock.HOUR)
_SUBMISSION_MS = (clock.SECOND, clock.MINUTE)


def next_poll(context: Context, generation: Generation, polls: int, now: int) -> int:
    """Return when to poll an open generation again, after `polls` polls, every delay ±20 %.

    Without a callback: at the model's usual time, then every 2 s, growing to 15 s, and every
    minute once 5 minutes have passed since the usual time. With a callback: after
    `safety_poll_seconds`, by default the model's p95 and at least a minute; then after 2, 5 and
    every 10 minutes, or as many times `safety_poll_seconds` if that is under a minute.
    """
    if generation.route == "callback":
        return _next_safety_poll(context, generation, polls, now)
    return next_poll_without_callback(context, generation, polls, now)


def planned_polls(context: Context, generation: Generation, now: int) -> int:
    """Return how many planned polls of an open generation have passed.

    With a callback the place in the plan follows from the time, and not from the number of polls,
    so that polls outside of the plan (confirmations, refreshes) do not advance it.
    """
    if generation.route != "callback":
        return generation.poll_count
    passed_ms = now - (generation.submitted_at or now)
    first_ms = planned_ms = _first_safety_ms(context, generation)
    for count in range(len(_SAFETY_POLLS_MS)):
        if passed_ms < _with_jitter(planned_ms, 0):  # The soonest that it can have been made.
            return count
        planned_ms += _safety_delay_ms(first_ms, count + 1)
    return len(_SAFETY_POLLS_MS)


def _next_safety_poll(context: Context, generation: Generation, polls: int, now: int) -> int:
    jitter, first_ms = context.jitter(), _first_safety_ms(context, generation)
    if polls == 0:
        return max((generation.submitted_at or now) + _with_jitter(first_ms, jitter), now)
    delay_ms = max(_safety_delay_ms(first_ms, polls), _POLL_FIRST_MS)
    return now + _with_jitter(delay_ms, jitter)


def _first_safety_ms(context: Context, generation: Generation) -> int:
    if context.settings.safety_poll_seconds is not None:
        return round(context.settings.safety_poll_seconds * clock.SECOND)
    model = context.catalogue.get(generation.model)
    p95_seconds = model.seconds[1] if model else _UNKNOWN_SECONDS[1]
    return max(round(p95_seconds * clock.SECOND), _SAFETY_POLL_MIN_MS)


def _safety_delay_ms(first_ms: int, polls: int) -> int:
    delay_ms = _SAFETY_POLLS_MS[min(polls, len(_SAFETY_POLLS_MS)) - 1]
    return delay_ms * min(first_ms, _SAFETY_POLL_MIN_MS) // _SAFETY_POLL_MIN_MS


def next_poll_without_callback(
    context: Context, generation: Generation, polls: int, now: int
) -> int:
    """Return when an open generation would be polled next if no callback were expected."""
    model, jitter = context.catalogue.get(generation.model), context.jitter()
    submitted_at = generation.submitted_at or now
    usual_seconds = model.seconds[0] if model else _UNKNOWN_SECONDS[0]
    usual_ms = max(round(usual_seconds * clock.SECOND), _POLL_FIRST_MS)
    if polls == 0:
        return max(submitted_at + _with_jitter(usual_ms, jitter), now)
    if now < submitted_at + usual_ms + _POLL_QUICK_FOR_MS:
        delay_ms = _grown(polls, *_POLL_QUICK_MS, growth=1.5)
    else:
        delay_ms = _POLL_SLOW_MS
    return now + _with_jitter(delay_ms, jitter)


def poll_after_trouble(failures: int, now: int, jitter: float) -> int:
    """Return when to poll after consecutive failures: 5 s, doubling to 5 minutes, ±20 %."""
    return now + _with_jitter(_grown(failures, *_TROUBLE_MS), jitter)


def poll_after_deadline(deadline_at: int, late_polls: int, now: int, jitter: float) -> int | None:
    """Return when to poll a timed out generation after `late_polls` late polls; None: never.

    10 minutes, 1, 6 and 24 hours after the deadline, ±20 %. Those that were missed, as while no
    process ran, follow each other as the first one follows the deadline.
    """
    if late_polls >= len(_LATE_POLLS_MS):
        return None
    planned_at = deadline_at + _with_jitter(_LATE_POLLS_MS[late_polls], jitter)
    return max(planned_at, now + _with_jitter(_LATE_POLLS_MS[0], jitter))


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
