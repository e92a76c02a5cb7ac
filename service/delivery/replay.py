"""Replay: send stored events to one subscriber again, in batches that a crash does not repeat."""

from typing import Literal

import msgspec

from service.context import Context
from service.model.clock import SECOND
from service.model.event import EVENT_TYPES
from service.model.replay import Replay
from service.model.subscriber import Subscriber
from service.store import deliveries, replays, subscribers
from service.store.database import Transaction

BATCH = 100  # Deliveries made in one transaction.
WINDOW = 1_000  # Events looked at in one transaction.
COUNT_WINDOW = 5_000  # The same while counting, which keeps no writer waiting.
AHEAD_MAX = 1_000  # Untried deliveries of one replay: live events must not queue behind them.
AHEAD_WAIT_MS = SECOND // 2
CLOSED_WAIT_MS = 5 * SECOND
CANCEL_BATCH = 500
REPLAYS_AT_ONCE = 50
_GENERATION_TYPES = tuple(t for t in EVENT_TYPES if t.startswith("generation."))
Refusal = Literal["subscriber_disabled", "replay_running"]


def event_types(subscriber: Subscriber, requested: list[str]) -> list[str]:
    """Return the event types to replay: the requested ones that the subscriber receives.

    An empty request means the types of generations.
    """
    types = requested or _GENERATION_TYPES
    return [t for t in types if not subscriber.event_types or t in subscriber.event_types]


async def start(context: Context, new: Replay, subscriber: Subscriber) -> Replay | Refusal:
    """Count the events that the replay is about, and store it; or return why it cannot run.

    Events that are stored later are no part of it.
    """
    cursor, last_seq = await context.database.read(replays.bounds, new.since_at)
    until_at = min(new.until_at, context.clock() + 1)
    new = msgspec.structs.replace(new, cursor=cursor, last_seq=last_seq, until_at=until_at)
    new = msgspec.structs.replace(new, total=await _count(context, new, subscriber))
    return await context.database.write(_start, context, new)


async def _start(tx: Transaction, context: Context, new: Replay) -> Replay | Refusal:
    stored = await replays.get(tx, new.id)
    if stored is not None:
        return stored  # By the same request, whose answer was lost.
    if not new.dry_run:
        subscriber = await subscribers.get(tx, new.subscriber_id)
        if subscriber is None or subscriber.status == "disabled":
            return "subscriber_disabled"
        if await replays.is_running(tx, new.subscriber_id):
            return "replay_running"
    await replays.insert(tx, new)
    tx.after_commit(context.signals.replay.set)
    return new


async def _count(context: Context, replay: Replay, subscriber: Subscriber) -> int:
    total, cursor = 0, replay.cursor
    while True:
        at = msgspec.structs.replace(replay, cursor=cursor)
        found = await context.database.read(_count_window, at, subscriber)
        if found is None:
            return total
        count, cursor = found
        total += count


async def _count_window(
    tx: Transaction, replay: Replay, subscriber: Subscriber
) -> tuple[int, int] | None:
    window = await replays.window(tx, replay, COUNT_WINDOW)
    if window is None:
        return None
    found = await replays.matches(tx, replay, subscriber, window.last_seq, COUNT_WINDOW)
    return len(found), window.last_seq


async def cancel(tx: Transaction, context: Context, replay: Replay) -> Replay:
    """Make no more deliveries, and cancel those that are pending."""
    canceled = await replays.change(
        tx, replay, status="canceled", due_at=tx.now, finished_at=tx.now
    )
    await deliveries.cancel_replayed(tx, replay.id, CANCEL_BATCH)
    await subscribers.touch(tx)
    tx.after_commit(context.inbox.reload, replay.subscriber_id)
    tx.after_commit(context.signals.replay.set)
    return canceled


async def run_due(context: Context, now: int) -> tuple[int, int | None]:
    """One batch of every replay that is due by `now`: deliveries made, and when to come again."""
    due_at = await context.database.read(replays.next_due)
    if due_at is None or due_at > now:
        return 0, due_at
    made = 0
    for replay_id in await context.database.read(replays.due, REPLAYS_AT_ONCE):
        made += await context.database.write(_step, context, replay_id)
    return made, await context.database.read(replays.next_due)


async def _step(tx: Transaction, context: Context, replay_id: str) -> int:
    """One batch, in one transaction with the note of how far it came."""
    replay = await replays.get(tx, replay_id)
    if replay is None or replay.due_at is None:
        return 0
    if replay.status != "running":
        return await _cancel_more(tx, context, replay)
    subscriber = await subscribers.get(tx, replay.subscriber_id)
    if subscriber is None:
        await cancel(tx, context, replay)
        return 0
    if subscriber.status != "active":
        await replays.change(tx, replay, due_at=tx.now + CLOSED_WAIT_MS)
        return 0
    if await replays.ahead(tx, replay.id, AHEAD_MAX) >= AHEAD_MAX:
        await replays.change(tx, replay, due_at=tx.now + AHEAD_WAIT_MS)
        return 0
    return await _make(tx, context, replay, subscriber)


async def _make(tx: Transaction, context: Context, replay: Replay, subscriber: Subscriber) -> int:
    rate = replay.rate_per_second
    limit = BATCH if rate is None else min(max(int(rate), 1), BATCH)
    window = await replays.window(tx, replay, WINDOW)
    if window is None:
        await replays.change(tx, replay, status="done", due_at=None, finished_at=tx.now)
        return 0
    found = await replays.matches(tx, replay, subscriber, window.last_seq, limit)
    due = [d for seq in found if (d := await replays.deliver(tx, replay, subscriber, seq))]
    await replays.change(
        tx,
        replay,
        cursor=found[-1] if len(found) == limit else window.last_seq,
        done=replay.done + len(due),
        due_at=tx.now + (round(len(due) * SECOND / rate) if rate else 0),
    )
    tx.after_commit(context.inbox.offer, due)
    return len(due)


async def _cancel_more(tx: Transaction, context: Context, replay: Replay) -> int:
    """What one transaction could not cancel."""
    canceled = await deliveries.cancel_replayed(tx, replay.id, CANCEL_BATCH)
    if canceled < CANCEL_BATCH:
        await replays.change(tx, replay, due_at=None)
    tx.after_commit(context.inbox.reload, replay.subscriber_id)
    return 0
