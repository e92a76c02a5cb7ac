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
    if sealed is None:
        secrets = signing.new_secrets(context.random_bytes)
        sealed = signing.seal(context.vault, secrets, tenant)
        await subscribers.insert_tenant(tx, tenant, sealed)
    return sealed


async def subscriber_for(tx: Transaction, context: Context, tenant: str, url: str) -> Subscriber:
    """Return the tenant's subscriber for a `notify_url`, inserted if there is none yet.

    Each URL has one subscriber, and thereby one lane. A disabled one is enabled again.
    """
    stored = await rows.read_one(tx, Subscriber, "subscriber_notify", tenant=tenant, url=url)
    if stored is None:
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
    if stored.status != "disabled":
        return stored
    tx.after_commit(context.inbox.reload, stored.id)
    changes = {**health.PROBED, "status": "active", "updated_at": tx.now}
    return await subscribers.update(tx, stored, **changes)
