"""The subscriber behind a `notify_url`."""

from service.context import Context
from service.delivery import health, retry
from service.model.ids import new_id
from service.model.subscriber import Subscriber
from service.store import subscribers
from service.store.database import Transaction


async def subscriber_for(tx: Transaction, context: Context, tenant: str, url: str) -> Subscriber:
    """Return the tenant's subscriber for a `notify_url`, inserted if there is none yet.

    Each URL has one subscriber, and thereby one lane. A disabled one is enabled again.
    """
    stored = await subscribers.for_notify(tx, tenant, url)
    if stored is not None and stored.status == "disabled":
        tx.after_commit(context.inbox.reload, stored.id)
        changes = {**health.PROBED, "status": "active", "updated_at": tx.now}
        return await subscribers.update(tx, stored, **changes)
    if stored is not None:
        return stored
    new = Subscriber(
        id=new_id("sub", tx.now),
        tenant=tenant,
        is_notify=True,
        url=url,
        retry_schedule_seconds=list(retry.DEFAULT_RETRY_SECONDS),
        created_at=tx.now,
        updated_at=tx.now,
    )
    await subscribers.insert(tx, new)
    return new
