"""One signed attempt: its recipient, its message, the answer, and what follows from it."""

import time
from collections.abc import Mapping

import msgspec

from service.context import Context
from service.delivery import formats, retry, signing
from service.delivery.formats import Message
from service.delivery.receivers import Rest, names_of
from service.delivery.target import Answer, Sender, SenderClosed, SendError, Target, parse_target
from service.model.attempt import Attempt
from service.model.clock import SECOND
from service.model.delivery import DueDelivery
from service.model.ids import new_id
from service.model.subscriber import Subscriber
from service.store import deliveries, rows, stats, subscribers
from service.store.database import Transaction
from service.store.vault import Vault
from service.telemetry import log, metrics
from service.telemetry.redact import Redactor

_log = log.get()
HEADER_CHARACTERS_MIN = 6  # A shorter value of a subscriber's header is not cut out of answers.


class Recipient(msgspec.Struct, frozen=True):
    """A subscriber with all that an attempt needs."""

    subscriber: Subscriber
    target: Target
    headers: Mapping[str, str]  # The subscriber's own, decrypted.
    signer: signing.Signer
    redactor: Redactor | None = None  # Cuts the values of `headers` out of answers.
    last_attempt_at: int | None = None  # Read only if there is a rate, which continues from there.
    rests: Mapping[str, int] = {}  # Until when its receivers rest, by name; the narrow one last.


class Result(msgspec.Struct, frozen=True):
    """The message that was sent, the record to store, and what follows from the attempt."""

    due: DueDelivery
    recipient: Recipient
    message: Message
    record: deliveries.AttemptRecord
    consequence: retry.Consequence
    ended_at: int
    rest: Rest | None = None  # The rest that the receiver asked for.

    @property
    def is_good_retry(self) -> bool:
        """True if the receiver answered a manual retry with 2xx."""
        return self.due.trigger == "manual" and self.consequence.status == "delivered"


async def read_recipient(tx: Transaction, vault: Vault, subscriber_id: str) -> Recipient | None:
    """Read a recipient; webhooks to a `notify_url` are signed with the tenant's secrets.

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
    headers = signing.unseal_headers(vault, subscriber.sealed_headers, subscriber.id)
    tenant, target = subscriber.tenant, parse_target(subscriber.url, subscriber.tenant)
    return Recipient(
        subscriber=subscriber,
        target=target,
        headers=headers,
        signer=signing.Signer(signing.unseal(vault, sealed, owner_id)),
        redactor=_redactor_of(headers),
        last_attempt_at=await stats.last_attempt_at(tx, subscriber_id) if has_rate else None,
        rests=await subscribers.rests_of(tx, tenant, names_of(subscriber, target.origin)),
    )


async def attempt(
    context: Context, sender: Sender, recipient: Recipient, due: DueDelivery
) -> Result:
    """Make one attempt and judge it, without storing it.

    Whatever goes wrong with the message or the sending counts as a failed attempt: a delivery that
    cannot be sent would be due for ever. SenderClosed if the process stops meanwhile.
    """
    started_at, began = context.clock(), time.perf_counter()
    message = Message(due.body)
    answer: Answer | SendError
    try:
        message = _make_message(recipient, due, started_at)
        seconds_max = context.settings.attempt_timeout_seconds
        answer = await sender.send(recipient.target, message.headers, message.body, seconds_max)
    except SenderClosed:
        raise
    except SendError as error:
        answer = error.with_traceback(None)  # Its frames, this one too, hold the event's body.
    except Exception as error:  # noqa: BLE001  see above
        _log.exception("attempt.broken", delivery_id=due.id)
        answer = SendError("internal_error", f"It could not be sent: {type(error).__name__}.")
    seconds, ended_at = time.perf_counter() - began, context.clock()
    is_manual = due.trigger == "manual"
    consequence = retry.decide(
        answer,
        attempt_number=due.attempt_count - due.manual_count + (not is_manual),
        is_manual=is_manual,
        planned_at=due.planned_at if is_manual else None,
        schedule_seconds=recipient.subscriber.retry_schedule_seconds,
        now=ended_at,
        jitter=context.jitter(),
    )
    if recipient.redactor is not None and isinstance(answer, Answer):
        answer = _cut_echoes(answer, recipient.redactor)
    sent = _make_attempt(due, answer, started_at, seconds)
    _announce(sent, due, consequence.outcome, seconds)
    record = _make_record(recipient, sent, due, consequence, ended_at)
    rest = _make_rest(recipient, sent, consequence.rest_until, ended_at)
    return Result(due, recipient, message, record, consequence, ended_at, rest)


def _make_message(recipient: Recipient, due: DueDelivery, now: int) -> Message:
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


def _redactor_of(headers: Mapping[str, str]) -> Redactor | None:
    """Return a redactor of the headers' values, with and without their scheme (`Bearer …`)."""
    stripped = [value.strip() for value in headers.values()]  # As a receiver reads them.
    values = {part for value in stripped for part in (value, value.rpartition(" ")[2])}
    secrets = {value for value in values if len(value) >= HEADER_CHARACTERS_MIN}
    return Redactor(secrets) if secrets else None


def _cut_echoes(answer: Answer, redactor: Redactor) -> Answer:
    """Return the answer as it may be stored: a receiver may repeat what it was sent."""
    headers = tuple((name, redactor.text(value)) for name, value in answer.headers)
    # The body ends at 16 KiB, or where it broke off: perhaps within a secret.
    body = redactor.without_cut_end(answer.body.decode(errors="surrogateescape"))
    body = redactor.text(body)
    return Answer(answer.status_code, headers, body.encode(errors="surrogateescape"))


def _make_attempt(
    due: DueDelivery, answer: Answer | SendError, started_at: int, seconds: float
) -> Attempt:
    error: tuple[str | None, str | None] = (None, None)
    reply = answer if isinstance(answer, Answer) else None
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


def _make_record(
    recipient: Recipient,
    attempt: Attempt,
    due: DueDelivery,
    consequence: retry.Consequence,
    now: int,
) -> deliveries.AttemptRecord:
    return deliveries.AttemptRecord(
        tenant=due.tenant,
        subscriber_id=due.subscriber_id,
        generation_id=due.generation_id,
        ordered=recipient.subscriber.ordered,
        status=consequence.status,
        due_at=consequence.due_at,
        delivered_at=now if consequence.status == "delivered" else None,
        attempt=attempt,
        # The next attempt keeps to the rate by the stored time of this one.
        is_counted_now=recipient.subscriber.rate_per_second is not None,
    )


def _make_rest(recipient: Recipient, attempt: Attempt, until: int | None, now: int) -> Rest | None:
    """Return the rest that the answer asked for, of the narrow receiver."""
    if until is None:
        return None
    subscriber = recipient.subscriber
    _, receiver = names_of(subscriber, recipient.target.origin)
    return Rest(subscriber.tenant, receiver, until, now, attempt.status_code == 429)


def _announce(attempt: Attempt, due: DueDelivery, outcome: str, seconds: float) -> None:
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
