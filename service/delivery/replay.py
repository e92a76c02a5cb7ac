"""Replay stored events to one subscriber, in batches that a crash does not repeat."""

from typing import Literal

from msgspec.structs import replace

from service.context import Context
from service.model.clock import SECOND
from service.model.errors import StorageError
from service.model.event import EVENT_TYPES
from service.model.replay import Replay
from service.model.subscriber import Subscriber
from service.store import deliveries, replays, rows, subscribers
from service.store.database import Transaction
from service.telemetry import log

_log = log.get()

BATCH = 100  # Deliveries inserted in one transaction.
SPAN = 1_000  # Events examined in one transaction.
COUNT_SPAN = 5_000  # Events counted in one read, which blocks no writer.
UNTRIED_MAX = 1_000  # Deliveries of one replay without an attempt: new events queue behind them.
UNTRIED_WAIT_MS = SECOND // 2
INACTIVE_WAIT_MS = 5 * SECOND  # While the subscriber is paused.
REPLAYS_AT_ONCE = 50
_GENERATION_TYPES = tuple(t for t in EVENT_TYPES if t.startswith("generation."))
Refusal = Literal["subscriber_disabled", "replay_running"]


def event_types(subscriber: Subscriber, requested: list[str], *, only_dead: bool) -> list[str]:
    """Return the event types to replay: the requested ones that the subscriber receives.

    An empty request means every type where only dead deliveries are replayed, so that none stays
    dead, and otherwise the types of generations: old pings and notices would help nobody.
    """
    types = requested or (EVENT_TYPES if only_dead else _GENERATION_TYPES)
    return [t for t in types if not subscriber.event_types or t in subscriber.event_types]


async def count(context: Context, new: Replay, subscriber: Subscriber) -> Replay:
    """Return the replay with its number of events; those that are stored later are not replayed."""
    cursor, last_seq = await replays.read_bounds(context.database, new.since_at)
    until_at = min(new.until_at, new.created_at + 1)
    new = replace(new, cursor=cursor, last_seq=last_seq, until_at=until_at)
    examined = new
    while counted := await context.database.search(new.tenant, _count_span, examined, subscriber):
        examined = counted
    return replace(new, total=examined.total)


async def _count_span(tx: Transaction, replay: Replay, subscriber: Subscriber) -> Replay | None:
    """Return the replay with the next span's matches in its total; None after the last one."""
    span_end = await replays.span_end(tx, replay, COUNT_SPAN)
    if span_end is None:
        return None
    matches = await replays.matching_seqs(tx, replay, subscriber, span_end, COUNT_SPAN)
    return replace(replay, cursor=span_end, total=replay.total + len(matches))


async def store(tx: Transaction, context: Context, new: Replay) -> Replay | Refusal:
    """Store the replay, which then runs; or return why it cannot run."""
    if not new.dry_run:
        subscriber = await rows.lock_by_id(tx, Subscriber, new.subscriber_id)
        if subscriber is None or subscriber.status == "disabled":
            return "subscriber_disabled"
        if await replays.is_running(tx, new.subscriber_id):
            return "replay_running"
    await rows.insert(tx, new)
    tx.after_commit(context.tell, context.signals.replay, new.subscriber_id)
    return new


async def cancel(tx: Transaction, context: Context, replay: Replay) -> Replay:
    """Stop the replay, which is locked, and cancel pending deliveries: a batch, and later the rest.

    `_run_batch` cancels those that are left.
    """
    canceled = await rows.update(tx, replay, status="canceled", due_at=tx.now, finished_at=tx.now)
    await deliveries.cancel_replayed(tx, replay.id)
    await subscribers.bump_revision(tx, replay.tenant, replay.subscriber_id)
    tx.after_commit(context.inbox.reload, replay.subscriber_id)
    tx.after_commit(context.tell, context.signals.replay, replay.subscriber_id)
    return canceled


async def end(tx: Transaction, context: Context, subscriber_id: str) -> None:
    """End the running replay, if any, of a subscriber that is locked and takes no more webhooks.

    The next batch cancels its pending deliveries. Call it before anything else is changed:
    whoever cancels a replay locks that replay first, too.
    """
    if await tx.run("replay_end", subscriber_id=subscriber_id, now=tx.now):
        tx.after_commit(context.tell, context.signals.replay, subscriber_id)


async def run_due(context: Context, now: int) -> tuple[int, int | None]:
    """Run a batch of each due replay; return the number of deliveries and the next due time."""
    due_at = await context.database.read(replays.next_due)
    if due_at is None or due_at > now:
        return 0, due_at
    count = 0
    for replay_id in await context.database.read(replays.list_due, REPLAYS_AT_ONCE):
        try:
            count += await context.database.write(_run_batch, context, replay_id)
        except StorageError:
            raise
        except Exception as error:  # noqa: BLE001  one row must not hold the others
            _log.error("replay.failed", replay_id=replay_id, error=repr(error))
            await context.database.write(replays.delay, replay_id)
    return count, await context.database.read(replays.next_due)


async def _run_batch(tx: Transaction, context: Context, replay_id: str) -> int:
    """Run a batch of a replay, or cancel the next deliveries of a canceled one."""
    # The subscriber is locked first, as by whoever disables it.
    known = await rows.read_by_id(tx, Replay, replay_id)
    if known is None:
        return 0
    subscriber = await rows.lock_by_id(tx, Subscriber, known.subscriber_id)
    replay = await rows.lock_by_id(tx, Replay, replay_id)
    if replay is None or replay.due_at is None:
        return 0
    if replay.status != "running":
        if not await deliveries.cancel_replayed(tx, replay.id):
            await rows.update(tx, replay, due_at=None)
        tx.after_commit(context.inbox.reload, replay.subscriber_id)
        return 0
    if subscriber is None or subscriber.status != "active":
        await rows.update(tx, replay, due_at=tx.now + INACTIVE_WAIT_MS)
    elif await replays.count_untried(tx, replay.id, UNTRIED_MAX) >= UNTRIED_MAX:
        await rows.update(tx, replay, due_at=tx.now + UNTRIED_WAIT_MS)
    else:
        return await _deliver(tx, context, replay, subscriber)
    return 0


async def _deliver(
    tx: Transaction, context: Context, replay: Replay, subscriber: Subscriber
) -> int:
    """Insert the next deliveries of a replay and move its cursor; return their number."""
    rate = replay.rate_per_second
    limit = BATCH if rate is None else min(max(int(rate), 1), BATCH)
    span_end = await replays.span_end(tx, replay, SPAN)
    if span_end is None:
        await rows.update(tx, replay, status="done", due_at=None, finished_at=tx.now)
        return 0
    matches = await replays.matching_seqs(tx, replay, subscriber, span_end, limit)
    due = await replays.insert_deliveries(tx, replay, subscriber, matches)
    done = replay.done + len(due)
    await rows.update(
        tx,
        replay,
        cursor=matches[-1] if len(matches) == limit else span_end,
        done=done,
        # Deliveries that were pending when the replay was counted may have died since, and match.
        total=max(replay.total, done),
        due_at=tx.now + (round(len(due) * SECOND / rate) if rate else 0),
    )
    tx.after_commit(context.inbox.offer, due)
    return len(due)
