"""Tenants: the owners of rows. Each has a secret of its own, which signs for its `notify_url`s."""

from service.context import Context
from service.delivery import signing_keys
from service.store import subscribers
from service.store.database import Transaction

DEFAULT = "default"


async def ensure(tx: Transaction, context: Context, tenant: str) -> bytes:
    """Create the tenant and its secret unless it exists; return the sealed secrets."""
    sealed = await subscribers.tenant_secrets(tx, tenant)
    if sealed is None:
        secrets = signing_keys.new_secrets(context.random_bytes)
        sealed = signing_keys.seal(context.vault, secrets, tenant)
        await subscribers.insert_tenant(tx, tenant, sealed)
    return sealed
