"""A subscriber's health, stored with its attempts: failing, throttled, disabled, recovered."""

from functools import partial
from typing import Any

from service.context import Context
from service.delivery import fanout
from service.delivery.attempt import Result
from service.delivery.lanes import Lane
from service.delivery.receivers import names_of
from service.delivery.target import parse_target
from service.model.clock import DAY, HOUR, SECOND
from service.model.delivery import DueDelivery
from service.model.subscriber import Subscriber
from service.store import deliveries, events, rows, subscribers
from service.store.database import Transaction
from service.telemetry import log

_log = log.get()
FAILING_MAX_MS = 5 * DAY  # After so long with failures only, the subscriber is disabled.
# The longest gap between two failures, added to the longest delay of the schedule. After a longer
# gap the days start anew.
FAILING_GAP_MS = DAY
FAILED_EVERY_MS = HOUR  # The time of the last failure is stored at most so often.
# What re-enabling changes: attempts are made one at a time until one succeeds.
PROBED: dict[str, Any] = {
    "disabled_reason": None,
    "failing_since": None,
    "last_failed_at": None,
    "probing": True,
    "slow_until": None,
}


def changes_of(health: Lane | Subscriber, result: Result, now: int) -> dict[str, Any]:
    """Return the subscriber's fields that an attempt changes; most change none.

    A subscriber is disabled as `gone` or `failing`. Its pending deliveries stay pending. Events
    that come meanwhile are stored and can be replayed.
    """
    verdict = result.verdict
    if verdict.word == "delivered":
        is_well = health.failing_since is None and not health.probing
        changed = {} if is_well else {"failing_since": None, "probing": False}
        if 0 < (health.slow_until or 0) <= result.lifts_until:
            changed["slow_until"] = None
        return changed
    changes: dict[str, Any] = {}
    # Two failures far apart are not days of failure, and neither is a jump of the clock.
    since, last_at = health.failing_since, health.last_failed_at or health.failing_since or 0
    longest_delay_ms = max(result.recipient.subscriber.retry_schedule_seconds) * SECOND
    if since is None or now - last_at > FAILING_GAP_MS + longest_delay_ms + FAILED_EVERY_MS:
        since = changes["failing_since"] = now
    if since == now or now - last_at >= FAILED_EVERY_MS:
        changes["last_failed_at"] = now
    if (verdict.slow_until or 0) > (health.slow_until or 0):
        changes["slow_until"] = verdict.slow_until
    reason = verdict.disabled_reason
    if reason is None and now - since >= FAILING_MAX_MS:
        reason = "failing"
    if reason is not None:
        changes |= {"status": "disabled", "disabled_reason": reason, "updated_at": now}
    return changes


async def record(context: Context, lane: Lane, result: Result, now: int, *, may_wait: bool) -> None:
    """Store an attempt; in one commit with the subscriber's health, where that changes.

    may_wait: whether nobody needs the slot, so that the record may wait for other units.
    """
    attempt, verdict, database = result.record, result.verdict, context.database
    if not (changes_of(lane, result, now) or result.rested or result.lifts_until > now):
        # At worst, a crash meanwhile repeats the webhook.
        may_wait &= verdict.word == "delivered" and not attempt.ordered
        await database.write_batched(deliveries.record_attempts, attempt, may_wait=may_wait)
        return
    subscriber = await database.write(_record_with_health, context, result)
    if subscriber is not None:
        lane.set_health(subscriber)


async def _record_with_health(
    tx: Transaction, context: Context, result: Result
) -> Subscriber | None:
    """Store an attempt and what it changes; return the subscriber as it then is."""
    await deliveries.record_attempts(tx, [result.record])
    attempted, slow_until = result.recipient, result.verdict.slow_until
    if slow_until is not None and result.rested is not None:
        await subscribers.store_rest(tx, result.record.tenant, result.rested, slow_until)
    if result.lifts_until > tx.now:
        await _lift(tx, context, result)
    old = await rows.read_by_id(tx, Subscriber, result.record.subscriber_id)
    if old is None or old.status == "disabled":
        return old
    changes = changes_of(old, result, tx.now)
    if old.url != attempted.subscriber.url:  # The present URL has not failed, and is not gone.
        is_same_origin = parse_target(old.url).origin == attempted.target.origin
        has_rest = is_same_origin and "slow_until" in changes
        changes = {"slow_until": changes["slow_until"]} if has_rest else {}
    new = await subscribers.update(tx, old, **changes)
    if new.status == "disabled":
        tx.after_commit(context.inbox.reload, new.id)
        await announce(tx, context, new)
    return new


async def _lift(tx: Transaction, context: Context, result: Result) -> None:
    """End the rest that the attempt passed, for all lanes; what was asked for meanwhile holds."""
    attempted = result.recipient
    for name in names_of(attempted.subscriber, attempted.target.origin):
        if await subscribers.rest_of(tx, result.record.tenant, name) <= result.lifts_until:
            await subscribers.end_rest(tx, result.record.tenant, name)
    tx.after_commit(context.inbox.reload, None)


async def put_off(context: Context, due: DueDelivery, until: int) -> None:
    """Log that a delivery could not be worked, and let its row wait; it raises nothing.

    Rows that are due are read whenever the lane goes on, so this one must not be due.
    """
    _log.exception("attempt.put_off", delivery_id=due.id)
    try:
        await context.database.write(deliveries.put_off, due, until)
    except Exception as error:  # noqa: BLE001  it is still due, and read again later
        _log.error("attempt.not_put_off", delivery_id=due.id, error=repr(error))


async def announce(tx: Transaction, context: Context, disabled: Subscriber) -> None:
    """Report that a subscriber was disabled and why, in an event and in the log."""
    id_, reason = disabled.id, disabled.disabled_reason
    data = {"id": id_, "description": disabled.description, "disabled_reason": reason}
    if not disabled.is_notify:  # Clients do not know the id of a `notify_url`.
        event = events.new_event(disabled.tenant, "subscriber.disabled", data, None, tx.now)
        await events.insert(tx, [event])
        await fanout.fan_out(tx, context, [(event, None)])
    warn = partial(_log.warning, "subscriber.disabled", subscriber_id=id_, reason=reason)
    tx.after_commit(warn)
