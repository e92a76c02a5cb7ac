"""Loading: what a lane lacks in memory is read: its subscriber, and rows that are due."""

from service.context import Context
from service.delivery.attempt import read_recipient
from service.delivery.lanes import NEVER, Backlog, Lane
from service.delivery.receivers import Receivers
from service.store import deliveries, stats


async def load(context: Context, receivers: Receivers, lane: Lane) -> bool:
    """Read the lane's subscriber, or else rows that are due; False if the subscriber is deleted.

    One call at a time for each lane: `lane.is_loading` is set meanwhile.
    """
    if lane.recipient is not None:
        for backlog in lane.plan(context.clock())[0]:
            await _refill(context, lane, backlog)
        return True
    revision, turn = lane.revision, receivers.begin_read()
    recipient = await context.database.read(read_recipient, context.vault, lane.subscriber_id)
    if lane.revision != revision:
        return True  # Changed meanwhile: it is read again.
    if recipient is not None:
        receiver = receivers.find(recipient.subscriber, recipient.rests, turn)
        lane.set_recipient(recipient, receiver)
        return True
    lane.drop_waiting()
    while await context.database.write(deliveries.cancel, lane.subscriber_id):
        pass
    return False


async def _refill(context: Context, lane: Lane, backlog: Backlog) -> None:
    """Fetch deliveries that are due and not in memory."""
    if lane.recipient is None or not lane.room_in(backlog):
        return  # Changed meanwhile: it is read first, or when there is room again.
    backlog.next_due_at = NEVER
    subscriber = lane.recipient.subscriber
    if backlog.is_manual and subscriber.ordered:
        return
    lane.recorded_while_loading.clear()  # The rows that are read now include what was stored.
    revision = lane.revision
    # One that waits may have been asked for since: it is read again, and takes the other's place.
    held_ids = frozenset[str]() if backlog.is_manual else frozenset(lane.held_ids)
    if lane.generation_ids:
        held_ids |= lane.generation_ids
    due, next_at = await context.database.read(
        deliveries.fetch_due,
        subscriber.id,
        lane.room_in(backlog),
        None if backlog.is_manual else backlog.is_retries,
        subscriber.ordered,
        held_ids,
    )
    last_attempt_at: int | None = None
    if subscriber.rate_per_second:  # Another process may have made a test, which takes a place.
        last_attempt_at = await context.database.read(stats.last_attempt_at, subscriber.id)
    if lane.revision != revision:
        return  # What was read may have been canceled meanwhile; it is read again.
    lane.continue_rate(last_attempt_at)
    if backlog.is_manual and due:
        lane.take_out({d.id for d in due})
        lane.read_again |= lane.held_ids & {d.id for d in due}
    skipped = lane.recorded_while_loading | lane.held_ids
    refused = [d for d in due if d.id not in skipped and not lane.hold(d)]
    next_at = context.clock() if refused else next_at or NEVER
    backlog.next_due_at = min(backlog.next_due_at, next_at)
