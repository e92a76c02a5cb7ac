"""A test of a subscriber: one `ping` now, in a slot of its lane."""

import math

import msgspec

from service.delivery.attempt import Recipient, attempt, read_recipient
from service.delivery.dispatch import Dispatcher
from service.delivery.lanes import Lane
from service.model.attempt import Attempt
from service.model.clock import SECOND
from service.model.event import Event
from service.model.ids import new_id
from service.model.subscriber import Subscriber
from service.store import deliveries, events
from service.store.database import Transaction

TESTS_MAX = 2  # Tests of one subscriber under way at once.
ASK_AGAIN_SECONDS = 1  # After a refusal: nobody knows when attempts under way will end.


async def send_test(
    dispatcher: Dispatcher, subscriber: Subscriber
) -> tuple[Attempt, dict[str, object]] | int | None:
    """Send a `ping` to one subscriber once; return the attempt, and exactly what was sent.

    None if the subscriber was deleted meanwhile. Return in how many seconds to ask again if too
    many tests or attempts of it or its tenant are under way, or its rate allows none now: a test
    takes a slot like any attempt, so that tests delay no delivery. SenderClosed if the process
    stops meanwhile.
    """
    context = dispatcher.context
    version = dispatcher.receivers.begin_read()
    recipient = await context.database.read(read_recipient, context.vault, subscriber.id)
    if recipient is None:
        return None
    if dispatcher.receivers.is_old(subscriber.tenant, version):
        return ASK_AGAIN_SECONDS
    subscriber, test_lane = recipient.subscriber, Lane(subscriber.id)
    receiver = dispatcher.receivers.find(subscriber, recipient.rests, version)
    test_lane.set_recipient(recipient, receiver)
    tests, slots = dispatcher.tests, dispatcher.slots
    dispatcher.refill(subscriber.id)  # So that the lane is in memory, if this process has it.
    # If another process is the worker, its attempts under way are not known here.
    lane, now = dispatcher.lanes.get(subscriber.id) or test_lane, context.clock()
    early_ms = max(lane.next_send_at, test_lane.next_send_at) - now
    tests_max = min(TESTS_MAX, subscriber.max_in_flight)
    is_full = lane.in_flight >= subscriber.max_in_flight or tests[subscriber.id] >= tests_max
    if early_ms > 0 or is_full or not slots.are_free_for(test_lane):
        return max(ASK_AGAIN_SECONDS, math.ceil(early_ms / SECOND))
    test_id = new_id("dlv", now)
    tests[subscriber.id] += 1
    slots.take(test_lane, test_id)
    _enter(lane, test_id, subscriber, now)
    try:
        return await _send(dispatcher, recipient)
    finally:
        slots.release(test_id)
        _leave(dispatcher, lane, test_id)


def _enter(lane: Lane, test_id: str, subscriber: Subscriber, now: int) -> None:
    """Count a test as an attempt of the lane, which then keeps to its limits."""
    lane.in_flight += 1
    lane.held_ids.add(test_id)  # A lane that holds something is not dropped.
    lane.sent_at = now
    if subscriber.rate_per_second:
        lane.next_send_at = now + SECOND / subscriber.rate_per_second


def _leave(dispatcher: Dispatcher, lane: Lane, test_id: str) -> None:
    """Uncount a test, and let the lane and those that wait for slots go on."""
    tests, id_ = dispatcher.tests, lane.subscriber_id
    tests[id_] -= 1
    if not tests[id_]:
        del tests[id_]
    lane.in_flight -= 1
    lane.held_ids.discard(test_id)
    lane.read_again.discard(test_id)
    dispatcher.pump_waiting(dispatcher.context.clock())
    dispatcher.refill(id_)


async def _send(dispatcher: Dispatcher, recipient: Recipient) -> tuple[Attempt, dict[str, object]]:
    """Make the attempt and store it; the values of the subscriber's own headers are redacted."""
    context, subscriber = dispatcher.context, recipient.subscriber
    database, tenant = context.database, subscriber.tenant
    event = await database.write(_store_ping, subscriber, tenant=tenant)
    due = deliveries.new_due(event, subscriber, context.clock(), "test")
    result = await attempt(context, dispatcher.sender, recipient, due)
    # A test is over after one attempt, even where a delivery would be retried.
    status = "delivered" if result.record.status == "delivered" else "dead"
    record = msgspec.structs.replace(result.record, status=status, due_at=None, is_counted_now=True)
    await database.write(deliveries.insert_ended, due, record, tenant=tenant)
    headers = {**result.message.headers, **dict.fromkeys(recipient.headers, "[redacted]")}
    body = result.message.body.decode()
    return record.attempt, {"url": subscriber.url, "headers": headers, "body": body}


async def _store_ping(tx: Transaction, subscriber: Subscriber) -> Event:
    data = {"subscriber_id": subscriber.id}
    event = events.new_event(subscriber.tenant, "ping", data, None, tx.now)
    await events.insert(tx, [event])
    return event
