"""Deliveries are the queue: due rows by lane, outcomes recorded in groups."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from service.model.attempt import Attempt
from service.model.delivery import Delivery, Due
from service.model.event import Event
from service.model.ids import first_id, new_id, time_of
from service.model.subscriber import Subscriber
from service.store import pages, stats
from service.store.database import Row, Transaction
from service.store.rows import noun, text

CANCEL_BATCH = 500
FETCH_BYTES = 8 * 1024 * 1024


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt and the state in which it leaves its delivery."""

    tenant: str
    subscriber_id: str
    generation_id: str | None
    ordered: bool
    status: str
    due_at: int | None
    delivered_at: int | None
    last_error: str | None
    attempt: Attempt


def new_due(event: Event, subscriber: Subscriber, now: int, trigger: str) -> Due:
    """A new delivery of `event` for `subscriber`, not stored yet."""
    return Due(
        tenant=event.tenant,
        id=new_id("dlv", now),
        subscriber_id=subscriber.id,
        event_id=event.id,
        event_type=event.type,
        generation_id=event.generation_id,
        attempt_count=0,
        trigger=trigger,
        ordered=subscriber.ordered,
        body=event.body,
    )


async def insert(tx: Transaction, targets: Sequence[tuple[Event, Subscriber, int]]) -> list[Due]:
    """Store a delivery for each (event, subscriber, due time); return those due now."""
    new = [
        (new_due(event, subscriber, tx.now, "scheduled"), due_at)
        for event, subscriber, due_at in targets
    ]
    rows = [{**msgspec.structs.asdict(due), "due_at": due_at} for due, due_at in new]
    await tx.many("deliveries_insert", rows)
    return [due for due, due_at in new if due_at <= tx.now]


async def insert_ended(tx: Transaction, due: Due, recorded: Recorded) -> None:
    """Store a delivery that was tried once and is over, as a test is."""
    await tx.many("deliveries_insert", [{**msgspec.structs.asdict(due), "due_at": tx.now}])
    await record(tx, [recorded])


async def retry(tx: Transaction, delivery: Delivery) -> None:
    """Make a pending or dead delivery due now, for one more attempt."""
    await tx.run("delivery_retry", tenant=delivery.tenant, id=delivery.id, now=tx.now)


async def cancel(tx: Transaction, subscriber_id: str, limit: int) -> int:
    """Cancel pending deliveries to a subscriber, at most `limit`; return how many."""
    return await tx.run("deliveries_cancel", subscriber_id=subscriber_id, limit=limit)


async def insert_replayed(tx: Transaction, due: Due, replay_id: str) -> None:
    """Store a delivery that a replay makes, due now."""
    row = {**msgspec.structs.asdict(due), "replay_id": replay_id, "due_at": tx.now}
    await tx.many("replay_deliveries_insert", [row])


async def cancel_replayed(tx: Transaction, replay_id: str, limit: int) -> int:
    """Cancel pending deliveries of a replay, at most `limit`; return how many."""
    return await tx.run("replay_deliveries_cancel", id=replay_id, limit=limit)


class Waiting(msgspec.Struct, frozen=True):
    """When the earliest first attempt and the earliest retry of a subscriber are due."""

    first_at: int | None
    retry_at: int | None


async def lanes(tx: Transaction) -> dict[str, Waiting]:
    """What waits for each subscriber that is owed something."""
    rows = await tx.all("deliveries_lanes")
    return {row["subscriber_id"]: Waiting(row["first_at"], row["retry_at"]) for row in rows}


class Fetched(msgspec.Struct, frozen=True):
    """Due deliveries of one kind; `more` of them are due, or the next is at `next_at`."""

    due: list[Due]
    more: bool
    next_at: int | None


async def due(
    tx: Transaction,
    subscriber_id: str,
    limit: int,
    retries: bool,  # noqa: FBT001  a unit's arguments have no names
    ordered: bool,  # noqa: FBT001  the same
    known: frozenset[str],
) -> Fetched:
    """What is due for one subscriber, the longest due first: first attempts or `retries`.

    At most `limit` that are not `known`, and no more than FETCH_BYTES of bodies. Where the
    subscriber is `ordered`, what waits for an earlier event of its generation is left out.
    """
    name = "deliveries_due_ordered" if ordered else "deliveries_due"
    lane = {"subscriber_id": subscriber_id, "retries": retries, "now": tx.now}
    found: list[Due] = []
    size = 0
    rows: Iterable[Any] = tx.each(name, limit=limit + len(known), **lane)
    for row in rows:
        if row["id"] in known:
            continue
        # The columns are selected in Due's order.
        found.append(Due(*row, ordered))  # type: ignore[call-arg]
        size += len(row["body"])
        if len(found) >= limit or size >= FETCH_BYTES:
            return Fetched(found, more=True, next_at=None)
    later = await tx.one("delivery_next_due", **lane)
    return Fetched(found, more=False, next_at=later["due_at"] if later else None)


