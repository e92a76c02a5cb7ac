"""Generations: their rows, due submissions and polls, exchanges with upstream, and usage."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from service.model.clock import SECOND, rfc3339
from service.model.generation import TERMINAL, Generation
from service.model.ids import first_id
from service.store import pages
from service.store.database import Row, Transaction
from service.store.rows import (
    decode_row,
    decode_rows,
    encode_json,
    encode_row,
    json_text,
    read_all,
    read_number,
)

CONFIRM_INTERVAL_MS = SECOND
# The UPDATEs with the columns that each sets, the fewest first: SQLite writes the index of every
# column that an UPDATE sets, even to the same value.
_PLAN = ("next_poll_at", "poll_count", "trouble_count", "late_poll_count", "last_poll_at")
_STATUS = (*_PLAN, "status", "credits", "completed_at", "submit_at", "event_ids")
_COLUMNS = (*_STATUS, "task_id", "submitted_at", "submission", "submit_count")
_UPDATES = {
    frozenset(_PLAN): "generation_update_plan",
    frozenset(_STATUS): "generation_update_status",
    frozenset(_COLUMNS): "generation_update",
}
_TIMELINE = (
    *("exchanges_of_generation", "callbacks_of_generation"),
    *("events_of_generation", "attempts_of_generation"),
)
SHARERS_LOCKED_MAX = 20  # Sharers of a task that one batch of polls may end.
SHARERS_READ_MAX = 50  # Sharers read beside a polled generation: its answer counts for all.
Work = Literal["submit", "confirm", "poll", "expire"]
# Of a kind, for each generation. The timeline shows the first 1,000 of both kinds.
EXCHANGES_MAX = 1_000
OVERDUE_SEARCHED_MAX = 1_000  # Of a tenant's longest due polls, searched for overdue ones.
# The statements that list due generations, and those that tell when the next one is due.
_DUE: dict[Work, str] = {
    "submit": "generations_to_submit",
    "confirm": "generations_to_confirm",
    "poll": "generations_to_poll",
    "expire": "generations_to_expire",
}
# Who polls waits for both, polls and confirmations, so "confirm" has no time of its own.
_NEXT_DUE: dict[Work, Sequence[str]] = {
    "submit": ["generation_next_submit"],
    "poll": ["generation_next_poll", "confirmation_next"],
    "expire": ["generation_next_deadline"],
}


class Choice(msgspec.Struct, frozen=True):
    """Which due generations are read: up to `limit`, without those that get no place now."""

    limit: int
    tenants: Sequence[str] = ()
    without: Sequence[str] = ()
    apart: Sequence[str] = ()  # This and `full` are the lists of `places.full_models`.
    full: Sequence[str] = ()
    # Filled by the read: the errors of rows that cannot be decoded, as after damage or from a later
    # version of genhook, by id. They are not returned.
    unreadable: dict[str, Exception] = msgspec.field(default_factory=dict)
    shared: list[str] = msgspec.field(default_factory=list)  # Filled, too: ids that share a task.


class Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """One submission or poll with its answer, as the timeline shows it."""

    generation_id: str
    kind: str  # `submission` or `poll`.
    number: int = 0  # Of the generation's exchanges of this kind; set when it is stored.
    at: int  # When it began, milliseconds since the epoch.
    duration_ms: int
    status_code: int | None
    outcome: str
    detail: str | None  # Upstream's status word or message, without secrets.


async def insert(tx: Transaction, new: Generation) -> None:
    """Store a new generation with its input and metadata, and count it in the usage."""
    row = encode_row(new)
    await tx.run("generation_insert", **row)
    await tx.run("generation_body_insert", **row)
    metadata = [
        {"tenant": new.tenant, "name": name, "value": value, "generation_id": new.id}
        for name, value in new.metadata.items()
    ]
    await tx.many("generation_metadata_insert", metadata)
    await add_usage(tx, usage_of(new))


async def lock_many(tx: Transaction, ids: Collection[str]) -> dict[str, Generation]:
    """Lock the generations and return them by id; ids without a generation are left out."""
    rows = await tx.lock("generations_by_id", ids=json_text(sorted(set(ids))))
    return {generation.id: generation for generation in decode_rows(Generation, rows)}


async def lock_with_sharers(tx: Transaction, ids: Collection[str]) -> dict[str, Generation]:
    """Lock the generations and return them by id, with those that share a task with one of them.

    These are SHARERS_LOCKED_MAX at most, without a final outcome. An input may have a megabyte, so
    this is only for generations of which some may have ended.
    """
    values = {"ids": json_text(sorted(set(ids))), "shared_max": SHARERS_LOCKED_MAX}
    rows = await tx.lock("generations_of_polls", **values)
    return {generation.id: generation for generation in decode_rows(Generation, rows)}


async def update(tx: Transaction, changes: Iterable[tuple[Generation, Generation]]) -> None:
    """Store changed generations, each as (before, after); they were locked in order of their ids.

    The caller writes their confirmations after this call, so that all transactions write in one
    order, and no two wait for each other.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    bodies: list[dict[str, Any]] = []
    for before, after in changes:
        assert after.id in tx.locked, "a generation is changed that is not locked"
        row = {name: getattr(after, name) for name in _COLUMNS}
        changed = {name for name, value in row.items() if value != getattr(before, name)}
        if changed:
            row |= {"id": after.id, "event_ids": json_text(after.event_ids)}
            rows.setdefault(_UPDATES[next(filter(changed.issubset, _UPDATES))], []).append(row)
        if after.output != before.output or after.error != before.error:
            body = {"id": after.id, "output": after.output, "error": after.error}
            bodies.append(encode_json(body))
    for statement, group in rows.items():
        await tx.many(statement, group)
    await tx.many("generation_body_update", bodies)


