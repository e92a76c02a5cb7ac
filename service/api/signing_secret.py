"""Signing secrets: the tenant's own, for webhooks to `notify_url`s, and how any is rotated."""

from typing import Annotated

import msgspec

from service.api.call import Answer, Call, answer
from service.api.checks import secret_errors
from service.api.problem import refuse_fields
from service.delivery import signing, signing_keys
from service.delivery.signing_keys import Secrets
from service.delivery.tenants import ensure
from service.model.clock import rfc3339
from service.store import subscribers
from service.store.database import Transaction, Unit


class Rotation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a rotation."""

    secret: str | None = None
    overlap_seconds: Annotated[int, msgspec.Meta(ge=0, le=604_800)] = 86_400


async def answer_rotation(call: Call, rotate: Unit[Secrets]) -> Answer:
    """Run `rotate(tx, call, secret, overlap_seconds)` with a new secret, or that of the body."""
    rotation = call.decode(Rotation, empty=b"{}")
    refuse_fields("The secret cannot be used.", secret_errors(rotation.secret))
    secret = rotation.secret or signing.new_secret(call.context.random_bytes)
    secrets = await call.database.write(rotate, call, secret, rotation.overlap_seconds)
    return answer_secrets(call, secrets)


def answer_secrets(call: Call, secrets: Secrets) -> Answer:
    """Return the secrets as the API shows them."""
    now = call.context.clock()
    expiries = [previous.expires_at for previous in secrets.previous if previous.expires_at > now]
    content = {
        "secret": secrets.current,
        "public_key": secrets.private_key and signing.public_key_of(secrets.private_key),
        "previous_expires_at": rfc3339(max(expiries)) if expiries else None,
    }
    return answer(content)


async def get(call: Call) -> Answer:
    """GET /v1/signing-secret; the first call creates it."""
    sealed = await call.database.read(subscribers.tenant_secrets, call.tenant)
    if sealed is None:
        sealed = await call.database.write(ensure, call.context, call.tenant)
    return answer_secrets(call, signing_keys.unseal(call.context.vault, sealed, call.tenant))


async def rotate(call: Call) -> Answer:
    """POST /v1/signing-secret/rotate: the old secret signs until the overlap ends."""
    return await answer_rotation(call, _rotate)


async def _rotate(tx: Transaction, call: Call, secret: str, overlap_seconds: int) -> Secrets:
    vault, tenant = call.context.vault, call.tenant
    old = signing_keys.unseal(vault, await ensure(tx, call.context, tenant), tenant)
    secrets = old.rotated(secret, overlap_seconds, tx.now)
    await subscribers.update_tenant(tx, tenant, signing_keys.seal(vault, secrets, tenant))
    tx.after_commit(call.context.inbox.reload, None)
    return secrets
