"""Tenants: the owners of rows, with a secret and with subscribers for their `notify_url`s."""

from service.context import Context
from service.delivery import health, retry, signing
from service.model.ids import new_id
from service.model.subscriber import Subscriber
from service.store import rows, subscribers
from service.store.database import Transaction

DEFAULT = "default"


async def ensure(tx: Transaction, context: Context, tenant: str) -> bytes:
    """Create the tenant and its secret unless it exists; return the sealed secrets."""
    sealed = await subscribers.tenant_secrets(tx, tenant)
    if sealed is not None:
        return sealed
    new = signing.seal(context.vault, signing.new_secrets(context.random_bytes), tenant)
    await subscribers.insert_tenant(tx, tenant, new)
    # Another process may have inserted it first.
    return await subscribers.tenant_secrets(tx, tenant) or new


async def subscriber_for(tx: Transaction, context: Context, tenant: str, url: str) -> Subscriber:
    """Return the tenant's subscriber for a `notify_url`, inserted if there is none yet.

    Each URL has one subscriber, and thereby one lane. A disabled one is enabled again.
    """
    if matches := await tx.keep("subscriber_notify_enabled", tenant=tenant, url=url):
        return rows.decode_row(Subscriber, matches[0])
    await tx.lock_names(f"notify_url {tenant} {url}")
    matches = await tx.lock("subscriber_notify", tenant=tenant, url=url)
    if not matches:
        new = Subscriber(
            id=new_id("sub", tx.now),
            tenant=tenant,
            is_notify=True,
            url=url,
            retry_schedule_seconds=list(retry.DEFAULT_RETRY_SECONDS),
            created_at=tx.now,
            updated_at=tx.now,
        )
        await rows.insert(tx, new)
        return new
    stored = rows.decode_row(Subscriber, matches[0])
    if stored.status != "disabled":  # Another process was first.
        return stored
    tx.after_commit(context.inbox.reload, stored.id)
    changes = {**health.ENABLED_AGAIN, "status": "active", "updated_at": tx.now}
    return await subscribers.update(tx, stored, **changes)