async def list_due(
    tx: Transaction, work: Work, choice: Choice, after: str = ""
) -> list[Generation]:
    """Return generations that are due for `work`, in turn by tenant, those after `after` first.

    Polls of generations past their deadline come before a tenant's others. "expire" has those past
    it without a planned poll or confirmation, the longest overdue first.
    """
    lists = ("tenants", "without", "apart", "full")
    values: dict[str, Any] = {name: json_text(getattr(choice, name)) for name in lists}
    values |= {"now": tx.now, "limit": choice.limit, "after": after}
    values["searched"] = OVERDUE_SEARCHED_MAX
    due: list[Generation] = []
    for row in await tx.all(_DUE[work], **values):
        try:
            due.append(decode_row(Generation, row))
            if dict(row).get("is_shared"):
                choice.shared.append(row["id"])
        except Exception as error:  # noqa: BLE001  one row must not hold the others
            choice.unreadable[row["id"]] = error
    return due


async def list_sharers(tx: Transaction, choice: Choice) -> list[Generation]:
    """Return open generations that share a task with `choice.shared`, due or not.

    They are read without their bodies: each may have an input of a megabyte.
    """
    values = {"ids": json_text(choice.shared), "without": json_text(choice.without)}
    limit = SHARERS_READ_MAX * len(choice.shared)
    return await read_all(tx, Generation, "generations_of_shared", limit=limit, **values)


async def next_due(
    tx: Transaction, work: Work, tenants: Sequence[str] = (), without: Sequence[str] = ()
) -> int | None:
    """Return when the next generation is due for `work`; of polls, only those due after now.

    A poll that is due by now is under way, or waits for the end of one that is.
    Submissions of `tenants` are left out, since they get no place. So are submissions and deadlines
    of the generations `without`.
    """
    values = {"now": tx.now, "tenants": json_text(tenants), "without": json_text(without)}
    values["after"] = ""  # All tenants are read, so the turn does not matter.
    due_times = [await read_number(tx, name, **values) for name in _NEXT_DUE[work]]
    return min((at for at in due_times if at is not None), default=None)


async def put_pause(tx: Transaction, until: int, latest: int) -> None:
    """Store until when upstream asked for no requests; a stored time after `latest` is wrong."""
    await tx.run("pause_put", until=until, latest=latest)


async def get_pause(tx: Transaction) -> int:
    """Return until when upstream asked for no requests, in milliseconds since the epoch, or 0."""
    return await read_number(tx, "pause_get") or 0


async def delete_confirmations(tx: Transaction, ids: Collection[str]) -> None:
    """Delete the planned confirmations of these generations."""
    if ids:
        await tx.run("confirmations_delete", ids=json_text(sorted(ids)))


async def confirmations_of(tx: Transaction, ids: Collection[str]) -> dict[str, int]:
    """Return when the planned confirmations of these generations are due, by id."""
    planned = await tx.all("confirmations_of", ids=json_text(sorted(ids)))
    return {row["generation_id"]: row["due_at"] for row in planned}


def confirm_at(now: int, last_poll_at: int | None) -> int:
    """Return when a confirmation is due: at most one poll a second for each generation."""
    return max(now, (last_poll_at or 0) + CONFIRM_INTERVAL_MS)


async def plan_confirmations(tx: Transaction, due_times: Mapping[str, int]) -> None:
    """Plan the confirmations of these generations, as {generation id: due time}."""
    rows = [{"generation_id": id_, "due_at": due_at} for id_, due_at in due_times.items()]
    await tx.many("confirmations_put", rows)


