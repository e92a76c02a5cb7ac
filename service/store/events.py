"""Events: immutable. The JSON body is encoded once; these bytes are stored, signed and sent."""

from collections.abc import Sequence
from typing import Any

import msgspec

from service.model.clock import rfc3339
from service.model.event import Event
from service.model.ids import new_id, time_of
from service.store import pages, rows
from service.store.database import Transaction
from service.store.writes import Database


def new_event(
    tenant: str,
    type_: str,
    data: dict[str, Any],
    generation_id: str | None,
    now: int,
    *,
    id_: str | None = None,
) -> Event:
    """Return a new event with `data`, not stored yet; its id is `id_`, or a new one."""
    event_id = id_ or new_id("evt", now)
    return Event(
        id=event_id,
        tenant=tenant,
        type=type_,
        generation_id=generation_id,
        created_at=time_of(event_id),
        body=rows.encode({"id": event_id, "type": type_, "timestamp": rfc3339(now), "data": data}),
    )


async def insert(tx: Transaction, events: Sequence[Event]) -> None:
    """Store new events in this order."""
    await tx.many("event_insert", [msgspec.structs.asdict(event) for event in events])


# The seq of the event; once retention has deleted it, the seq of the last event before it that has
# one. The ids of two processes may be out of commit order, so comparing ids would skip events.
_SEQ_OF_CURSOR = (
    "coalesce((SELECT seq FROM events WHERE id = :after), (SELECT seq FROM events "
    "WHERE id < :after AND seq IS NOT NULL ORDER BY id DESC LIMIT 1), 0)"
)


async def read_page(
    database: Database,
    page: pages.Page,
    tenant: str,
    type_: str | None = None,
    generation_id: str | None = None,
) -> pages.Rows:
    """Return a page of a tenant's events in commit order, of one type or generation if not None."""
    await database.order_events()
    return await database.search(tenant, list_page, page, tenant, type_, generation_id)


async def list_page(
    tx: Transaction, page: pages.Page, tenant: str, type_: str | None, generation_id: str | None
) -> pages.Rows:
    """Return a page of the events that have a `seq`."""
    table, where, filters = "events e {index events_tenant}", ["e.tenant = :tenant"], []
    # Events that were committed after `order_events` have no seq yet: a reader that continued after
    # one of them could skip an event that is committed later, and gets an earlier seq.
    has_seq = "e.seq IS NOT NULL"
    if generation_id is not None:
        ids = "SELECT value FROM generations g, {rows}(g.event_ids) WHERE g.id = :generation_id"
        # SQLite would read all events of the tenant instead of these few.
        table, where = "events e", [f"e.id IN ({ids})"]
        filters = ["{unindexed e.tenant} = :tenant"]
    if type_ is not None:
        filters.append("e.type = :type")
    source = pages.Source(
        table=table,
        where=[*where, has_seq],
        filters=filters,
        key="e.seq",
        id="e.id",
        cursor=_SEQ_OF_CURSOR,
    )
    values = {"tenant": tenant, "type": type_, "generation_id": generation_id}
    return await pages.read(tx, source, page, values)
