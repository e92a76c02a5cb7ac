"""Generations: insert, lock, change; what is due; exchanges with upstream; usage."""

from collections.abc import Sequence
from typing import Any

import msgspec

from service.model.clock import SECOND, rfc3339
from service.model.generation import Generation
from service.model.ids import first_id
from service.store.database import Row, Transaction
from service.store.rows import noun, text

_JSON = frozenset({"input", "metadata", "output", "error"})
_COLUMNS = (
    "id",
    "status",
    "task_id",
    "credits",
    "submitted_at",
    "completed_at",
    "submission",
    "submit_at",
    "submit_count",
    "next_poll_at",
    "poll_count",
    "trouble_count",
    "late_poll_count",
    "last_poll_at",
)
CONFIRM_INTERVAL_MS = SECOND


def generation(row: Row) -> Generation:
    """The generation in a row of `generation_by_id` and its like."""
    return noun(Generation, row, json=_JSON)


class Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """One question to upstream and what came of it."""

    generation_id: str
    at: int
    kind: str
    duration_ms: int
    status_code: int | None
    outcome: str
    detail: str | None


async def insert(tx: Transaction, new: Generation) -> None:
    """Store a new generation with its input and metadata."""
    row = msgspec.structs.asdict(new)
    row["input"], row["metadata"] = text(new.input), text(new.metadata)
    row["output"] = row["error"] = None
    await tx.run("generation_insert", **row)
    await tx.run("generation_body_insert", id=new.id, input=row["input"], metadata=row["metadata"])
    for name, value in new.metadata.items():
        await tx.run(
            "generation_metadata_insert",
            tenant=new.tenant,
            name=name,
            value=value,
            generation_id=new.id,
        )
    await add_usage(tx, new, generations=1)


async def get(tx: Transaction, generation_id: str) -> Generation | None:
    """The generation, whoever's it is; in a writing transaction nobody can change it meanwhile."""
    row = await tx.one("generation_by_id", id=generation_id)
    return generation(row) if row else None


async def change(tx: Transaction, old: Generation, **changes: Any) -> Generation:
    """`old` with `changes`, stored. A status is only ever changed along TRANSITIONS."""
    new = msgspec.structs.replace(old, **changes)
    assert new.status == old.status or old.accepts(new.status)
    values = {name: getattr(new, name) for name in _COLUMNS}
    await tx.run("generation_update", **values)
    if "output" in changes or "error" in changes:
        output = None if new.output is None else text(new.output)
        error = None if new.error is None else text(new.error)
        await tx.run("generation_body_update", id=new.id, output=output, error=error)
    return new


async def to_submit(tx: Transaction, limit: int) -> list[Generation]:
    """Generations whose submission is to be tried again by now, the longest due first."""
    return [generation(r) for r in await tx.all("generations_to_submit", now=tx.now, limit=limit)]


async def to_poll(tx: Transaction, limit: int) -> list[Generation]:
    """Generations to be asked about by now: confirmations of callbacks first."""
    rows = await tx.all("generations_to_confirm", now=tx.now, limit=limit)
    if len(rows) < limit:
        rows += await tx.all("generations_to_poll", now=tx.now, limit=limit - len(rows))
    found = {row["id"]: row for row in rows}
    return [generation(row) for row in found.values()]


async def confirmed(tx: Transaction, generation_id: str, asked_at: int) -> None:
    """Upstream was asked at `asked_at`; a callback that came later waits for a second."""
    await tx.run("confirmation_done", generation_id=generation_id, asked_at=asked_at)
    due_at = asked_at + CONFIRM_INTERVAL_MS
    await tx.run("confirmation_delay", generation_id=generation_id, due_at=due_at)


async def delay_confirmation(tx: Transaction, generation_id: str, due_at: int) -> None:
    """Ask not before `due_at`."""
    await tx.run("confirmation_delay", generation_id=generation_id, due_at=due_at)


async def expired(tx: Transaction, limit: int) -> list[Generation]:
    """Open generations whose deadline has passed."""
    return [generation(r) for r in await tx.all("generations_expired", now=tx.now, limit=limit)]


async def next_submit(tx: Transaction) -> int | None:
    """When the next submission is due."""
    row = await tx.one("generation_next_submit")
    return row["due_at"] if row else None


async def next_poll(tx: Transaction) -> int | None:
    """When the next question after now is due."""
    names = ("generation_next_poll", "confirmation_next")
    rows = [await tx.one(name, now=tx.now) for name in names]
    return min((r["due_at"] for r in rows if r and r["due_at"] is not None), default=None)


async def next_deadline(tx: Transaction) -> int | None:
    """When the next open generation runs out of time."""
    row = await tx.one("generation_next_deadline")
    return row["due_at"] if row else None


async def usage(
    tx: Transaction, tenant: str, since: str, until: str, model: str | None
) -> list[Row]:
    """Counts and credits of a tenant by day and model, the newest day first."""
    return await tx.all("usage_list", tenant=tenant, since=since, until=until, model=model)


async def record(tx: Transaction, exchange: Exchange) -> None:
    """Keep one exchange with upstream, for the timeline."""
    await tx.run("exchange_insert", **msgspec.structs.asdict(exchange))


async def add_usage(tx: Transaction, of: Generation, **counts: int) -> None:
    """Count towards the day and model of the generation's creation."""
    names = ("generations", "succeeded", "failed", "timed_out", "credits")
    row = {name: counts.get(name, 0) for name in names}
    await tx.run(
        "usage_add", tenant=of.tenant, day=rfc3339(of.created_at)[:10], model=of.model, **row
    )


async def exchanges(tx: Transaction, generation_id: str) -> Sequence[Row]:
    """Every exchange with upstream about the generation, in order."""
    return await tx.all("exchanges_of_generation", generation_id=generation_id)


async def delete_past(
    tx: Transaction, after: str, *, before: int, called_back: int, limit: int
) -> tuple[int, str | None]:
    """Look at the next old generations and delete those that have ended and have no events left.

    With them goes all that is stored about them. A generation whose deadline is after
    `called_back` stays: upstream may still repeat its callback. How many went, and the id to go
    on after; None at the end.
    """
    rows = await tx.all(
        "generations_past",
        after=after,
        before=before,
        before_id=first_id("gen", before),
        called_back=called_back,
        limit=limit,
    )
    over = [{"id": row["id"], "tenant": row["tenant"]} for row in rows if row["is_over"]]
    for name in (
        "generation_metadata_delete",
        "generation_body_delete",
        "exchanges_delete",
        "callback_bodies_of_delete",
        "callbacks_of_delete",
        "generation_delete",
    ):
        await tx.many(name, over)
    return len(over), rows[-1]["id"] if len(rows) == limit else None
