"""Fan events out: a delivery for every subscriber that wants one, in the event's transaction."""

from collections.abc import Sequence

from service.context import Context
from service.delivery.retry import first_due
from service.model.event import Event
from service.model.generation import Generation
from service.model.subscriber import Subscriber
from service.store import deliveries, subscribers
from service.store.database import Transaction

About = tuple[Event, Generation | None]


async def fan_out(tx: Transaction, context: Context, events: Sequence[About]) -> None:
    """Insert the deliveries of events, and hand over those that are due now.

    Each event comes with the generation that it is about, if it is about one.
    """
    targets = [
        (event, subscriber, first_due(subscriber.retry_schedule_seconds, tx.now))
        for event, subscriber in await _targets(tx, events)
    ]
    if not targets:
        return
    due = await deliveries.insert(tx, targets)
    if due:
        tx.after_commit(context.inbox.offer, due)
    for subscriber_id in {to.id for _, to, due_at in targets if due_at > tx.now}:
        tx.after_commit(context.inbox.look, subscriber_id)


async def _targets(tx: Transaction, events: Sequence[About]) -> list[tuple[Event, Subscriber]]:
    """Pair each event with the subscribers of its tenant that subscribe to it."""
    of_tenant = {
        tenant: await subscribers.of_tenant(tx, tenant)
        for tenant in dict.fromkeys(event.tenant for event, _ in events)
    }
    notify = await _notify_subscribers(tx, [generation for _, generation in events])
    targets = []
    for event, generation in events:
        candidates = of_tenant[event.tenant]
        if generation is not None and generation.notify_subscriber_id in notify:
            candidates = [*candidates, notify[generation.notify_subscriber_id]]
        targets += [(event, one) for one in candidates if one.subscribes_to(event.type, generation)]
    return targets


async def _notify_subscribers(
    tx: Transaction, generations: Sequence[Generation | None]
) -> dict[str, Subscriber]:
    """Return the subscribers that stand for the generations' `notify_url`s and are not disabled."""
    ids = {one.notify_subscriber_id for one in generations if one and one.notify_subscriber_id}
    by_id = {id_: await subscribers.get(tx, id_) for id_ in sorted(ids)}
    return {id_: one for id_, one in by_id.items() if one is not None and one.status != "disabled"}
