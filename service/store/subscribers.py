"""Subscribers and tenants, with their secrets sealed."""

from typing import Any

import msgspec

from service.model.ids import first_id
from service.model.subscriber import Subscriber
from service.store import pages
from service.store.database import Row, Transaction
from service.store.rows import noun, text

_JSON = frozenset({"event_types", "filter", "header_names", "retry_schedule_seconds"})


LISTED = pages.Source(table="subscribers", where=["tenant = :tenant", "is_notify = 0"])


def subscriber(row: Row) -> Subscriber:
    """The subscriber in a row."""
    return noun(Subscriber, row, json=_JSON)


def _row(of: Subscriber) -> dict[str, Any]:
    row = msgspec.structs.asdict(of)
    return {name: text(value) if name in _JSON else value for name, value in row.items()}


async def insert(tx: Transaction, new: Subscriber) -> None:
    """Store a new subscriber."""
    await tx.run("subscriber_insert", **_row(new))


async def change(tx: Transaction, old: Subscriber, **changes: Any) -> Subscriber:
    """`old` with `changes`, stored; `updated_at` among them if processes are to read it again."""
    new = msgspec.structs.replace(old, **changes)
    await tx.run("subscriber_update", **_row(new))
    if "updated_at" in changes:
        await touch(tx)
    return new


async def touch(tx: Transaction) -> None:
    """Tell every process that what it holds of subscribers may be out of date."""
    await tx.run("subscribers_touch")


async def revision(tx: Transaction) -> int:
    """A number that grows with every `touch`."""
    row = await tx.one("subscribers_revision")
    return int(row["number"]) if row else 0


async def get(tx: Transaction, subscriber_id: str) -> Subscriber | None:
    """The subscriber, whoever's it is."""
    row = await tx.one("subscriber_by_id", id=subscriber_id)
    return subscriber(row) if row else None


async def for_notify(tx: Transaction, tenant: str, url: str) -> Subscriber | None:
    """The tenant's subscriber that stands for a `notify_url`."""
    row = await tx.one("subscriber_notify", tenant=tenant, url=url)
    return subscriber(row) if row else None


async def of_tenant(tx: Transaction, tenant: str) -> list[Subscriber]:
    """Every subscriber of the tenant that is not disabled, `notify_url`s left out."""
    return [subscriber(row) for row in await tx.all("subscribers_of_tenant", tenant=tenant)]


async def count(tx: Transaction, tenant: str) -> int:
    """How many subscribers the tenant has."""
    row = await tx.one("subscribers_count", tenant=tenant)
    return int(row["count"]) if row else 0


async def delete(tx: Transaction, old: Subscriber) -> None:
    """Delete a subscriber. What is owed to it is to be canceled, see `deliveries.cancel`."""
    await tx.run("subscriber_delete", id=old.id)
    await touch(tx)


async def tenant_secrets(tx: Transaction, tenant: str) -> bytes | None:
    """The sealed secrets of a tenant, which sign what goes to `notify_url`s."""
    row = await tx.one("tenant_by_id", id=tenant)
    return row["sealed_secrets"] if row else None


async def insert_tenant(tx: Transaction, tenant: str, sealed_secrets: bytes) -> None:
    """Make the tenant unless it is there."""
    await tx.run("tenant_insert", id=tenant, sealed_secrets=sealed_secrets, created_at=tx.now)


async def change_tenant(tx: Transaction, tenant: str, sealed_secrets: bytes) -> None:
    """Replace the tenant's sealed secrets."""
    await tx.run("tenant_update", id=tenant, sealed_secrets=sealed_secrets)
    await touch(tx)


async def delete_orphans(
    tx: Transaction, after: str, *, before: int, limit: int
) -> tuple[int, str | None]:
    """Look at the next old subscribers that stand for a `notify_url`; delete the forgotten ones.

    How many went, and the id to go on after; None at the end.
    """
    rows = await tx.all(
        "subscribers_notify_past", after=after, before_id=first_id("sub", before), limit=limit
    )
    orphans = [{"id": row["id"]} for row in rows if row["is_orphan"]]
    await tx.many("subscribers_delete", orphans)
    return len(orphans), rows[-1]["id"] if len(rows) == limit else None


async def all_tenants(tx: Transaction) -> list[Row]:
    """Every tenant's id and sealed secrets."""
    return await tx.all("tenants_all")


async def sealed_page(tx: Transaction, after: str, limit: int) -> list[Row]:
    """The sealed columns of subscribers by id, those after `after`."""
    return await tx.all("subscribers_sealed", after=after, limit=limit)


async def reseal(tx: Transaction, row: Row, changes: dict[str, Any]) -> None:
    """Replace sealed columns of the subscriber in `row`."""
    await tx.run("subscriber_reseal", **{**dict(row), **changes})
