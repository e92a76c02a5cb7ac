"""Fan events out: insert a delivery for each subscriber to an event, in its transaction."""

from collections.abc import Sequence

from service.context import Context
from service.model.clock import SECOND
from service.model.event import Event
from service.model.generation import Generation
from service.model.subscriber import Subscriber
from service.store import deliveries, rows, subscribers
from service.store.database import Transaction


async def fan_out(
    tx: Transaction, context: Context, events: Sequence[tuple[Event, Generation | None]]
) -> None:
    """Insert the deliveries of events, and offer those that are due now to the inbox."""
    tenants = dict.fromkeys(event.tenant for event, _ in events)
    by_tenant = {tenant: await subscribers.candidates(tx, tenant) for tenant in tenants}
    ids = {g.notify_subscriber_id for _, g in events if g and g.notify_subscriber_id}
    # A subscriber that cannot be decoded gets nothing: it must not hold up the generation.
    by_id = {
        subscriber.id: subscriber
        for id_ in sorted(ids)
        for subscriber in await rows.read_all(tx, Subscriber, "subscriber_by_id", id=id_)
    }
    new: list[tuple[Event, Subscriber, int]] = []
    for event, generation in events:
        candidates = by_tenant[event.tenant]
        notified = generation and by_id.get(generation.notify_subscriber_id or "")
        if notified and notified.status != "disabled":
            candidates = [*candidates, notified]
        new += [
            (event, subscriber, tx.now + subscriber.retry_schedule_seconds[0] * SECOND)
            for subscriber in candidates
            if subscriber.subscribes_to(event.type, generation)
        ]
    if not new:
        return
    if due := await deliveries.insert(tx, new):
        tx.after_commit(context.inbox.offer, due)
    for subscriber_id in {subscriber.id for _, subscriber, due_at in new if due_at > tx.now}:
        tx.after_commit(context.inbox.refill, subscriber_id)