async def delay_confirmation(tx: Transaction, generation_id: str, due_at: int) -> None:
    """Delay the generation's confirmation until `due_at`, if one is planned for earlier."""
    await tx.run("confirmation_delay", id=generation_id, due_at=due_at)


async def confirm_submissions(tx: Transaction) -> None:
    """Make the confirmations due now that wait for the answer to a submission."""
    await tx.run("confirmations_of_submissions", now=tx.now)


async def record_exchanges(tx: Transaction, exchanges: Iterable[Exchange]) -> None:
    """Store exchanges with upstream, for the timeline."""
    shown = [exchange for exchange in exchanges if exchange.number <= EXCHANGES_MAX]
    await tx.many("exchange_insert", map(msgspec.structs.asdict, shown))


async def latest_exchanges(tx: Transaction, ids: Collection[str]) -> dict[str, Exchange]:
    """Return the latest exchange of each of the generations that has one."""
    if not ids:
        return {}
    rows = await tx.all("exchanges_latest", ids=json_text(sorted(ids)))
    return {row["generation_id"]: Exchange(**row) for row in rows}


async def latest_poll_outcomes(tx: Transaction, id_: str, limit: int) -> list[str]:
    """Return the outcomes of the generation's latest polls, at most `limit`."""
    return [row["outcome"] for row in await tx.all("polls_latest", id=id_, limit=limit)]


async def list_ended(tx: Transaction, ids: Collection[str]) -> list[str]:
    """Return the ids of those generations that have ended."""
    rows = await tx.all("generations_ended", ids=json_text(sorted(ids)))
    return [row["id"] for row in rows]


async def timeline(tx: Transaction, generation: Generation) -> list[list[Row]]:
    """Return the generation's exchanges with upstream, callbacks, events and attempts, in order."""
    values = {"tenant": generation.tenant, "generation_id": generation.id}
    return [await tx.all(name, **values) for name in _TIMELINE]


def usage_of(generation: Generation) -> dict[tuple[str, str, str, str], int]:
    """Return the usage of a generation that is new or has just ended, for `add_usage`."""
    key = generation.tenant, rfc3339(generation.created_at)[:10], generation.model
    column = generation.status if generation.is_terminal else "generations"
    return {(*key, column): 1, (*key, "credits"): generation.credits or 0}


async def add_usage(tx: Transaction, counts: Mapping[tuple[str, str, str, str], int]) -> None:
    """Add counts to the usage, keyed by (tenant, day of creation, model, column)."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for (tenant, day, model, column), count in counts.items():
        row = rows.setdefault((tenant, day, model), {"tenant": tenant, "day": day, "model": model})
        row[column] = count
    unused = dict.fromkeys(("generations", *TERMINAL, "credits"), 0)
    await tx.many("usage_add", [unused | row for row in rows.values()])


async def usage(
    tx: Transaction, tenant: str, since: str, until: str, model: str | None
) -> list[Row]:
    """Return a tenant's counts and credits by day and model, the newest day first."""
    return await tx.all("usage_list", tenant=tenant, since=since, until=until, model=model)


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which generations a list shows; times are exclusive bounds in milliseconds."""

    status: str | None = None
    model: str | None = None
    created_after: int | None = None
    created_before: int | None = None
    metadata: Mapping[str, str] = {}


_BODIES = "{ordered} JOIN generation_bodies b ON b.generation_id = g.id"
_HAS_METADATA = (
    "EXISTS (SELECT 1 FROM generation_metadata o WHERE o.tenant = :tenant "
    "AND o.name = :name{0} AND o.value = :value{0} AND o.generation_id = g.id)"
)


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
    table, joins, key = "generations g {index generations_tenant}", _BODIES, "g.id"
    where = ["g.tenant = :tenant"]
    filters = ["g.status = :status"] if only.status else []
    if only.metadata:
        table, key = "generation_metadata m", "m.generation_id"
        joins = f"{{ordered}} JOIN generations g ON g.id = m.generation_id {_BODIES}"
        where = ["m.tenant = :tenant", "m.name = :name0", "m.value = :value0"]
        filters += ["g.model = :model"] if only.model else []
        filters += [_HAS_METADATA.format(number) for number in range(1, len(only.metadata))]
    elif only.model:
        table = "generations g {index generations_model}"
        where.append("g.model = :model")
    elif only.status in ("failed", "timed_out", "canceled"):
        table = "generations g {index generations_failed}"
        # The second condition is that of the partial index.
        where += [*filters, "g.status IN ('failed', 'timed_out', 'canceled')"]
        filters = []
    columns = "g.*, b.input, b.metadata, b.output, b.error"
    return pages.Source(
        table=table, where=where, joins=joins, filters=filters, columns=columns, key=key
    )
