"""Stores attempts that have ended, with what they change of the subscriber's health."""

from service.context import Context
from service.delivery import health
from service.delivery.attempt import Result
from service.delivery.lanes import Lane
from service.model.subscriber import Subscriber
from service.store import deliveries
from service.store.database import Transaction


async def store(context: Context, lane: Lane, result: Result, now: int, *, may_wait: bool) -> None:
    """Store an attempt; in one commit with the subscriber's health, where that changes.

    may_wait: whether nobody needs the slot, so that the record may wait for other units.
    """
    record, verdict = result.record, result.verdict
    if not health.changes_of(lane, verdict, now):
        # At worst, a crash meanwhile repeats the webhook.
        may_wait &= verdict.word == "delivered" and not record.ordered
        database = context.database
        await database.write_batched(deliveries.record_attempts, record, may_wait=may_wait)
        return
    subscriber = await context.database.write(_store_with_health, context, result)
    lane.pause_until(verdict.slow_until)
    if subscriber is not None:
        lane.set_health(subscriber)


async def _store_with_health(
    tx: Transaction, context: Context, result: Result
) -> Subscriber | None:
    await deliveries.record_attempts(tx, [result.record])
    return await health.apply(tx, context, result.record.subscriber_id, result.verdict)