async def record(tx: Transaction, recorded: Sequence[Recorded]) -> list[None]:
    """Store attempts and what they did to their deliveries; those that ended meanwhile stay so."""
    rows: list[dict[str, Any]] = []
    for item in recorded:
        row = msgspec.structs.asdict(item.attempt)
        row["response_headers"] = text(item.attempt.response_headers)
        row.update(
            tenant=item.tenant,
            subscriber_id=item.subscriber_id,
            generation_id=item.generation_id,
            status=item.status,
            due_at=item.due_at,
            delivered_at=item.delivered_at,
            last_error=item.last_error,
        )
        rows.append(row)
    await tx.many("delivery_record", rows)
    await tx.many("attempt_insert", rows)
    await stats.add(tx, rows)
    for row, item in zip(rows, recorded, strict=True):
        if item.ordered and item.generation_id is not None:
            held = "deliveries_hold" if item.due_at is not None else "delivery_unhold"
            await tx.run(held, now=tx.now, **row)
    return [None] * len(rows)


def delivery(row: Row) -> Delivery:
    """Return the delivery in a row."""
    return noun(Delivery, {**row, "created_at": time_of(row["id"])})


def attempt(row: Row) -> Attempt:
    """The attempt in a row."""
    return noun(Attempt, row, json=frozenset({"response_headers"}))


async def get(tx: Transaction, tenant: str, delivery_id: str) -> Delivery | None:
    """The delivery, if it is the tenant's."""
    row = await tx.one("delivery_by_id", tenant=tenant, id=delivery_id)
    return delivery(row) if row else None


async def attempts(tx: Transaction, delivery_id: str) -> list[Attempt]:
    """The attempts of a delivery in order."""
    return [attempt(r) for r in await tx.all("attempts_of_delivery", delivery_id=delivery_id)]


async def attempts_of_generation(tx: Transaction, generation_id: str) -> list[Row]:
    """Every attempt to deliver any event of the generation."""
    return await tx.all("attempts_of_generation", generation_id=generation_id)


async def delete_past(
    tx: Transaction, after: str, *, tenant: str, before: int, limit: int
) -> tuple[int, str | None]:
    """Look at a tenant's next old deliveries and delete what has ended, attempts included.

    How many rows went, and the id to go on after; None at the end.
    """
    rows = await tx.all(
        "deliveries_past",
        tenant=tenant,
        after=after,
        before=before,
        before_id=first_id("dlv", before),
        limit=limit,
    )
    over = [{"tenant": tenant, "id": row["id"]} for row in rows if row["is_over"]]
    await tx.many("delivery_delete", over)
    await tx.many("attempts_delete", over)
    return len(over), rows[-1]["id"] if len(rows) == limit else None


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which deliveries a list shows."""

    status: str | None = None
    subscriber_id: str | None = None
    event_id: str | None = None


async def page(tx: Transaction, page: pages.Page, tenant: str, only: Filter) -> pages.Rows:
    """Return a page of a tenant's deliveries."""
    values = {**msgspec.structs.asdict(only), "tenant": tenant}
    if only.subscriber_id is not None:
        # All deliveries to a subscriber are one tenant's: another's need not be looked at.
        row = await tx.one("delivery_tenant", subscriber_id=only.subscriber_id)
        if row is None or row["tenant"] != tenant:
            return [], None
    return await pages.read(tx, _source(only), page, values)


_ENDED = "d.status IN ('dead', 'canceled')"  # As the partial indexes have it.


def _source(only: Filter) -> pages.Source:
    """Return the index to walk: that of an event, of a subscriber, of what ended, or of all."""
    is_ended = only.status in ("dead", "canceled")
    if only.event_id is not None:
        index, where = "deliveries_event", ["d.event_id = :event_id"]
    elif only.subscriber_id is not None and is_ended:
        where = ["d.subscriber_id = :subscriber_id", "d.status = :status", _ENDED]
        index = "deliveries_ended_of"
    elif only.subscriber_id is not None:
        index, where = "deliveries_subscriber", ["d.subscriber_id = :subscriber_id"]
    elif is_ended:
        where = ["d.tenant = :tenant", "d.status = :status", _ENDED]
        index = "deliveries_ended"
    else:
        index, where = "", ["d.tenant = :tenant"]
    names = [name for name, value in msgspec.structs.asdict(only).items() if value is not None]
    filters = [f"d.{name} = :{name}" for name in ("tenant", *names)]
    return pages.Source(
        table=f"deliveries d INDEXED BY {index}" if index else "deliveries d",
        where=where,
        filters=[condition for condition in filters if condition not in where],
        columns="d.*",
        key="d.id",
    )
