"""One signed attempt to deliver: to whom, what is sent, what comes back, and what follows."""

import time
from collections.abc import Mapping

import msgspec

from service.context import Context
from service.delivery import formats, retry, signing
from service.delivery.formats import Message
from service.delivery.target import Answer, Sender, SendError, Target, parse_target
from service.model.attempt import Attempt
from service.model.clock import SECOND
from service.model.delivery import DueDelivery
from service.model.event import Event
from service.model.ids import new_id
from service.model.subscriber import Subscriber
from service.store import deliveries, rows, stats, subscribers
from service.store.database import Transaction
from service.store.vault import Vault
from service.telemetry import log, metrics

_log = log.get()


class Recipient(msgspec.Struct, frozen=True):
    """A subscriber, ready to be sent to."""

    subscriber: Subscriber
    target: Target
    headers: Mapping[str, str]  # The subscriber's own, decrypted.
    signer: signing.Signer
    last_attempt_at: int | None = None  # Read only if there is a rate, which continues from there.


class Result(msgspec.Struct, frozen=True):
    """What was sent, the record that is to be stored, and what follows from the attempt."""

    due: DueDelivery
    message: Message
    record: deliveries.AttemptRecord
    verdict: retry.Verdict
    ended_at: int


async def read_recipient(tx: Transaction, vault: Vault, subscriber_id: str) -> Recipient | None:
    """Read a recipient, whose secrets are the tenant's for a `notify_url`.

    None if the subscriber was deleted. VaultError if a key is missing.
    """
    subscriber = await rows.read_by_id(tx, Subscriber, subscriber_id)
    if subscriber is None:
        return None
    owner_id, sealed = subscriber.id, subscriber.sealed_secrets
    if subscriber.is_notify:
        owner_id = subscriber.tenant
        sealed = await subscribers.tenant_secrets(tx, owner_id)
    assert sealed is not None
    has_rate = subscriber.rate_per_second is not None
    return Recipient(
        subscriber=subscriber,
        target=parse_target(subscriber.url),
        headers=signing.unseal_headers(vault, subscriber.sealed_headers, subscriber.id),
        signer=signing.Signer(signing.unseal(vault, sealed, owner_id)),
        last_attempt_at=await stats.last_attempt_at(tx, subscriber_id) if has_rate else None,
    )


async def attempt(
    context: Context, sender: Sender, recipient: Recipient, due: DueDelivery
) -> Result:
    """Make one attempt and judge it, without storing it.

    It raises nothing: a delivery that cannot be sent would be due for ever. Every error counts as
    a failed attempt instead.
    """
    started_at, began = context.clock(), time.perf_counter()
    message = Message(due.body)
    answer: Answer | SendError
    try:
        message = _message(recipient, due, started_at)
        seconds_max = context.settings.attempt_timeout_seconds
        answer = await sender.send(recipient.target, message.headers, message.body, seconds_max)
    except SendError as error:
        answer = error
    except Exception as error:  # noqa: BLE001  see above
        _log.exception("attempt.broken", delivery_id=due.id)
        answer = SendError("internal_error", f"It could not be sent: {type(error).__name__}.")
    seconds, ended_at = time.perf_counter() - began, context.clock()
    verdict = retry.decide(
        answer,
        attempt_number=due.attempt_count + 1,
        schedule_seconds=recipient.subscriber.retry_schedule_seconds,
        now=ended_at,
        jitter=context.jitter(),
    )
    sent = _attempt(due, answer, started_at, seconds)
    _count(sent, due, verdict.word, seconds)
    record = _record(recipient, sent, due, verdict, ended_at)
    return Result(due, message, record, verdict, ended_at)


async def send_test(
    context: Context, sender: Sender, subscriber: Subscriber, event: Event
) -> tuple[Attempt, dict[str, object]]:
    """Send an event to one subscriber now, once; return the attempt, and exactly what was sent.

    The values of the subscriber's own headers are redacted: they often are credentials.
    """
    recipient = await context.database.read(read_recipient, context.vault, subscriber.id)
    assert recipient is not None
    due = deliveries.new_due(event, subscriber, context.clock(), "test")
    result = await attempt(context, sender, recipient, due)
    # A test is over after one attempt, whatever a retry would have been due at.
    status = "delivered" if result.record.status == "delivered" else "dead"
    record = msgspec.structs.replace(result.record, status=status, due_at=None, is_counted_now=True)
    await context.database.write(deliveries.insert_ended, due, record)
    headers = {**result.message.headers, **dict.fromkeys(recipient.headers, "[redacted]")}
    body = result.message.body.decode()
    return record.attempt, {"url": subscriber.url, "headers": headers, "body": body}


def _message(recipient: Recipient, due: DueDelivery, now: int) -> Message:
    """Format and sign the event; names that genhook sets win over the subscriber's headers."""
    event = formats.format_event(recipient.subscriber.payload, due.body)
    headers = {
        **recipient.headers,
        "content-type": "application/json",
        "user-agent": "genhook",
        **event.headers,
        "webhook-id": due.event_id,
        "webhook-timestamp": str(now // SECOND),
        "webhook-signature": recipient.signer.header(due.event_id, now, event.body),
    }
    return Message(event.body, headers)


def _attempt(
    due: DueDelivery, answer: Answer | SendError, started_at: int, seconds: float
) -> Attempt:
    reply = answer if isinstance(answer, Answer) else None
    error: tuple[str | None, str | None] = (None, None)
    if isinstance(answer, SendError):
        error = answer.code, str(answer)
    elif not 200 <= answer.status_code < 300:
        error = f"status_{answer.status_code}", f"The receiver answered {answer.status_code}."
    return Attempt(
        id=new_id("att", started_at),
        delivery_id=due.id,
        number=due.attempt_count + 1,
        trigger=due.trigger,
        started_at=started_at,
        duration_ms=round(seconds * 1_000),
        status_code=reply.status_code if reply else None,
        error_code=error[0],
        error_message=error[1],
        response_headers=list(reply.headers) if reply else [],
        response_body=reply.body if reply else b"",
    )


def _record(
    recipient: Recipient, attempt: Attempt, due: DueDelivery, verdict: retry.Verdict, now: int
) -> deliveries.AttemptRecord:
    return deliveries.AttemptRecord(
        tenant=due.tenant,
        subscriber_id=due.subscriber_id,
        generation_id=due.generation_id,
        ordered=recipient.subscriber.ordered,
        status=verdict.status,
        due_at=verdict.due_at,
        delivered_at=now if verdict.status == "delivered" else None,
        attempt=attempt,
        is_counted_now=recipient.subscriber.rate_per_second is not None,
    )


def _count(attempt: Attempt, due: DueDelivery, outcome: str, seconds: float) -> None:
    metrics.attempts.add(1, outcome)
    metrics.attempt_seconds.observe(seconds, outcome)
    _log.info(
        "attempt",
        delivery_id=due.id,
        event_id=due.event_id,
        subscriber_id=due.subscriber_id,
        generation_id=due.generation_id,
        tenant=due.tenant,
        trigger=due.trigger,
        number=attempt.number,
        outcome=outcome,
        status_code=attempt.status_code,
        error=attempt.error_code,
        duration_ms=attempt.duration_ms,
    )
