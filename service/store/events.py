"""Events: immutable facts, encoded once; those bytes are stored, signed and sent to all."""

from typing import Any

from service.model.clock import rfc3339
from service.model.event import Event
from service.model.ids import first_id, new_id
from service.store.database import Row, Transaction
from service.store.rows import encode, noun


def event(row: Row) -> Event:
    """The event in a row."""
    return noun(Event, row)


async def insert(
    tx: Transaction, tenant: str, type_: str, data: dict[str, Any], generation_id: str | None
) -> Event:
    """Store a new event about `data`, timestamped with the transaction's time."""
    event_id = new_id("evt", tx.now)
    body = encode({"id": event_id, "type": type_, "timestamp": rfc3339(tx.now), "data": data})
    await tx.run(
        "event_insert",
        id=event_id,
        tenant=tenant,
        type=type_,
        generation_id=generation_id,
        created_at=tx.now,
        body=body,
    )
    return Event(
        seq=0,
        id=event_id,
        tenant=tenant,
        type=type_,
        generation_id=generation_id,
        created_at=tx.now,
        body=body,
    )


async def get(tx: Transaction, tenant: str, event_id: str) -> Event | None:
    """The event, if it is the tenant's."""
    row = await tx.one("event_by_id", tenant=tenant, id=event_id)
    return event(row) if row else None


async def of_generation(tx: Transaction, generation_id: str) -> list[Row]:
    """The generation's events in order, without their bodies."""
    return await tx.all("events_of_generation", generation_id=generation_id)


async def delete_past(
    tx: Transaction, after: str, *, before: int, limit: int
) -> tuple[int, str | None]:
    """Look at the next old events and delete those of which no delivery is left.

    How many went, and the id to go on after; None at the end.
    """
    rows = await tx.all("events_past", after=after, before_id=first_id("evt", before), limit=limit)
    over = [{"id": row["id"]} for row in rows if row["is_over"]]
    await tx.many("event_delete", over)
    return len(over), rows[-1]["id"] if len(rows) == limit else None
