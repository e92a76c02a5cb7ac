"""API keys: create, list, get, revoke."""

from typing import Annotated

import msgspec

from service.api import idempotency
from service.api.call import Answer, Call, answer, answer_page, get_own, read_own_page
from service.api.checks import NO_CONTROLS
from service.api.problem import FieldError, Problem, refuse_fields, require
from service.delivery.tenants import ensure
from service.model.key import SCOPES, TENANT_NAME, TENANT_NAME_RULE, Key, Scope, new_key
from service.store import keys, pages, rows
from service.store.database import Transaction


class NewKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/keys."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=100, pattern=NO_CONTROLS)]
    scopes: Annotated[list[Scope], msgspec.Meta(min_length=1, max_length=len(SCOPES))]
    tenant: str | None = None


async def create(call: Call) -> Answer:
    """POST /v1/keys: 201. Only this answer shows the key."""
    new = call.decode(NewKey)
    tenant = call.tenant if new.tenant is None else new.tenant
    if not TENANT_NAME.fullmatch(tenant):
        error = FieldError("/tenant", f"must be {TENANT_NAME_RULE}")
        refuse_fields("The tenant's name cannot be used.", [error])
    if len(set(new.scopes)) != len(new.scopes):
        error = FieldError("/scopes", "contains a scope twice")
        refuse_fields("The same scope is there twice.", [error])
    if (tenant != call.tenant or "operator" in new.scopes) and not call.key.has("operator"):
        detail = "Only a key with the scope operator makes keys for other tenants or operators."
        raise Problem(403, "forbidden", detail)
    secret, now = new_key(call.context.random_bytes), call.context.clock()
    key = Key(id=call.resource_id, name=new.name, tenant=tenant, scopes=new.scopes, created_at=now)
    return await idempotency.create(call, _insert, call, key, secret)


async def _insert(tx: Transaction, call: Call, key: Key, secret: str) -> Answer:
    await ensure(tx, call.context, key.tenant)
    await rows.insert(tx, key, key_sha256=keys.digest(secret))
    return answer({**key.view(), "key": secret}, 201)


async def list_(call: Call) -> Answer:
    """GET /v1/keys."""
    tenant, source = call.query_tenant(), pages.Source(table="keys")
    return await answer_page(call, "key", Key, read_own_page, source, tenant=tenant)


async def get(tx: Transaction, call: Call) -> Key:
    """GET /v1/keys/{id}."""
    if call.key.has("operator"):
        return require("key", await rows.read_by_id(tx, Key, call.path["id"]))
    return await get_own(tx, call, Key)


async def revoke(tx: Transaction, call: Call) -> None:
    """DELETE /v1/keys/{id}: from now on the key is refused."""
    await keys.revoke(tx, (await get(tx, call)).id)
