"""The tenant's own signing secret, which signs webhooks to `notify_url`s."""

from service.api.call import Answer, Call, answer
from service.api.rotation import read_rotation, secrets_view
from service.delivery import signing_keys
from service.delivery.signing_keys import Secrets
from service.delivery.tenants import ensure
from service.store import subscribers
from service.store.database import Transaction


async def get(call: Call) -> Answer:
    """GET /v1/signing-secret; the first call creates it."""
    sealed = await call.database.read(subscribers.tenant_secrets, call.tenant)
    if sealed is None:
        sealed = await call.database.write(ensure, call.context, call.tenant)
    secrets = signing_keys.unseal(call.context.vault, sealed, call.tenant)
    return answer(secrets_view(secrets, call.context.clock()))


async def rotate(call: Call) -> Answer:
    """POST /v1/signing-secret/rotate: the old secret signs until the overlap ends."""
    secret, overlap_seconds = read_rotation(call)
    secrets = await call.database.write(_rotate, call, secret, overlap_seconds)
    return answer(secrets_view(secrets, call.context.clock()))


async def _rotate(tx: Transaction, call: Call, secret: str, overlap_seconds: int) -> Secrets:
    vault, tenant = call.context.vault, call.tenant
    sealed = await ensure(tx, call.context, tenant)
    old = signing_keys.unseal(vault, sealed, tenant)
    secrets = old.rotated(secret, overlap_seconds, tx.now)
    await subscribers.update_tenant(tx, tenant, signing_keys.seal(vault, secrets, tenant))
    tx.after_commit(call.context.inbox.reload, None)
    return secrets
