"""Generations: their rows, due submissions and polls, exchanges with upstream, and usage."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from service.model.clock import SECOND, rfc3339
from service.model.generation import Generation
from service.model.ids import first_id, time_of
from service.store import pages
from service.store.database import Row, Transaction
from service.store.rows import convert, json_text

CONFIRM_INTERVAL_MS = SECOND
_JSON = frozenset({"input", "metadata", "output", "error", "event_ids"})
# The columns of generation_update_plan, and those that generation_update_status adds.
_PLAN = ("next_poll_at", "poll_count", "trouble_count", "late_poll_count", "last_poll_at")
_STATUS = (*_PLAN, "status", "credits", "completed_at", "submit_at", "event_ids")
_COLUMNS = (*_STATUS, "task_id", "submitted_at", "submission", "submit_count")


def from_row(row: Row) -> Generation:
    """Return the generation in a row of `generation_by_id` and similar statements."""
    return convert(Generation, {**row, "created_at": time_of(row["id"])}, json=_JSON)


class Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """One submission or poll with its answer, as the timeline shows it.

    Attributes:
        kind: `submission` or `poll`.
        number: counts the generation's exchanges of this kind; set when the exchange is stored.
        at: when it began, milliseconds since the epoch.
        detail: upstream's status word or message, without secrets.

    """

    generation_id: str
    kind: str
    number: int = 0
    at: int
    duration_ms: int
    status_code: int | None
    outcome: str
    detail: str | None


async def insert(tx: Transaction, new: Generation) -> None:
    """Store a new generation with its input and metadata, and count it in the usage."""
    row = msgspec.structs.asdict(new)
    row["input"], row["metadata"] = json_text(new.input), json_text(new.metadata)
    await tx.run("generation_insert", **row)
    await tx.run("generation_body_insert", id=new.id, input=row["input"], metadata=row["metadata"])
    metadata = [
        {"tenant": new.tenant, "name": name, "value": value, "generation_id": new.id}
        for name, value in new.metadata.items()
    ]
    await tx.many("generation_metadata_insert", metadata)
    await add_usage(tx, {(*_usage_key(new), "generations"): 1})


async def get(tx: Transaction, generation_id: str) -> Generation | None:
    """Return the generation, of any tenant."""
    row = await tx.one("generation_by_id", id=generation_id)
    return from_row(row) if row else None


async def get_many(tx: Transaction, ids: Collection[str]) -> dict[str, Generation]:
    """Return the generations by id; ids without a generation are left out."""
    rows = await tx.all("generations_by_id", ids=json_text(sorted(set(ids))))
    return {row["id"]: from_row(row) for row in rows}


async def update(tx: Transaction, changes: Iterable[tuple[Generation, Generation]]) -> None:
    """Store changed generations, each as (before, after)."""
    groups: dict[str, list[dict[str, Any]]] = {}
    bodies: list[dict[str, Any]] = []
    for before, after in changes:
        row = {name: getattr(after, name) for name in _COLUMNS}
        changed = {name for name, value in row.items() if value != getattr(before, name)}
        if changed:
            statement = _update_statement(changed)
            row |= {"id": after.id, "event_ids": json_text(after.event_ids)}
            groups.setdefault(statement, []).append(row)
        if after.output != before.output or after.error != before.error:
            output, error = _json_or_none(after.output), _json_or_none(after.error)
            bodies.append({"id": after.id, "output": output, "error": error})
    for statement, rows in groups.items():
        await tx.many(statement, rows)
    await tx.many("generation_body_update", bodies)


def _update_statement(changed: set[str]) -> str:
    """Return the UPDATE with the fewest columns that include all changed ones.

    SQLite writes the index of every column that an UPDATE sets, even to the same value.
    """
    if changed.issubset(_PLAN):
        return "generation_update_plan"
    return "generation_update_status" if changed.issubset(_STATUS) else "generation_update"


def _json_or_none(value: object) -> str | None:
    return None if value is None else json_text(value)


async def to_submit(tx: Transaction, limit: int) -> list[Generation]:
    """Return generations that are due to be submitted again, the longest due first."""
    rows = await tx.all("generations_to_submit", now=tx.now, limit=limit)
    return [from_row(row) for row in rows]


async def to_poll(tx: Transaction, limit: int) -> list[Generation]:
    """Return generations that are due for a confirmation or a poll, confirmations first."""
    rows = await tx.all("generations_to_confirm", now=tx.now, limit=limit)
    if len(rows) < limit:
        rows += await tx.all("generations_to_poll", now=tx.now, limit=limit - len(rows))
    by_id = {row["id"]: row for row in rows}
    return [from_row(row) for row in by_id.values()]


async def _confirmation_due_times(tx: Transaction, ids: Collection[str]) -> dict[str, int]:
    """Return the due times of planned confirmations by generation id; most have none."""
    rows = await tx.all("confirmations_of", ids=json_text(sorted(set(ids))))
    return {row["generation_id"]: row["due_at"] for row in rows}


async def plan_confirmations(tx: Transaction, due_times: Iterable[tuple[str, int]]) -> None:
    """Plan confirmations, each as (generation id, due time)."""
    rows = [{"generation_id": id_, "due_at": due_at} for id_, due_at in due_times]
    await tx.many("confirmations_put", rows)


async def delete_confirmations(tx: Transaction, ids: Collection[str]) -> None:
    """Delete the planned confirmations of these generations."""
    await tx.run("confirmations_delete", ids=json_text(sorted(ids)))


async def complete_confirmations(tx: Transaction, polled_at: Mapping[str, int]) -> None:
    """Delete the confirmations that polls have answered, as {generation id: time of poll}.

    A confirmation that was due only after the poll stays: the poll may be older than its callback.
    It is due CONFIRM_INTERVAL_MS after the poll at the earliest.
    """
    due_times = await _confirmation_due_times(tx, polled_at)
    if not due_times:
        return
    later = {id_: due_at for id_, due_at in due_times.items() if due_at > polled_at[id_]}
    await delete_confirmations(tx, due_times.keys() - later.keys())
    await plan_confirmations(
        tx, [(id_, max(due, polled_at[id_] + CONFIRM_INTERVAL_MS)) for id_, due in later.items()]
    )


async def delay_confirmation(tx: Transaction, generation_id: str, due_at: int) -> None:
    """Delay the generation's confirmation until `due_at`, if one is planned for earlier."""
    planned_at = (await _confirmation_due_times(tx, [generation_id])).get(generation_id)
    if planned_at is not None and planned_at < due_at:
        await plan_confirmations(tx, [(generation_id, due_at)])


