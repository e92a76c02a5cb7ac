"""Signing secrets: that of a tenant, which signs for `notify_url`s, and any rotation."""

from typing import Annotated

import msgspec

from service.api import idempotency
from service.api.call import Answer, Call, answer
from service.api.checks import secret_errors
from service.api.problem import refuse_fields
from service.delivery import signing
from service.delivery.signing import Secrets
from service.delivery.tenants import ensure
from service.model.clock import rfc3339
from service.store import subscribers
from service.store.database import Transaction, Unit
from service.store.vault import VaultError


class Rotation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a rotation."""

    secret: str | None = None  # By default a new one.
    overlap_seconds: Annotated[int, msgspec.Meta(ge=0, le=604_800)] = 86_400


async def answer_rotation(call: Call, rotate: Unit[Secrets]) -> Answer:
    """Answer with the secrets that `rotate(tx, call, rotation)` returns and stores."""
    rotation = call.decode(Rotation, empty=b"{}")
    refuse_fields("The secret cannot be used.", secret_errors(rotation.secret))
    return await idempotency.create(call, _answer_rotated, call, rotate, rotation)


async def _answer_rotated(
    tx: Transaction, call: Call, rotate: Unit[Secrets], rotation: Rotation
) -> Answer:
    return answer_secrets(call, await rotate(tx, call, rotation))


def rotate_sealed(
    call: Call, sealed: bytes, owner_id: str, rotation: Rotation, now: int, **kind: bool
) -> tuple[Secrets, bytes]:
    """Return the rotated secrets of an owner, plain and sealed.

    kind: the options of `signing.new_secrets`. Secrets whose secret key was lost are replaced, but
    only without an overlap; VaultError otherwise: another process may have the key, and sign with
    them.
    """
    vault, overlap_seconds = call.context.vault, rotation.overlap_seconds
    secrets = signing.new_secrets(call.context.random_bytes, secret=rotation.secret, **kind)
    try:
        secrets = signing.unseal(vault, sealed, owner_id).rotated(secrets, overlap_seconds, now)
    except VaultError:
        if overlap_seconds:
            raise
    return secrets, signing.seal(vault, secrets, owner_id)


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
        sealed = await call.database.write(ensure, call.context, call.tenant, tenant=call.tenant)
    return answer_secrets(call, signing.unseal(call.context.vault, sealed, call.tenant))


async def rotate(call: Call) -> Answer:
    """POST /v1/signing-secret/rotate: the old secret signs until the overlap ends."""
    return await answer_rotation(call, _rotate)


async def _rotate(tx: Transaction, call: Call, rotation: Rotation) -> Secrets:
    tenant = call.tenant
    await ensure(tx, call.context, tenant)
    old = await subscribers.lock_tenant_secrets(tx, tenant)
    secrets, sealed = rotate_sealed(call, old, tenant, rotation, tx.now)
    await subscribers.update_tenant(tx, tenant, sealed)
    tx.after_commit(call.context.inbox.reload_tenant, tenant)
    return secrets
