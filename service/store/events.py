"""Events: immutable facts, encoded once; those bytes are stored, signed and sent to all."""

from collections.abc import Sequence
from typing import Any

import msgspec

from service.model.clock import rfc3339
from service.model.event import Event
from service.model.ids import first_id, new_id, time_of
from service.store import pages
from service.store.database import Row, Transaction
from service.store.rows import encode, noun


def event(row: Row) -> Event:
    """Return the event in a row."""
    return noun(Event, {**row, "created_at": time_of(row["id"])})


def new_event(
    tenant: str, type_: str, data: dict[str, Any], generation_id: str | None, now: int
) -> Event:
    """Return a new event about `data`, not stored yet."""
    event_id = new_id("evt", now)
    body = encode({"id": event_id, "type": type_, "timestamp": rfc3339(now), "data": data})
    return Event(
        id=event_id,
        tenant=tenant,
        type=type_,
        generation_id=generation_id,
        created_at=time_of(event_id),
        body=body,
    )


async def insert(tx: Transaction, events: Sequence[Event]) -> None:
    """Store new events, in their order."""
    await tx.many("event_insert", [msgspec.structs.asdict(one) for one in events])


async def get(tx: Transaction, tenant: str, event_id: str) -> Event | None:
    """Return the event, if it is the tenant's."""
    row = await tx.one("event_by_id", tenant=tenant, id=event_id)
    return event(row) if row else None


async def of_generation(tx: Transaction, generation_id: str) -> list[Row]:
    """Return id and type of the generation's events, in order."""
    return await tx.all("events_of_generation", generation_id=generation_id)


async def delete_past(
    tx: Transaction, after: str, *, before: int, limit: int
) -> tuple[int, str | None]:
    """Delete the next batch of old events, once no delivery of them is left.

    Returns how many were deleted, and the id to go on after, None at the end.
    """
    rows = await tx.all("events_past", after=after, before_id=first_id("evt", before), limit=limit)
    over = [{"id": row["id"]} for row in rows if row["is_over"]]
    await tx.many("event_delete", over)
    return len(over), rows[-1]["id"] if len(rows) == limit else None


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which events a list shows."""

    type: str | None = None
    generation_id: str | None = None


# The place of the event itself; once retention has deleted it, the place of the one before it. Ids
# of two processes may be out of step with the order of commits: `id <= :after` would skip events.
_PLACE = (
    "coalesce((SELECT seq FROM events WHERE id = :after), "
    "(SELECT seq FROM events WHERE id < :after ORDER BY id DESC LIMIT 1), 0)"
)


async def page(tx: Transaction, page: pages.Page, tenant: str, only: Filter) -> pages.Rows:
    """Return a page of a tenant's events, in the order of their commits."""
    table, where, filters = "events e INDEXED BY events_tenant", ["e.tenant = :tenant"], []
    if only.generation_id is not None:
        ids = "SELECT value FROM generations g, json_each(g.event_ids) WHERE g.id = :generation_id"
        table, where, filters = "events e", [f"e.id IN ({ids})"], where
    if only.type is not None:
        filters.append("e.type = :type")
    source = pages.Source(
        table=table,
        where=where,
        filters=filters,
        columns="e.*",
        key="e.seq",
        id="e.id",
        cursor=_PLACE,
    )
    values = {**msgspec.structs.asdict(only), "tenant": tenant}
    return await pages.read(tx, source, page, values)
