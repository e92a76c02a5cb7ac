"""A subscriber's standing: failing since when, slowed down, disabled, probed, well again."""

from typing import Any

from service.context import Context
from service.delivery import fanout
from service.delivery.attempt import FAILING_MAX_MS, Conclusion
from service.delivery.lanes import Lane
from service.model.subscriber import Subscriber
from service.store import events, subscribers
from service.store.database import Transaction
from service.telemetry import log

_log = log.get()
# Coming back from `disabled`, a lane is probed with one attempt at a time before it opens.
PROBED: dict[str, Any] = {
    "disabled_reason": None,
    "failing_since": None,
    "probing": True,
    "slow_until": None,
}


def changed(lane: Lane, conclusion: Conclusion, now: int) -> bool:
    """True if an outcome changes the subscriber's standing; most do not, and cost nothing."""
    if conclusion.word == "delivered":
        return lane.failing_since is not None or lane.probing
    if conclusion.disabled_reason or lane.failing_since is None:
        return True
    if now - lane.failing_since >= FAILING_MAX_MS:
        return True
    return (conclusion.slow_until or 0) > lane.slow_until


async def follow(
    tx: Transaction, context: Context, subscriber_id: str, conclusion: Conclusion
) -> Subscriber | None:
    """Store what an outcome says about the subscriber; the subscriber as it then is."""
    subscriber = await subscribers.get(tx, subscriber_id)
    if subscriber is None or subscriber.status == "disabled":
        return subscriber
    if conclusion.word == "delivered":
        return await subscribers.change(tx, subscriber, failing_since=None, probing=False)
    changes: dict[str, Any] = {"failing_since": subscriber.failing_since or tx.now}
    if conclusion.slow_until:
        changes["slow_until"] = max(conclusion.slow_until, subscriber.slow_until or 0)
    subscriber = await subscribers.change(tx, subscriber, **changes)
    reason = conclusion.disabled_reason
    if reason is None and tx.now - changes["failing_since"] >= FAILING_MAX_MS:
        reason = "failing"
    return await disable(tx, context, subscriber, reason) if reason else subscriber


async def disable(
    tx: Transaction, context: Context, subscriber: Subscriber, reason: str
) -> Subscriber:
    """Disable a subscriber: `gone` or `failing`, as the outcome of an attempt says.

    What it is owed keeps waiting, and what comes meanwhile is stored as events, to be replayed.
    """
    disabled = await subscribers.change(
        tx, subscriber, status="disabled", disabled_reason=reason, updated_at=tx.now
    )
    tx.after_commit(context.inbox.reload, disabled.id)
    await announce(tx, context, disabled)
    return disabled


async def announce(tx: Transaction, context: Context, disabled: Subscriber) -> None:
    """Say that a subscriber was disabled and why, in an event and in the log."""
    data = {
        "id": disabled.id,
        "description": disabled.description,
        "disabled_reason": disabled.disabled_reason,
    }
    if not disabled.is_notify:  # Nobody knows a `notify_url` by its id.
        event = events.new_event(disabled.tenant, "subscriber.disabled", data, None, tx.now)
        await events.insert(tx, [event])
        await fanout.fan_out(tx, context, [(event, None)])
    tx.after_commit(_logged, disabled)


def _logged(disabled: Subscriber) -> None:
    reason = disabled.disabled_reason
    _log.warning("subscriber.disabled", subscriber_id=disabled.id, reason=reason)
