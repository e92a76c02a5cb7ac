"""A subscriber's health, stored with its attempts: failing, throttled, disabled, recovered."""

from functools import partial
from typing import Any

from service.context import Context
from service.delivery import fanout, replay
from service.delivery.attempt import Result
from service.delivery.lanes import Lane
from service.model.clock import DAY, HOUR, SECOND
from service.model.delivery import DueDelivery
from service.model.subscriber import Subscriber
from service.store import deliveries, events, rows, subscribers
from service.store.database import Transaction
from service.telemetry import log

_log = log.get()
FAILING_MAX_MS = 5 * DAY  # A subscriber that only failed for so long is disabled.
# The days start anew if two failures are further apart than this, the longest delay of the schedule
# (at most a day) and FAILED_EVERY_MS together.
FAILING_GAP_MS = DAY
FAILED_EVERY_MS = HOUR  # The time of the last failure is stored at most so often: it may be so old.
# Deliveries of `subscriber.disabled` of a tenant in an hour; further events are only stored.
NOTICES_MAX = 10_000
NEVER_FAILED: dict[str, Any] = {"failing_since": None, "last_failed_at": None}
# The changes that re-enabling makes: attempts are made one at a time until one succeeds.
ENABLED_AGAIN: dict[str, Any] = {**NEVER_FAILED, "disabled_reason": None, "probing": True}


def changes_of(health: Lane | Subscriber, result: Result, now: int) -> dict[str, Any]:
    """Return the subscriber's fields that an attempt changes; most attempts change none.

    A subscriber is disabled as `gone` or `failing`. Its pending deliveries stay pending. Events
    that come meanwhile are stored and can be replayed.
    """
    consequence = result.consequence
    if consequence.status == "delivered":
        is_well = health.failing_since is None and not health.probing
        return {} if is_well else {"failing_since": None, "probing": False}
    changes: dict[str, Any] = {}
    # Two failures far apart are not days of failure, and neither is a jump of the clock.
    since, last_at = health.failing_since, health.last_failed_at or health.failing_since or 0
    delays = result.recipient.subscriber.retry_schedule_seconds
    delay_ms = min(max(delays) * SECOND, DAY)
    if since is None or now - last_at > FAILING_GAP_MS + delay_ms + FAILED_EVERY_MS:
        since = changes["failing_since"] = now
    if since == now or now - last_at >= FAILED_EVERY_MS:
        changes["last_failed_at"] = now
    reason = consequence.disabled_reason
    if reason is None and now - since >= FAILING_MAX_MS:
        reason = "failing"
    if reason is not None:
        changes |= {"status": "disabled", "disabled_reason": reason, "updated_at": now}
    return changes


async def record(context: Context, lane: Lane, result: Result, now: int, *, may_wait: bool) -> None:
    """Store an attempt; in one commit with the subscriber's health, where that changes.

    may_wait: whether no lane needs the slot, so that the record may wait for other units.
    """
    database, attempt = context.database, result.record
    # A good answer to a manual retry ends the rest.
    is_lifting = result.is_good_retry and lane.receiver.rest_until > now
    if not (changes_of(lane, result, now) or result.rest or is_lifting):
        # At worst, a crash meanwhile repeats the webhook.
        may_wait &= attempt.status == "delivered" and not attempt.ordered
        await database.write_batched(
            deliveries.record_attempts, attempt, tenant=attempt.tenant, may_wait=may_wait
        )
        return
    subscriber = await database.write(_record_with_health, context, result, tenant=attempt.tenant)
    if subscriber is not None:
        lane.set_health(subscriber)


async def _record_with_health(
    tx: Transaction, context: Context, result: Result
) -> Subscriber | None:
    """Store an attempt with its rest and its subscriber's health; return the subscriber, if any."""
    old = await rows.lock_by_id(tx, Subscriber, result.record.subscriber_id)
    changes: dict[str, Any] = {}
    sent_to = result.recipient.subscriber
    # If a person has changed or enabled it since, this attempt says nothing of it.
    is_same = old is not None and (old.url, old.updated_at) == (sent_to.url, sent_to.updated_at)
    if old is not None and old.status != "disabled" and is_same:
        changes = changes_of(old, result, tx.now)
    if "status" in changes:
        await replay.end(tx, context, sent_to.id)
    await deliveries.record_attempts(tx, [result.record])
    await _store_rest(tx, context, result)
    if old is None or not changes:
        return old
    new = await subscribers.update(tx, old, **changes)
    if new.status == "disabled":
        tx.after_commit(context.inbox.reload, new.id)
        await announce(tx, context, new)
    return new


async def _store_rest(tx: Transaction, context: Context, result: Result) -> None:
    """Store the rest that the receiver asked for, or end the rests that are not needed any more.

    A good answer to a manual retry ends all rests that the origin asked for before the retry began.
    """
    if (rest := result.rest) is not None:
        await subscribers.store_rest(tx, rest.tenant, rest.receiver, rest.until, rest.since)
    elif result.is_good_retry:
        origin, started_at = result.recipient.target.origin, result.record.attempt.started_at
        tenant = result.record.tenant
        if await subscribers.end_rests(tx, tenant, origin, started_at):
            tx.after_commit(context.inbox.reload_tenant, tenant, origin)


async def put_off(context: Context, due: DueDelivery, until: int) -> None:
    """Log that a delivery could not be worked, and let its row wait; it raises nothing.

    Due rows are read whenever the lane goes on, so this row must not stay due.
    """
    _log.exception("attempt.put_off", delivery_id=due.id)
    try:
        await context.database.write(deliveries.delay, due, until, tenant=due.tenant)
    except Exception as error:  # noqa: BLE001  it is still due, and read again later
        _log.error("attempt.not_put_off", delivery_id=due.id, error=repr(error))


async def announce(tx: Transaction, context: Context, disabled: Subscriber) -> None:
    """Report that a subscriber was disabled and why, in an event and in the log."""
    id_, reason = disabled.id, disabled.disabled_reason
    data = {"id": id_, "description": disabled.description, "disabled_reason": reason}
    event = events.new_event(disabled.tenant, "subscriber.disabled", data, None, tx.now)
    await events.insert(tx, [event])
    owed = await subscribers.owed_notices(tx, disabled.tenant, tx.now - HOUR)
    if owed <= NOTICES_MAX:
        await fanout.fan_out(tx, context, [(event, None)])
    warn = partial(_log.warning, "subscriber.disabled", subscriber_id=id_, reason=reason)
    tx.after_commit(warn)
