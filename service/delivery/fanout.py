"""Fan an event out: a delivery for every subscriber that wants it, in the event's transaction."""

from service.context import Context
from service.delivery.retry import first_due
from service.model.event import Event
from service.model.generation import Generation
from service.model.subscriber import Subscriber
from service.store import deliveries, subscribers
from service.store.database import Transaction


async def fan_out(
    tx: Transaction, context: Context, event: Event, generation: Generation | None
) -> None:
    """Store a delivery for every subscriber that wants the event; hand over those due now."""
    matching = [
        subscriber
        for subscriber in await _candidates(tx, event.tenant, generation)
        if subscriber.wants(event.type, generation)
    ]
    if not matching:
        return
    targets = [(to, first_due(to.retry_schedule_seconds, tx.now)) for to in matching]
    due = await deliveries.insert(tx, event, targets)
    tx.after_commit(context.inbox.offer, due)
    offered = {delivery.subscriber_id for delivery in due}
    for subscriber in matching:
        if subscriber.id not in offered:
            tx.after_commit(context.inbox.look, subscriber.id)  # Its first attempt is due later.


async def _candidates(
    tx: Transaction, tenant: str, generation: Generation | None
) -> list[Subscriber]:
    candidates = await subscribers.of_tenant(tx, tenant)
    if generation is not None and generation.notify_subscriber_id:
        notify = await subscribers.get(tx, generation.notify_subscriber_id)
        if notify is not None and notify.status != "disabled":
            candidates.append(notify)
    return candidates
