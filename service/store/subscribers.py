"""Subscribers and tenants, with their sealed secrets."""

from typing import Any

import msgspec

from service.model.ids import first_id
from service.model.subscriber import Subscriber
from service.store import pages
from service.store.database import Row, Transaction
from service.store.rows import convert, json_text

_JSON = frozenset({"event_types", "filter", "header_names", "retry_schedule_seconds"})
LIST_SOURCE = pages.Source(table="subscribers", where=["tenant = :tenant", "is_notify = 0"])


def from_row(row: Row) -> Subscriber:
    """Return the subscriber in a row."""
    return convert(Subscriber, row, json=_JSON)


def _row(subscriber: Subscriber) -> dict[str, Any]:
    row = msgspec.structs.asdict(subscriber)
    return {name: json_text(value) if name in _JSON else value for name, value in row.items()}


async def insert(tx: Transaction, new: Subscriber) -> None:
    """Store a new subscriber."""
    await tx.run("subscriber_insert", **_row(new))


async def update(tx: Transaction, old: Subscriber, **changes: Any) -> Subscriber:
    """Store `changes` to a subscriber; return the changed subscriber.

    If `updated_at` is among the changes, other processes reload the subscriber.
    """
    new = msgspec.structs.replace(old, **changes)
    await tx.run("subscriber_update", **_row(new))
    if "updated_at" in changes:
        await bump_revision(tx)
    return new


async def bump_revision(tx: Transaction) -> None:
    """Make every process reload the subscribers that it has in memory."""
    await tx.run("subscribers_bump_revision")


async def get_revision(tx: Transaction) -> int:
    """Return the number that grows with every `bump_revision`."""
    row = await tx.one("subscribers_revision")
    return int(row["number"]) if row else 0


async def get(tx: Transaction, subscriber_id: str) -> Subscriber | None:
    """Return the subscriber, of any tenant."""
    row = await tx.one("subscriber_by_id", id=subscriber_id)
    return from_row(row) if row else None


async def for_notify(tx: Transaction, tenant: str, url: str) -> Subscriber | None:
    """Return the tenant's hidden subscriber for a `notify_url`."""
    row = await tx.one("subscriber_notify", tenant=tenant, url=url)
    return from_row(row) if row else None


async def of_tenant(tx: Transaction, tenant: str) -> list[Subscriber]:
    """Return the tenant's subscribers, without the disabled and those of a `notify_url`."""
    return [from_row(row) for row in await tx.all("subscribers_of_tenant", tenant=tenant)]


async def count(tx: Transaction, tenant: str) -> int:
    """Count the tenant's subscribers, without those of a `notify_url`."""
    row = await tx.one("subscribers_count", tenant=tenant)
    return int(row["count"]) if row else 0


async def delete(tx: Transaction, old: Subscriber) -> None:
    """Delete a subscriber. The caller cancels its pending deliveries with `deliveries.cancel`."""
    await tx.run("subscriber_delete", id=old.id)
    await bump_revision(tx)


async def tenant_secrets(tx: Transaction, tenant: str) -> bytes | None:
    """Return the sealed secrets of a tenant, which sign the webhooks to its `notify_url`s."""
    row = await tx.one("tenant_by_id", id=tenant)
    return row["sealed_secrets"] if row else None


async def insert_tenant(tx: Transaction, tenant: str, sealed_secrets: bytes) -> None:
    """Store a tenant, unless it exists."""
    await tx.run("tenant_insert", id=tenant, sealed_secrets=sealed_secrets, created_at=tx.now)


async def update_tenant(tx: Transaction, tenant: str, sealed_secrets: bytes) -> None:
    """Replace the tenant's sealed secrets."""
    await tx.run("tenant_update", id=tenant, sealed_secrets=sealed_secrets)
    await bump_revision(tx)


async def delete_orphans(
    tx: Transaction, after: str, *, before: int, limit: int
) -> tuple[int, str | None]:
    """Delete unused `notify_url` subscribers among the next `limit` old ones.

    Returns how many were deleted, and the id to continue after, None at the end.
    """
    rows = await tx.all(
        "subscribers_notify_old", after=after, before_id=first_id("sub", before), limit=limit
    )
    orphans = [{"id": row["id"]} for row in rows if row["is_orphan"]]
    await tx.many("subscriber_delete", orphans)
    return len(orphans), rows[-1]["id"] if len(rows) == limit else None


async def all_tenants(tx: Transaction) -> list[Row]:
    """Return every tenant's id and sealed secrets."""
    return await tx.all("tenants_all")


async def list_sealed(tx: Transaction, after: str, limit: int) -> list[Row]:
    """Return the sealed columns of the next `limit` subscribers after an id."""
    return await tx.all("subscribers_list_sealed", after=after, limit=limit)


async def reseal(tx: Transaction, row: Row, changes: dict[str, Any]) -> None:
    """Replace sealed columns of the subscriber in `row`."""
    await tx.run("subscriber_reseal", **{**dict(row), **changes})
