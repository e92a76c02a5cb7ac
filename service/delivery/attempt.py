"""What came of one attempt: its record, and what it means for the delivery and its lane."""

import msgspec

from service.delivery import retry
from service.delivery.webhook.request import Answer, SendError
from service.model.attempt import Attempt
from service.model.clock import DAY
from service.model.delivery import DueDelivery
from service.model.subscriber import Subscriber

FAILING_MAX_MS = 5 * DAY


class Conclusion(msgspec.Struct, frozen=True, kw_only=True):
    """What follows from an attempt. `word` labels logs and metrics."""

    word: str
    status: str
    due_at: int | None = None
    slow_until: int | None = None
    disabled_reason: str | None = None


def note(
    attempt_id: str, due: DueDelivery, started_at: int, duration_ms: int, result: Answer | SendError
) -> Attempt:
    """The attempt as it is stored."""
    answer = result if isinstance(result, Answer) else None
    error_code, error_message = _error(result)
    return Attempt(
        id=attempt_id,
        delivery_id=due.id,
        number=due.attempt_count + 1,
        trigger=due.trigger,
        started_at=started_at,
        duration_ms=duration_ms,
        status_code=answer.status_code if answer else None,
        error_code=error_code,
        error_message=error_message,
        response_headers=list(answer.headers) if answer else [],
        response_body=answer.body if answer else b"",
    )


def conclude(
    subscriber: Subscriber, attempt: Attempt, result: Answer | SendError, now: int, jitter: float
) -> Conclusion:
    """Delivered, due again, or dead; and whether the subscriber has had enough."""
    seen: retry.Responded | retry.Failed
    if isinstance(result, Answer):
        seen = retry.Responded(result.status_code, dict(result.headers))
    else:
        seen = retry.Failed(result.code, permanent=False)
    outcome = retry.decide(
        seen,
        attempt_number=attempt.number,
        schedule_seconds=subscriber.retry_schedule_seconds,
        now=now,
        jitter=jitter,
    )
    match outcome:
        case retry.Delivered():
            return Conclusion(word="delivered", status="delivered")
        case retry.Retry(due_at, slow_until):
            return Conclusion(
                word="retried", status="pending", due_at=due_at, slow_until=slow_until
            )
        case retry.GiveUp(_, disable):
            gone = "gone" if disable else None
            return Conclusion(word="dead", status="dead", disabled_reason=gone)


def _error(result: Answer | SendError) -> tuple[str | None, str | None]:
    if isinstance(result, SendError):
        return result.code, str(result)
    if 200 <= result.status_code < 300:
        return None, None
    return f"status_{result.status_code}", f"The receiver answered {result.status_code}."
