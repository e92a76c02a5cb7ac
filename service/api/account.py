"""A tenant's own things: API keys, the signing secret for `notify_url`s, usage."""

import base64
import os
import re
from datetime import date
from typing import Annotated

import msgspec

from service.api.call import Answer, Call, bad_query, listed
from service.api.checks import NO_NUL
from service.api.problem import FieldError, Problem, invalid, not_found
from service.api.subscribers import Rotation, rotate_secrets, rotation, secrets_view
from service.delivery import signing_keys
from service.delivery.tenants import DEFAULT, ensure
from service.model.clock import rfc3339
from service.model.key import Key, Scope
from service.store import generations, keys, pages, subscribers
from service.store.database import Transaction

USAGE_DAYS, USAGE_DAYS_MAX = 30, 366
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100, pattern=NO_NUL)]


class NewKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/keys."""

    name: Name
    scopes: Annotated[list[Scope], msgspec.Meta(min_length=1, max_length=4)]
    tenant: str | None = None


async def create_key(call: Call) -> Answer:
    """POST /v1/keys: 201, with the key this once."""
    new = call.decode(NewKey)
    tenant = call.tenant if new.tenant is None else new.tenant
    if not _TENANT.fullmatch(tenant):
        message = "must be 1 to 63 of a-z, 0-9, - and _"
        raise invalid("The tenant's name cannot be used.", FieldError("/tenant", message))
    if len(set(new.scopes)) != len(new.scopes):
        raise invalid("A scope is named twice.", FieldError("/scopes", "names a scope twice"))
    if tenant != call.tenant != DEFAULT:
        raise Problem(403, "forbidden", f"Only an admin of {DEFAULT} makes keys for other tenants.")
    secret = "ghk_" + base64.urlsafe_b64encode(os.urandom(32)).rstrip(b"=").decode()
    key = Key(
        id=call.resource_id,
        name=new.name,
        tenant=tenant,
        scopes=new.scopes,
        created_at=call.context.clock(),
        last_used_at=None,
        revoked_at=None,
    )
    await call.context.database.write(_insert_key, call, key, secret)
    return Answer(status=201, content={**key.view(), "key": secret})


async def _insert_key(tx: Transaction, call: Call, key: Key, secret: str) -> None:
    if await keys.get(tx, key.tenant, key.id) is not None:
        raise Problem(409, "conflict", "The first request made this key; revoke it and try again.")
    await ensure(tx, call.context, key.tenant)
    await keys.insert(tx, key, secret)


async def list_keys(call: Call) -> Answer:
    """GET /v1/keys."""
    rows, more = await call.context.database.read(
        pages.page, pages.KEYS, call.page("key"), ["tenant = :tenant"], {"tenant": call.tenant}
    )
    return listed([keys.key(row).view() for row in rows], more=more)


async def get_key(call: Call) -> Answer:
    """GET /v1/keys/{id}."""
    return Answer(content=(await _own_key(call)).view())


async def revoke_key(call: Call) -> Answer:
    """DELETE /v1/keys/{id}: it opens nothing from now on."""
    key = await _own_key(call)
    await call.context.database.write(keys.revoke, key.id)
    return Answer(status=204)


async def _own_key(call: Call) -> Key:
    key = await call.context.database.read(keys.get, call.tenant, call.path["id"])
    if key is None:
        raise not_found("key")
    return key


async def signing_secret(call: Call) -> Answer:
    """GET /v1/signing-secret: what signs webhooks to `notify_url`s."""
    sealed = await call.context.database.read(subscribers.tenant_secrets, call.tenant)
    if sealed is None:
        sealed = await call.context.database.write(ensure, call.context, call.tenant)
    secrets = signing_keys.unseal(call.context.vault, sealed, call.tenant)
    return Answer(content=secrets_view(secrets, call.context.clock()))


async def rotate_signing_secret(call: Call) -> Answer:
    """POST /v1/signing-secret/rotate."""
    wanted = rotation(call)
    rotated = await call.context.database.write(_rotate, call, wanted)
    return Answer(content=secrets_view(rotated, call.context.clock()))


async def _rotate(tx: Transaction, call: Call, wanted: Rotation) -> signing_keys.Secrets:
    vault = call.context.vault
    sealed = await ensure(tx, call.context, call.tenant)
    rotated = rotate_secrets(signing_keys.unseal(vault, sealed, call.tenant), wanted, tx.now)
    await subscribers.change_tenant(tx, call.tenant, signing_keys.seal(vault, rotated, call.tenant))
    tx.after_commit(call.context.inbox.reload, None)
    return rotated


async def usage(call: Call) -> Answer:
    """GET /v1/usage: counts and credits by model and day."""
    since, until = _span(call)
    rows = await call.context.database.read(
        generations.usage, call.tenant, since.isoformat(), until.isoformat(), call.query_model()
    )
    return Answer(content={"data": [dict(row) for row in rows], "next": None})


def _span(call: Call) -> tuple[date, date]:
    """The days asked for, both included: the last 30 where nothing is said."""
    until = _day(call, "until") or date.fromisoformat(rfc3339(call.context.clock())[:10])
    since = _day(call, "since") or date.fromordinal(max(1, until.toordinal() - USAGE_DAYS + 1))
    if since > until:
        raise bad_query("since", "must not be after until")
    if (until - since).days >= USAGE_DAYS_MAX:
        raise bad_query("since", f"must be less than {USAGE_DAYS_MAX} days before until")
    return since, until


def _day(call: Call, name: str) -> date | None:
    text = call.query.get(name)
    if text is None:
        return None
    try:
        return date.fromisoformat(text if _DAY.fullmatch(text) else "")
    except ValueError:
        raise bad_query(name, "must be a day, such as 2026-11-22") from None
