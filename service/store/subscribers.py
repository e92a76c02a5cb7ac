"""Subscribers and tenants, with their sealed secrets."""

from typing import Any

from service.model.subscriber import Subscriber
from service.store import pages, rows
from service.store.database import Transaction

LIST_SOURCE = pages.Source(table="subscribers", where=["tenant = :tenant", "is_notify = 0"])


async def update(tx: Transaction, old: Subscriber, **changes: Any) -> Subscriber:
    """Store `changes`; with `updated_at` among them, other processes reload the subscriber."""
    new = await rows.update(tx, old, **changes)
    if "updated_at" in changes:
        await bump_revision(tx)
    return new


async def bump_revision(tx: Transaction) -> None:
    """Make every process reload the subscribers that it has in memory."""
    await tx.run("subscribers_bump_revision")


async def get_revision(tx: Transaction) -> int:
    """Return the number that grows with every `bump_revision`."""
    return await rows.read_number(tx, "subscribers_revision") or 0


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
