"""Subscribers and tenants, with their sealed secrets."""

from functools import lru_cache
from typing import Any, NamedTuple

from service.model.subscriber import Subscriber
from service.store import pages, rows
from service.store.database import Transaction

DECODED_MAX = 5_000  # Subscribers of all tenants that stay decoded in memory.
CHANGES_KEPT = 1_000  # A process that has missed more reloads everything.
_CANDIDATE = (
    *("id", "tenant", "url", "event_types", "filter", "status", "retry_schedule_seconds"),
    *("ordered", "created_at", "updated_at"),
)
LIST_SOURCE = pages.Source(table="subscribers", where=["tenant = :tenant", "is_notify = 0"])


async def candidates(tx: Transaction, tenant: str) -> list[Subscriber]:
    """Return the tenant's subscribers that are not disabled, for the fan-out of an event.

    Only the fields that the fan-out needs are read; the others have their defaults.
    """
    # The columns are selected in the order of _CANDIDATE.
    candidate_rows = await tx.all("subscribers_of_tenant", tenant=tenant)
    return [subscriber for row in candidate_rows for subscriber in _decode(*row)]


# Decoding a row takes many times as long as reading it, and few rows have changed.
@lru_cache(maxsize=DECODED_MAX)
def _decode(*values: Any) -> list[Subscriber]:
    """Return the subscriber; none if its row cannot be decoded."""
    return rows.decode_rows(Subscriber, [dict(zip(_CANDIDATE, values, strict=True))])


async def owed_notices(tx: Transaction, tenant: str, since_at: int) -> int:
    """Return how many deliveries are needed to tell a tenant's subscribers who was disabled.

    Each enabled one is told of each one that was disabled since a time.
    """
    values = {"tenant": tenant, "since_at": since_at}
    return await rows.read_number(tx, "subscribers_owed_notices", **values) or 0


async def update(tx: Transaction, old: Subscriber, **changes: Any) -> Subscriber:
    """Store `changes`; with `updated_at` among them, other processes reload the subscriber.

    The subscriber is locked.
    """
    new = await rows.update(tx, old, **changes)
    if "updated_at" in changes:
        await bump_revision(tx, old.tenant, old.id)
    return new


async def bump_revision(
    tx: Transaction, tenant: str | None = None, subscriber_id: str | None = None
) -> None:
    """Make other processes reload a subscriber, all of a tenant, or, without a tenant, all."""
    await tx.run("subscribers_bump_revision")
    await tx.run("subscriber_change_insert", tenant=tenant, subscriber_id=subscriber_id)
    await tx.run("subscriber_changes_forget", kept=CHANGES_KEPT)


async def get_revision(tx: Transaction) -> int:
    """Return the number that grows with every `bump_revision`."""
    return await rows.read_number(tx, "subscribers_revision") or 0


class Changes(NamedTuple):
    """The subscribers that any process changed up to a revision."""

    revision: int
    tenants: frozenset[str] = frozenset()  # All their subscribers were changed.
    ids: frozenset[str] = frozenset()  # Single subscribers.
    is_all: bool = False  # All were changed, or more than CHANGES_KEPT.


async def changes_since(tx: Transaction, revision: int) -> Changes:
    """Return what was changed after a revision."""
    latest = await get_revision(tx)
    if latest == revision:
        return Changes(latest)
    oldest = await rows.read_number(tx, "subscriber_changes_oldest")
    changed = await tx.all("subscriber_changes_since", revision=revision)
    is_forgotten = oldest is None or not oldest - 1 <= revision < latest
    if is_forgotten or any(row["tenant"] is None for row in changed):
        return Changes(latest, is_all=True)
    tenants = frozenset(row["tenant"] for row in changed if row["subscriber_id"] is None)
    ids = frozenset(row["subscriber_id"] for row in changed if row["subscriber_id"] is not None)
    return Changes(latest, tenants, ids)


async def delete(tx: Transaction, old: Subscriber) -> None:
    """Delete a subscriber that is locked. The caller cancels its pending deliveries."""
    assert old.id in tx.locked, "a subscriber is deleted that is not locked"
    await tx.run("subscriber_delete", id=old.id)
    await bump_revision(tx, old.tenant, old.id)


async def store_rest(
    tx: Transaction, tenant: str, receiver: str, slow_until: int, asked_at: int
) -> None:
    """Store until when the tenant's lanes to a receiver rest, unless a later time is stored."""
    values = {"slow_until": slow_until, "asked_at": asked_at}
    await tx.run("rest_store", tenant=tenant, receiver=receiver, **values)


async def rests_of(tx: Transaction, tenant: str, receivers: tuple[str, str]) -> dict[str, int]:
    """Return until when the lanes to each of two receivers rest, or last did; else 0."""
    receiver, narrower = receivers
    rests = await tx.all("rests_of", tenant=tenant, receiver=receiver, narrower=narrower)
    return {**dict.fromkeys(receivers, 0), **{row["receiver"]: row["slow_until"] for row in rests}}


async def end_rests(tx: Transaction, tenant: str, origin: str, until: int) -> int:
    """Delete the rests that receivers at an origin asked for at `until` or before; count them."""
    count = await tx.run("rests_end", tenant=tenant, origin=origin, until=until)
    if count:
        await bump_revision(tx, tenant)
    return count


async def tenant_secrets(tx: Transaction, tenant: str) -> bytes | None:
    """Return the sealed secrets of a tenant, which sign the webhooks to its `notify_url`s."""
    row = await tx.one("tenant_by_id", id=tenant)
    return row["sealed_secrets"] if row else None


async def lock_tenant_secrets(tx: Transaction, tenant: str) -> bytes:
    """Return the sealed secrets of a tenant that exists, and lock them, to replace them."""
    [row] = await tx.lock("tenant_by_id", id=tenant)
    sealed: bytes = row["sealed_secrets"]
    return sealed


async def insert_tenant(tx: Transaction, tenant: str, sealed_secrets: bytes) -> None:
    """Store a tenant, unless it exists."""
    await tx.run("tenant_insert", id=tenant, sealed_secrets=sealed_secrets, created_at=tx.now)


async def update_tenant(tx: Transaction, tenant: str, sealed_secrets: bytes) -> None:
    """Replace the tenant's sealed secrets, which are locked."""
    assert tenant in tx.locked, "secrets are replaced that are not locked"
    await tx.run("tenant_update", id=tenant, sealed_secrets=sealed_secrets)
    await bump_revision(tx, tenant)


async def all_tenants(tx: Transaction) -> list[str]:
    """Return the id of every tenant."""
    return [row["id"] for row in await tx.all("tenants_all")]
