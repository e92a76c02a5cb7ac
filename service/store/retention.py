"""Retention: delete old rows in small batches, but never a pending delivery or what it needs.

Rows are deleted before the rows they refer to: deliveries, then events, then generations. Ids sort
by time, so old rows are at the beginning of each table and need no further index.
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
    idempotency,
    replays,
    stats,
    subscribers,
)
from service.store.database import Database, Transaction

BATCH = 500  # Rows read in one transaction.
GENERATIONS_BATCH = 50  # Smaller: metadata, exchanges and callbacks are deleted with each.
REJECTED_RETENTION_MS = DAY
IDEMPOTENCY_RETENTION_MS = DAY
SWEEP_INTERVAL_MS = HOUR

# Deletes the next batch after an id; returns how many rows, and the id to continue after or None.
Stage = Callable[[Transaction, str], Coroutine[Any, Any, tuple[int, str | None]]]


@dataclass(slots=True)
class Sweep:
    """The progress of one sweep over the tables. It is not stored: a restart begins a new sweep."""

    stages: deque[Stage] = field(default_factory=deque)
    after: str = ""
    next_at: int = 0


async def run_due(
    database: Database, sweep: Sweep, retention_days: int, now: int
) -> tuple[int, int]:
    """Delete one batch, if the sweep is due; return how many rows, and when the next is due."""
    if now < sweep.next_at:
        return 0, sweep.next_at
    if not sweep.stages:
        sweep.stages.extend(await _stages(database, retention_days, now))
    deleted, after = await database.write(sweep.stages[0], sweep.after)
    sweep.after = after or ""
    if after is None:
        sweep.stages.popleft()
    if not sweep.stages:
        sweep.next_at = now + SWEEP_INTERVAL_MS
        return deleted, sweep.next_at
    return deleted, now


async def _stages(database: Database, retention_days: int, now: int) -> list[Stage]:
    before = now - retention_days * DAY
    tenants = await database.read(subscribers.all_tenants)
    batch: dict[str, Any] = {"before": before, "limit": BATCH}
    return [
        _unreferenced(callbacks.delete_old_rejected, now - REJECTED_RETENTION_MS),
        _unreferenced(idempotency.delete_old, now - IDEMPOTENCY_RETENTION_MS),
        _unreferenced(stats.delete_old, now - stats.RETENTION_MS),
        _unreferenced(replays.delete_old, before),
        *[partial(deliveries.delete_old, tenant=tenant["id"], **batch) for tenant in tenants],
        partial(events.delete_old, **batch),
        partial(
            generations.delete_old,
            before=before,
            deadline_before=now - CALLBACK_GRACE_MS,
            limit=GENERATIONS_BATCH,
        ),
        partial(subscribers.delete_orphans, **batch),
    ]


def _unreferenced(
    delete: Callable[[Transaction, int, int], Coroutine[Any, Any, int]], before: int
) -> Stage:
    """Return a stage for rows to which no other row refers: it needs no id to continue after."""

    async def stage(tx: Transaction, _after: str) -> tuple[int, str | None]:
        deleted = await delete(tx, before, BATCH)
        return deleted, "more" if deleted == BATCH else None

    return stage
