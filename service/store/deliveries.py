"""Deliveries: the queue of webhooks. Due rows are read by subscriber, attempts stored in groups."""

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from service.model.attempt import Attempt
from service.model.delivery import Delivery, DueDelivery
from service.model.event import Event
from service.model.ids import new_id
from service.model.subscriber import Subscriber
from service.store import pages, stats
from service.store.database import Transaction
from service.store.item import HEAVY_ROWS
from service.store.rows import json_text, read_number

CANCEL_BATCH = 500
FETCH_BYTES = 8 * 1024 * 1024


class AttemptRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt, and the state of its delivery after it."""

    tenant: str
    subscriber_id: str
    generation_id: str | None
    ordered: bool
    status: str
    due_at: int | None
    delivered_at: int | None
    attempt: Attempt
    # Whether its statistics are stored with it, and not in a batch a second later. A subscriber
    # with a rate needs the time of its last attempt after a crash.
    is_counted_now: bool = False

    def count_in(self, counts: stats.AttemptCounts) -> None:
        """Count the attempt in the subscriber's statistics."""
        attempt = self.attempt
        counts.count(self.subscriber_id, attempt.started_at, attempt.duration_ms, self.status)


def new_due(event: Event, subscriber: Subscriber, now: int, trigger: str) -> DueDelivery:
    """Return a new delivery of `event` for `subscriber`, not stored yet."""
    return DueDelivery(
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
        manual_count=0,
        planned_at=None,
    )


async def insert(
    tx: Transaction, targets: Sequence[tuple[Event, Subscriber, int]]
) -> list[DueDelivery]:
    """Store a delivery for each (event, subscriber, due time); return those due now."""
    if len(targets) >= HEAVY_ROWS:  # Before anything is made for them: they may be too many.
        tx.charge(Counter(event.tenant for event, _, _ in targets))
    new = [(new_due(e, s, tx.now, "scheduled"), due_at) for e, s, due_at in targets]
    rows = [{**msgspec.structs.asdict(due), "due_at": due_at} for due, due_at in new]
    await tx.many("deliveries_insert", rows)
    return [due for due, due_at in new if due_at <= tx.now]


async def insert_ended(tx: Transaction, due: DueDelivery, record: AttemptRecord) -> None:
    """Store a delivery together with its only attempt, as for a test event."""
    await tx.run("deliveries_insert", **msgspec.structs.asdict(due), due_at=tx.now)
    await record_attempts(tx, [record])


async def retry(tx: Transaction, delivery: Delivery) -> None:
    """Make a pending or dead delivery due now, for one more attempt."""
    await tx.run("delivery_retry", tenant=delivery.tenant, id=delivery.id, now=tx.now)


async def delay(tx: Transaction, due: DueDelivery, due_at: int) -> None:
    """Delay a pending delivery that cannot be worked until `due_at`."""
    await tx.run("delivery_delay", tenant=due.tenant, id=due.id, due_at=due_at)


async def cancel(tx: Transaction, subscriber_id: str) -> int:
    """Cancel pending deliveries to a subscriber, at most CANCEL_BATCH; return how many."""
    return await tx.run("deliveries_cancel", subscriber_id=subscriber_id, limit=CANCEL_BATCH)


async def cancel_replayed(tx: Transaction, replay_id: str) -> int:
    """Cancel pending deliveries of a replay, at most CANCEL_BATCH; return how many."""
    return await tx.run("replay_deliveries_cancel", id=replay_id, limit=CANCEL_BATCH)


class DueTimes(NamedTuple):
    """When the first attempts and the retries of a subscriber are due next."""

    subscriber_id: str
    status: str | None  # None: the subscriber was deleted.
    first_at: int | None
    retry_at: int | None


async def next_due_times(tx: Transaction, after: str, limit: int) -> list[DueTimes]:
    """Return the next due times of the subscribers after `after` that have pending deliveries.

    They are in the order of the subscribers' ids.
    """
    # An ORDER BY would make the statement step to every subscriber before it returns the first.
    rows = await tx.all("deliveries_next_due_times", after=after, limit=limit)
    times = [DueTimes(*row) for row in rows]  # type: ignore[arg-type]  # In the order of columns.
    return sorted(times, key=lambda due: due.subscriber_id)


