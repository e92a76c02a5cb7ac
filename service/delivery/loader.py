"""Reads subscribers and due rows into lanes."""

from service.context import Context
from service.delivery.lanes import READY_MAX, Backlog, Lane
from service.delivery.recipient import read_recipient
from service.store import deliveries


async def load(context: Context, lane: Lane) -> bool:
    """Read the lane's subscriber, or else rows that are due; False if the subscriber is deleted.

    One call at a time for each lane: `lane.is_loading` is set meanwhile.
    """
    if lane.recipient is None:
        return await _load_recipient(context, lane)
    for backlog in lane.to_refill(context.clock()):
        await _refill(context, lane, backlog)
    return True


async def _load_recipient(context: Context, lane: Lane) -> bool:
    revision = lane.revision
    recipient = await context.database.read(read_recipient, context.vault, lane.subscriber_id)
    if lane.revision != revision:
        return True  # Changed meanwhile: it is read again.
    if recipient is not None:
        lane.set_recipient(recipient)
        return True
    lane.drop_waiting()
    while await context.database.write(deliveries.cancel, lane.subscriber_id):
        pass
    return False


async def _refill(context: Context, lane: Lane, backlog: Backlog) -> None:
    """Fetch deliveries that are due and not in memory."""
    if lane.recipient is None:
        return  # Changed meanwhile: it is read first.
    backlog.next_due_at = None
    lane.recorded_while_loading.clear()  # The rows that are read now include what was stored.
    revision, held_ids = lane.revision, frozenset(lane.held_ids)
    due, next_at = await context.database.read(
        deliveries.fetch_due,
        lane.subscriber_id,
        READY_MAX - len(backlog.deliveries),
        backlog.is_retries,
        lane.recipient.subscriber.ordered,
        held_ids,
    )
    if lane.revision != revision:
        return  # What was read may have been canceled meanwhile; it is read again.
    skipped = lane.recorded_while_loading | lane.held_ids
    refused = [d for d in due if d.id not in skipped and not lane.hold(d)]
    backlog.expect(context.clock() if refused else next_at)