async def to_expire(tx: Transaction, limit: int) -> list[Generation]:
    """Return open generations without a planned poll whose deadline has passed."""
    rows = await tx.all("generations_to_expire", now=tx.now, limit=limit)
    return [from_row(row) for row in rows]


async def next_submit(tx: Transaction) -> int | None:
    """Return when the next submission is due."""
    row = await tx.one("generation_next_submit")
    return row["due_at"] if row else None


async def next_poll(tx: Transaction) -> int | None:
    """Return when the next poll or confirmation after now is due."""
    names = ("generation_next_poll", "confirmation_next")
    rows = [await tx.one(name, now=tx.now) for name in names]
    return min((r["due_at"] for r in rows if r and r["due_at"] is not None), default=None)


async def next_deadline(tx: Transaction) -> int | None:
    """Return when the next open generation without a planned poll reaches its deadline."""
    row = await tx.one("generation_next_deadline")
    return row["due_at"] if row else None


async def another_has_task(tx: Transaction, task_id: str, generation_id: str) -> bool:
    """Return whether another generation than this one has the task."""
    return await tx.one("generation_by_task", task_id=task_id, id=generation_id) is not None


async def record_exchanges(tx: Transaction, exchanges: Iterable[Exchange]) -> None:
    """Store exchanges with upstream, for the timeline."""
    await tx.many("exchange_insert", [msgspec.structs.asdict(exchange) for exchange in exchanges])


async def exchanges(tx: Transaction, generation_id: str) -> Sequence[Row]:
    """Return every exchange with upstream about the generation, in order."""
    return await tx.all("exchanges_of_generation", generation_id=generation_id)


def _usage_key(generation: Generation) -> tuple[str, str, str]:
    """Return tenant, day of creation and model, by which usage is counted."""
    return generation.tenant, rfc3339(generation.created_at)[:10], generation.model


def usage_of(ended: Generation) -> Counter[tuple[str, str, str, str]]:
    """Return the usage of a generation that has just ended, for `add_usage`."""
    key = _usage_key(ended)
    return Counter({(*key, ended.status): 1, (*key, "credits"): ended.credits or 0})