async def fetch_due(
    tx: Transaction,
    subscriber_id: str,
    limit: int,
    which: Literal["first", "retries", "asked"],
    ordered: bool,  # noqa: FBT001  units take positional arguments
    known: frozenset[str],
) -> tuple[list[DueDelivery], int | None]:
    """Return due deliveries of a subscriber, and when the next one is due.

    `which`: for their "first" attempt, for "retries", or what a person has "asked" for, be it a
    first attempt or a retry. Of an `ordered` subscriber, the first two lists have these, too.

    The longest due come first. Deliveries whose id is in `known` are skipped. The list ends at
    `limit` deliveries or at FETCH_BYTES of bodies; more may then be due now. If the subscriber is
    `ordered`, deliveries that wait for an earlier event of their generation are left out, as are
    those whose generation is in `known`.
    """
    if which == "asked":
        name = "deliveries_asked"
    else:
        name = "deliveries_due_ordered" if ordered else "deliveries_due"
    values = {"subscriber_id": subscriber_id, "retries": which == "retries", "now": tx.now}
    due: list[DueDelivery] = []
    size = 0
    rows: AsyncIterator[Any] = tx.each(name, limit=limit + len(known), **values)
    async for row in rows:
        if row["id"] in known or (ordered and row["generation_id"] in known):
            continue
        # The columns are selected in the order of its fields.
        due.append(DueDelivery(*row, ordered))  # type: ignore[call-arg]
        size += len(row["body"])
        if len(due) >= limit or size >= FETCH_BYTES:
            return due, tx.now
    if which == "asked":  # Due at once; one that was put off is found by the next scan.
        return due, None
    return due, await read_number(tx, "delivery_next_due", **values)


async def record_attempts(tx: Transaction, records: Sequence[AttemptRecord]) -> list[None]:
    """Store attempts and update their deliveries; a canceled delivery stays canceled.

    An attempt that is stored already, as when the answer to its COMMIT was lost, changes nothing.
    """
    records = sorted(records, key=lambda record: record.attempt.delivery_id)
    rows = [_attempt_row(record) for record in records]
    await tx.many("delivery_record", rows)
    uncounted = [r for r, record in zip(rows, records, strict=True) if not record.is_counted_now]
    await tx.many("attempt_insert", uncounted)
    counts = stats.AttemptCounts()
    for row, record in zip(rows, records, strict=True):
        if record.is_counted_now and await tx.run("attempt_insert", **row):
            record.count_in(counts)
        if record.ordered and record.generation_id is not None:
            is_retried = record.due_at is not None
            statement = "deliveries_delay_later" if is_retried else "delivery_make_due"
            await tx.run(statement, now=tx.now, **row)
    if counts:
        await stats.add(tx, counts)
    return [None] * len(rows)


def _attempt_row(record: AttemptRecord) -> dict[str, Any]:
    headers = json_text(record.attempt.response_headers)
    more = {"last_error": record.attempt.error_message, "response_headers": headers}
    return msgspec.structs.asdict(record) | msgspec.structs.asdict(record.attempt) | more


class Filter(msgspec.Struct, frozen=True):
    """Which deliveries a list has; None is any."""

    status: str | None = None
    subscriber_id: str | None = None
    event_id: str | None = None
    generation_id: str | None = None


async def list_page(tx: Transaction, page: pages.Page, tenant: str, only: Filter) -> pages.Rows:
    """Return a page of a tenant's deliveries, only those that pass the filter."""
    values = {"tenant": tenant, **msgspec.structs.asdict(only)}
    if only.subscriber_id is not None:
        # All deliveries to a subscriber belong to one tenant: for another the list is empty.
        row = await tx.one("delivery_tenant", subscriber_id=only.subscriber_id)
        if row is None or row["tenant"] != tenant:
            return [], None
    return await pages.read(tx, _source(values), page, values)


# The indexes of a list with the columns that they answer, the most selective first.
_INDEXES = (
    (" {index deliveries_event}", ("event_id",)),
    (" {index deliveries_event}", ("generation_id",)),
    (" {index deliveries_ended_of}", ("subscriber_id", "status")),
    (" {index deliveries_subscriber}", ("subscriber_id",)),
    (" {index deliveries_ended}", ("tenant", "status")),
    ("", ("tenant",)),
)
_ENDED = ("dead", "canceled")
# A generation knows its few events, so that no index of deliveries has to begin with it.
_OF_GENERATION = """d.event_id IN (
    SELECT e.value FROM generations g, {rows}(g.event_ids) e WHERE g.id = :generation_id)"""


def _source(values: Mapping[str, str | None]) -> pages.Source:
    """Return the source with the first index that the filter can use."""
    names = [name for name, value in values.items() if value is not None]
    conditions = {name: f"d.{name} = :{name}" for name in names}
    if "generation_id" in conditions:
        conditions["generation_id"] = _OF_GENERATION
    usable = conditions.keys() - ({"status"} if values["status"] not in _ENDED else set())
    index, answered = next(each for each in _INDEXES if usable.issuperset(each[1]))
    where = [conditions.pop(name) for name in answered]
    if "status" in answered:
        # The condition of the partial indexes: SQLite uses them only if the query repeats it.
        where.append("d.status IN ('dead', 'canceled')")
    table, filters = f"deliveries d{index}", list(conditions.values())
    return pages.Source(table=table, where=where, filters=filters)
