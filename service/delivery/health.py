"""A subscriber's health: failing, throttled, disabled, probed, recovered."""

from functools import partial
from typing import Any

from service.context import Context
from service.delivery import fanout
from service.delivery.lanes import Lane
from service.delivery.retry import Verdict
from service.model.clock import DAY
from service.model.subscriber import Subscriber
from service.store import events, subscribers
from service.store.database import Transaction
from service.telemetry import log

_log = log.get()
FAILING_MAX_MS = 5 * DAY  # Of failures without a success; then the subscriber is disabled.
# What re-enabling changes: attempts are made one at a time until one succeeds.
PROBED: dict[str, Any] = {
    "disabled_reason": None,
    "failing_since": None,
    "probing": True,
    "slow_until": None,
}


def is_changed_by(verdict: Verdict, lane: Lane, now: int) -> bool:
    """True if a verdict changes the subscriber's row; most do not, and cost no statement."""
    if verdict.word == "delivered":
        return lane.failing_since is not None or lane.probing
    return (
        verdict.disabled_reason is not None
        or lane.failing_since is None
        or now - lane.failing_since >= FAILING_MAX_MS
        or (verdict.slow_until or 0) > lane.slow_until
    )


async def apply(
    tx: Transaction, context: Context, subscriber_id: str, verdict: Verdict
) -> Subscriber | None:
    """Store what a verdict changes of the subscriber; return the subscriber as it then is.

    It is disabled as `gone` or `failing`. Its pending deliveries then stay pending; events that
    come meanwhile are stored and can be replayed.
    """
    subscriber = await subscribers.get(tx, subscriber_id)
    if subscriber is None or subscriber.status == "disabled":
        return subscriber
    if verdict.word == "delivered":
        return await subscribers.update(tx, subscriber, failing_since=None, probing=False)
    failing_since = subscriber.failing_since or tx.now
    changes: dict[str, Any] = {"failing_since": failing_since}
    if verdict.slow_until:
        changes["slow_until"] = max(verdict.slow_until, subscriber.slow_until or 0)
    reason = verdict.disabled_reason
    if reason is None and tx.now - failing_since >= FAILING_MAX_MS:
        reason = "failing"
    if reason is None:
        return await subscribers.update(tx, subscriber, **changes)
    changes |= {"status": "disabled", "disabled_reason": reason, "updated_at": tx.now}
    disabled = await subscribers.update(tx, subscriber, **changes)
    tx.after_commit(context.inbox.reload, disabled.id)
    await announce(tx, context, disabled)
    return disabled


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