async def add_usage(tx: Transaction, counts: dict[tuple[str, str, str, str], int]) -> None:
    """Add counts to the usage, keyed by (tenant, day, model, column)."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for (tenant, day, model, column), count in counts.items():
        row = rows.setdefault((tenant, day, model), {"tenant": tenant, "day": day, "model": model})
        row[column] = count
    columns = ("generations", "succeeded", "failed", "timed_out", "credits")
    await tx.many("usage_add", [{**dict.fromkeys(columns, 0), **row} for row in rows.values()])


async def usage(
    tx: Transaction, tenant: str, since: str, until: str, model: str | None
) -> list[Row]:
    """Return a tenant's counts and credits by day and model, the newest day first."""
    return await tx.all("usage_list", tenant=tenant, since=since, until=until, model=model)


async def delete_old(
    tx: Transaction, after: str, *, before: int, deadline_before: int, limit: int
) -> tuple[int, str | None]:
    """Delete ended generations among the next `limit` old ones, once their events are deleted.

    Everything stored about them is deleted too. A generation stays until its deadline is before
    `deadline_before`: upstream may still repeat its callback. Returns how many were deleted, and
    the id to continue after, None at the end.
    """
    rows = await tx.all(
        "generations_old",
        after=after,
        before=before,
        before_id=first_id("gen", before),
        deadline_before=deadline_before,
        limit=limit,
    )
    deletable = [{"id": row["id"], "tenant": row["tenant"]} for row in rows if row["is_deletable"]]
    for name in (
        "generation_metadata_delete",
        "generation_body_delete",
        "exchanges_delete",
        "callbacks_of_generation_delete",
        "callback_bodies_of_generation_delete",
        "generation_delete",
    ):
        await tx.many(name, deletable)
    return len(deletable), rows[-1]["id"] if len(rows) == limit else None


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which generations a list shows; times are exclusive bounds in milliseconds."""

    status: str | None = None
    model: str | None = None
    created_after: int | None = None
    created_before: int | None = None
    metadata: Mapping[str, str] = {}


_BODIES = "CROSS JOIN generation_bodies b ON b.generation_id = g.id"
_WITH_BODIES = "g.*, b.input, b.metadata, b.output, b.error"


async def list_page(tx: Transaction, page: pages.Page, tenant: str, only: Filter) -> pages.Rows:
    """Return a page of a tenant's generations."""
    values: dict[str, Any] = {"tenant": tenant, "status": only.status, "model": only.model}
    for number, (name, value) in enumerate(only.metadata.items()):
        values |= {f"name{number}": name, f"value{number}": value}
    lower = None if only.created_after is None else first_id("gen", only.created_after + 1)
    upper = None if only.created_before is None else first_id("gen", only.created_before)
    begin, end, further = (lower, upper, max) if page.ascending else (upper, lower, min)
    after = further((bound for bound in (begin, page.after) if bound is not None), default=None)
    return await pages.read(tx, _source(only), replace(page, after=after, until=end), values)


def _source(only: Filter) -> pages.Source:
    """Return the source with the index of the most selective filter: metadata, model or status."""
    status = ["g.status = :status"] if only.status else []
    if only.metadata:
        model = ["g.model = :model"] if only.model else []
        others = [_has_metadata(number) for number in range(1, len(only.metadata))]
        return pages.Source(
            table="generation_metadata m",
            where=["m.tenant = :tenant", "m.name = :name0", "m.value = :value0"],
            joins=f"CROSS JOIN generations g ON g.id = m.generation_id {_BODIES}",
            filters=[*status, *model, *others],
            columns=_WITH_BODIES,
            key="m.generation_id",
        )
    index, where = "generations_tenant", ["g.tenant = :tenant"]
    if only.model:
        index, where = "generations_model", [*where, "g.model = :model"]
    elif only.status in ("failed", "timed_out"):
        index, status = "generations_failed", []
        # The second condition is that of the partial index.
        where += ["g.status = :status", "g.status IN ('failed', 'timed_out')"]
    return pages.Source(
        table=f"generations g INDEXED BY {index}",
        where=where,
        joins=_BODIES,
        filters=status,
        columns=_WITH_BODIES,
        key="g.id",
    )


def _has_metadata(number: int) -> str:
    return (
        "EXISTS (SELECT 1 FROM generation_metadata o WHERE o.tenant = :tenant "  # noqa: S608
        f"AND o.name = :name{number} AND o.value = :value{number} AND o.generation_id = g.id)"
    )
