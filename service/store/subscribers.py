"""Subscribers and tenants, with their sealed secrets."""

from functools import partial
from typing import Any

import msgspec

from service.model.subscriber import Subscriber
from service.store import pages
from service.store.database import Transaction
from service.store.rows import decode_row, encode_row, read_all, read_number, read_one

LIST_SOURCE = pages.Source(table="subscribers", where=["tenant = :tenant", "is_notify = 0"])
from_row = partial(decode_row, Subscriber)


async def insert(tx: Transaction, new: Subscriber) -> None:
    """Store a new subscriber."""
    await tx.run("subscriber_insert", **encode_row(new))


async def update(tx: Transaction, old: Subscriber, **changes: Any) -> Subscriber:
    """Store `changes` to a subscriber; return the changed subscriber.

    If `updated_at` is among the changes, other processes reload the subscriber.
    """
    new = msgspec.structs.replace(old, **changes)
    await tx.run("subscriber_update", **encode_row(new))
    if "updated_at" in changes:
        await bump_revision(tx)
    return new


async def bump_revision(tx: Transaction) -> None:
    """Make every process reload the subscribers that it has in memory."""
    await tx.run("subscribers_bump_revision")


async def get_revision(tx: Transaction) -> int:
    """Return the number that grows with every `bump_revision`."""
    return await read_number(tx, "subscribers_revision") or 0


async def get(tx: Transaction, subscriber_id: str) -> Subscriber | None:
    """Return the subscriber, of any tenant."""
    return await read_one(tx, Subscriber, "subscriber_by_id", id=subscriber_id)


async def for_notify(tx: Transaction, tenant: str, url: str) -> Subscriber | None:
    """Return the tenant's hidden subscriber for a `notify_url`."""
    return await read_one(tx, Subscriber, "subscriber_notify", tenant=tenant, url=url)


async def of_tenant(tx: Transaction, tenant: str) -> list[Subscriber]:
    """Return the tenant's subscribers, without the disabled and those of a `notify_url`."""
    return await read_all(tx, Subscriber, "subscribers_of_tenant", tenant=tenant)


async def count(tx: Transaction, tenant: str) -> int:
    """Count the tenant's subscribers, without those of a `notify_url`."""
    return await read_number(tx, "subscribers_count", tenant=tenant) or 0


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


async def all_tenants(tx: Transaction) -> list[str]:
    """Return the id of every tenant."""
    return [row["id"] for row in await tx.all("tenants_all")]
