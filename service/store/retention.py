"""Retention: what is old goes, in small indexed batches, and never what is still owed.

What points to something goes before it: deliveries, then events, then generations. Ids sort by
time, so what is old is the beginning of each table, and no index is needed for it.
"""

from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from service.model.clock import DAY, HOUR
from service.model.generation import CALLBACK_GRACE_MS
from service.store import (
    callbacks,
    deliveries,
    events,
    generations,
    keys,
    replays,
    stats,
    subscribers,
)
from service.store.database import Database, Transaction

BATCH = 500  # Rows looked at in one transaction.
GENERATIONS_BATCH = 50  # Each takes its metadata, exchanges and callbacks with it.
REJECTED_KEPT_MS = DAY
ANSWERS_KEPT_MS = DAY
SWEEP_EVERY_MS = HOUR

# Deletes the next batch after an id: how many went, and where to go on, None at the end.
Stage = Callable[[Transaction, str], Coroutine[Any, Any, tuple[int, str | None]]]


@dataclass(slots=True)
class Sweep:
    """How far one sweep over the tables has come. Lost with the process: the next starts anew."""

    stages: deque[Stage] = field(default_factory=deque)
    after: str = ""
    next_at: int = 0


async def run_due(
    database: Database, sweep: Sweep, retention_days: int, now: int
) -> tuple[int, int]:
    """One batch of the sweep that is due by `now`: how many rows went, and when to come again."""
    if now < sweep.next_at:
        return 0, sweep.next_at
    if not sweep.stages:
        sweep.stages.extend(await _stages(database, retention_days, now))
    deleted, after = await database.write(sweep.stages[0], sweep.after)
    sweep.after = after or ""
    if after is None:
        sweep.stages.popleft()
    if not sweep.stages:
        sweep.next_at = now + SWEEP_EVERY_MS
        return deleted, sweep.next_at
    return deleted, now


async def _stages(database: Database, retention_days: int, now: int) -> list[Stage]:
    before = now - retention_days * DAY
    tenants = await database.read(subscribers.all_tenants)
    batch: dict[str, Any] = {"before": before, "limit": BATCH}
    return [
        _whole(callbacks.delete_old_rejected, now - REJECTED_KEPT_MS),
        _whole(keys.delete_past_answers, now - ANSWERS_KEPT_MS),
        _whole(stats.delete_past, now - stats.KEPT_MS),
        _whole(replays.delete_past, before),
        *[partial(deliveries.delete_past, tenant=tenant["id"], **batch) for tenant in tenants],
        partial(events.delete_past, **batch),
        partial(
            generations.delete_past,
            before=before,
            called_back=now - CALLBACK_GRACE_MS,
            limit=GENERATIONS_BATCH,
        ),
        partial(subscribers.delete_orphans, **batch),
    ]


def _whole(
    delete: Callable[[Transaction, int, int], Coroutine[Any, Any, int]], before: int
) -> Stage:
    """A stage over rows that nothing points to: the oldest go, for as long as there are any."""

    async def stage(tx: Transaction, _after: str) -> tuple[int, str | None]:
        deleted = await delete(tx, before, BATCH)
        return deleted, "more" if deleted == BATCH else None

    return stage
