"""Stores attempts that have ended, with what they change of the subscriber's health."""

import msgspec

from service.context import Context
from service.delivery import health
from service.delivery.lanes import Lane
from service.delivery.recipient import Recipient
from service.delivery.retry import Verdict
from service.model.attempt import Attempt
from service.model.delivery import DueDelivery
from service.model.subscriber import Subscriber
from service.store import deliveries
from service.store.database import Transaction
from service.store.deliveries import AttemptRecord


class EndedAttempt(msgspec.Struct, frozen=True):
    """An attempt that has ended and is not stored yet; it holds its slot until it is."""

    lane: Lane
    due: DueDelivery
    verdict: Verdict
    record: AttemptRecord


def record_of(
    recipient: Recipient, due: DueDelivery, attempt: Attempt, verdict: Verdict, now: int
) -> AttemptRecord:
    """Return an attempt and the new state of its delivery as the store takes them."""
    return AttemptRecord(
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


async def store(context: Context, ended: EndedAttempt, now: int) -> None:
    """Store an attempt; in one commit with the subscriber's health, where that changes."""
    lane, verdict, database = ended.lane, ended.verdict, context.database
    if not health.changes_of(lane, verdict, now):
        # Nobody waits for this record: at worst, a crash repeats the webhook.
        may_wait = verdict.word == "delivered" and not (lane.waiting or ended.record.ordered)
        await database.write_batched(deliveries.record_attempts, ended.record, may_wait=may_wait)
        return
    subscriber = await database.write(_store_with_health, context, ended)
    lane.pause_until(verdict.slow_until)
    if subscriber is not None:
        lane.set_health(subscriber)


async def _store_with_health(
    tx: Transaction, context: Context, ended: EndedAttempt
) -> Subscriber | None:
    await deliveries.record_attempts(tx, [ended.record])
    return await health.apply(tx, context, ended.record.subscriber_id, ended.verdict)
