"""Retention: delete old rows in small batches, but never a pending delivery or what it needs.

On PostgreSQL it also adds up the usage, which transactions store in `usage_added`, and orders the
events: what nobody asks for would pile up.

Old pending deliveries to a disabled subscriber are canceled, and deleted by the next sweep.

Rows are deleted before the rows they refer to: deliveries, then events, then generations. Ids sort
by time, so old rows are at the beginning of each table and need no further index.
"""

from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from service.model.clock import DAY, HOUR, SECOND
from service.model.errors import StorageError
from service.model.generation import CALLBACK_GRACE_MS
from service.model.ids import first_id
from service.store import stats, subscribers
from service.store.database import Transaction
from service.store.rows import read_number
from service.store.writes import Database
from service.telemetry import log

_log = log.get()

BATCH = 500  # Rows read in one transaction.
GENERATIONS_BATCH = 50  # Smaller: metadata and bodies are deleted with each.
PARTS_BATCH = 500  # Callbacks or exchanges: a generation may have thousands.
REJECTED_MAX = 1_000  # Rejected callbacks kept: so many with a tenant, and so many without.
REJECTED_RETENTION_MS = DAY
IDEMPOTENCY_RETENTION_MS = DAY
SWEEP_INTERVAL_MS = HOUR
FOLD_BATCH = 10_000  # Rows of usage that are added up in one transaction.
FOLD_INTERVAL_MS = 10 * SECOND

# The statements that delete what a generation has: first rows of which there may be thousands,
# PARTS_BATCH at a time, then the others.
GENERATION_PARTS = (
    "exchanges_delete",
    "callbacks_of_generation_delete",
    "callback_bodies_of_generation_delete",
)
GENERATION_ROWS = (
    "confirmation_delete",  # Of a callback that came just now.
    "generation_metadata_delete",
    "generation_body_delete",
    "task_names_delete",
    "generation_delete",
)
# By the statement that lists old rows: the prefix of their ids, and what is deleted with each.
_DELETES = {
    "callbacks_rejected_old": ("cb", ("callback_delete", "callback_body_delete")),
    "deliveries_old": ("dlv", ("delivery_delete", "attempts_delete")),
    "events_old": ("evt", ("event_delete",)),
    "generations_old": ("gen", GENERATION_ROWS),
    "subscribers_notify_old": ("sub", ("subscriber_notify_erase",)),
}

# How many rows were deleted, and the id to continue after; None: the stage is done.
Progress = tuple[int, str | None]
Stage = Callable[[Transaction, str], Coroutine[Any, Any, Progress]]  # Deletes a batch after an id.


@dataclass(slots=True)
class Sweep:
    """The progress of one sweep over the tables. It is not stored: a restart begins a new sweep."""

    stages: deque[Stage] = field(default_factory=deque)
    after: str = ""
    next_at: int = 0
    fold_at: int = 0
    # When session.py reseals again: other processes may still seal with an older key.
    reseal_at: int = 0


async def run_due(
    database: Database, sweep: Sweep, retention_days: int, now: int
) -> tuple[int, int]:
    """Delete one batch, if the sweep is due; before it, order the events and add up the usage.

    Return how many rows were deleted, and when the next of these steps is due.
    """
    if now >= sweep.fold_at:
        await _order_events(database)
        sweep.fold_at = now + await _fold_usage(database)
    if now < sweep.next_at:
        return 0, min(sweep.next_at, sweep.fold_at)
    if not sweep.stages:
        sweep.stages.extend(await _stages(database, retention_days, now))
    deleted, after = await database.write(sweep.stages[0], sweep.after)
    sweep.after = after or ""
    if after is None:
        sweep.stages.popleft()
    sweep.next_at = now if sweep.stages else now + SWEEP_INTERVAL_MS
    return deleted, min(sweep.next_at, sweep.fold_at)


async def _order_events(database: Database) -> None:
    """Order the events; what takes too long for one call is left to the next."""
    try:
        await database.order_events()
    except StorageError as error:
        _log.warning("events.unordered", error=str(error))


async def _fold_usage(database: Database) -> int:
    """Add up a batch of the usage; return after how many milliseconds the next is due."""
    folded = await database.write(fold_usage)
    if folded is None:
        return SWEEP_INTERVAL_MS
    return 0 if folded == FOLD_BATCH else FOLD_INTERVAL_MS


async def fold_usage(tx: Transaction) -> int | None:
    """Add a batch of `usage_added` to the usage; return how many rows; None on SQLite."""
    return await read_number(tx, "usage_fold", limit=FOLD_BATCH)


async def _stages(database: Database, retention_days: int, now: int) -> list[Stage]:
    before = now - retention_days * DAY
    batch: dict[str, Any] = {"before": before, "limit": BATCH}
    # A generation stays until its deadline is long past: upstream may still repeat its callback.
    generations = batch | {"limit": GENERATIONS_BATCH, "deadline_before": now - CALLBACK_GRACE_MS}
    unreferenced = {
        "idempotency_delete_old": now - IDEMPOTENCY_RETENTION_MS,
        "stats_delete_old": now - stats.RETENTION_MS,
        "replays_delete_old": before,
        "rests_delete_old": now,
    }
    rejected = batch | {"before": now - REJECTED_RETENTION_MS, "keep": REJECTED_MAX}
    tenants = await database.read(subscribers.all_tenants)
    return [
        *[
            partial(_delete_old, "callbacks_rejected_old", is_unowned=unowned, **rejected)
            for unowned in (False, True)
        ],
        *[partial(_delete_unreferenced, name, until) for name, until in unreferenced.items()],
        *[partial(_delete_old, "deliveries_old", tenant=tenant, **batch) for tenant in tenants],
        partial(_delete_old, "events_old", **batch),
        partial(_delete_old, "generations_old", **generations),
        partial(_delete_old, "subscribers_notify_old", **batch),
    ]


async def _delete_unreferenced(name: str, before: int, tx: Transaction, _after: str) -> Progress:
    """Delete rows to which no other row refers: what is left is at the beginning of the table."""
    # Replays are found by their id, the others by a time.
    deleted = await tx.run(name, before=before, before_id=first_id("rpl", before), limit=BATCH)
    return deleted, "" if deleted == BATCH else None  # From the beginning again.


async def _delete_old(name: str, tx: Transaction, after: str, **values: Any) -> Progress:
    """Delete those of the next old rows that may be deleted, with the rows of `_DELETES`."""
    prefix, deletes = _DELETES[name]
    before_id = first_id(prefix, values["before"])
    rows = await tx.lock(name, after=after, before_id=before_id, **values)
    deletable = [dict(row) for row in rows if row["is_deletable"]]
    whole = await _delete_parts(tx, deletable) if name == "generations_old" else deletable
    for delete in deletes:
        await tx.many(delete, whole)
    if len(whole) < len(deletable):
        return len(whole), whole[-1]["id"] if whole else after
    if name == "deliveries_old":
        others = [dict(row) for row in rows if not row["is_deletable"]]
        await tx.many("delivery_cancel_disabled", others)
    return len(deletable), rows[-1]["id"] if len(rows) == values["limit"] else None


async def _delete_parts(
    tx: Transaction, rows: Sequence[dict[str, Any]]
) -> Sequence[dict[str, Any]]:
    """Delete PARTS_BATCH parts of generations by each statement; return those with none left."""
    room = PARTS_BATCH
    for count, row in enumerate(rows):
        room -= max([await tx.run(name, **row, most=room) for name in GENERATION_PARTS])
        if room <= 0:
            return rows[:count]
    return rows
