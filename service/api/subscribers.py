"""Subscribers: create, list, get, change, delete, test; secrets and statistics."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from service.api import checks, idempotency
from service.api.call import Answer, Call, answer, answer_page, get_own, lock_own, read_own_page
from service.api.checks import NO_NUL, EventTypes, Headers, Rate
from service.api.problem import FieldError, Problem, conflict, not_found, refuse_fields, unavailable
from service.api.signing_secret import Rotation, answer_rotation, answer_secrets, rotate_sealed
from service.delivery import health, replay, signing
from service.delivery.ping import send_test
from service.delivery.retry import DEFAULT_RETRY_SECONDS
from service.delivery.signing import Secrets
from service.delivery.target import SenderClosed, parse_target
from service.model.errors import json_pointer
from service.model.subscriber import REDACTED, Filter, Subscriber
from service.store import deliveries, rows, stats, subscribers
from service.store.database import Transaction

SUBSCRIBERS_MAX = 1_000
ONLY_STATUS = "Of the subscriber of a notify_url, only the status can change."
OTHER_ORIGIN = "must be given with its value: a stored value stays with its origin"
TOO_MANY_TESTS = "Other tests or attempts are under way, or the subscriber's rate allows none yet."

Delay = Annotated[int, msgspec.Meta(ge=0, le=604_800)]


class Fields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields that both bodies may set. An unset one has the default of Subscriber."""

    description: Annotated[str, msgspec.Meta(max_length=500, pattern=NO_NUL)] | UnsetType = UNSET
    event_types: EventTypes | UnsetType = UNSET
    filter: Filter | UnsetType = UNSET
    headers: Headers | UnsetType = UNSET
    max_in_flight: Annotated[int, msgspec.Meta(ge=1, le=100)] | UnsetType = UNSET
    rate_per_second: Rate | UnsetType | None = UNSET
    retry_schedule_seconds: (
        Annotated[list[Delay], msgspec.Meta(min_length=1, max_length=20)] | UnsetType
    ) = UNSET
    ordered: bool | UnsetType = UNSET
    payload: Literal["full", "thin", "cloudevents"] | UnsetType = UNSET


class New(Fields, frozen=True, kw_only=True):
    """The body of POST /v1/subscribers."""

    url: str
    signature: Literal["v1", "v1a"] = "v1"
    secret: str | None = None


class Update(Fields, frozen=True, kw_only=True):
    """The body of PATCH /v1/subscribers/{id}; fields that are unset do not change."""

    url: str | UnsetType = UNSET
    status: Literal["active", "paused", "disabled"] | UnsetType = UNSET


async def create(call: Call) -> Answer:
    """POST /v1/subscribers: 201 with the secret."""
    new = call.decode(New)
    fields = _check(call, new)
    headers = fields.pop("headers", {})
    context, id_, now = call.context, call.resource_id, call.context.clock()
    is_asymmetric = new.signature == "v1a"
    secrets = signing.new_secrets(context.random_bytes, secret=new.secret, asymmetric=is_asymmetric)
    subscriber = Subscriber(
        **{"retry_schedule_seconds": list(DEFAULT_RETRY_SECONDS), **fields},
        id=id_,
        tenant=call.tenant,
        header_names=sorted(headers),
        sealed_headers=signing.seal_headers(context.vault, headers, id_),
        sealed_secrets=signing.seal(context.vault, secrets, id_),
        created_at=now,
        updated_at=now,
    )
    return await idempotency.create(call, _insert, subscriber, secrets.current)


async def _insert(tx: Transaction, new: Subscriber, secret: str) -> Answer:
    await tx.lock_names(f"subscribers {new.tenant}")
    count = await rows.read_number(tx, "subscribers_count", tenant=new.tenant) or 0
    if count >= SUBSCRIBERS_MAX:
        raise conflict(f"A tenant has at most {SUBSCRIBERS_MAX} subscribers.")
    await rows.insert(tx, new)
    return answer({**new.view(), "secret": secret}, 201)


def _check(call: Call, body: New | Update) -> dict[str, Any]:
    """Return the fields that are set, without the secret; Problem 422 if one is wrong."""
    fields = msgspec.structs.asdict(body)
    fields = {name: value for name, value in fields.items() if value is not UNSET}
    headers = fields.get("headers", {})
    errors = [
        *checks.type_errors(fields.get("event_types", [])),
        *checks.header_errors(headers),
        *checks.filter_errors(fields.get("filter", Filter())),
    ]
    if isinstance(body, New):
        errors += checks.redacted_errors(headers, set())
        errors += checks.secret_errors(fields.pop("secret"))
    refuse_fields("The subscriber has wrong fields.", errors)
    if "url" in fields:
        checks.check_url(call.context, fields["url"], "/url")
    return fields


async def find(tx: Transaction, call: Call, id_: str | None = None) -> Subscriber:
    """Like `get_own`; Problem 404 also for the subscriber of a `notify_url`."""
    return _require_listed(await get_own(tx, call, Subscriber, id_))


def _require_listed(subscriber: Subscriber) -> Subscriber:
    if subscriber.is_notify:
        raise not_found("subscriber")
    return subscriber


async def get(tx: Transaction, call: Call) -> Subscriber:
    """GET /v1/subscribers/{id}: also the subscriber of a `notify_url`, which is in no list."""
    return await get_own(tx, call, Subscriber)


async def list_(call: Call) -> Answer:
    """GET /v1/subscribers."""
    return await answer_page(call, "sub", Subscriber, read_own_page, subscribers.LIST_SOURCE)


async def update(call: Call) -> Subscriber:
    """PATCH /v1/subscribers/{id}: also pauses, disables and re-enables."""
    fields = _check(call, call.decode(Update))
    held_bytes = len(call.body)
    return await call.database.write(
        _update, call, fields, tenant=call.tenant, held_bytes=held_bytes
    )


async def _update(tx: Transaction, call: Call, fields: Mapping[str, Any]) -> Subscriber:
    old = await lock_own(tx, call, Subscriber)
    if old.is_notify:  # The request for the generation decides everything else.
        errors = [FieldError(f"/{name}", ONLY_STATUS) for name in fields if name != "status"]
        refuse_fields("The subscriber has fields that cannot change.", errors)
    changes = {**fields, "updated_at": tx.now}
    headers = changes.pop("headers", None)
    tx.after_commit(call.context.inbox.reload, old.id)
    _check_headers_follow(old, fields)
    if headers is not None:
        changes["header_names"] = sorted(headers)
        changes["sealed_headers"] = _seal_headers(call, old, headers)
    if fields.get("url", old.url) != old.url:
        changes |= health.NEVER_FAILED  # The old URL has failed, not this one.
    if fields.get("status", old.status) != old.status:
        changes["disabled_reason"] = "manual" if fields["status"] == "disabled" else None
        if fields["status"] == "disabled":
            await replay.end(tx, call.context, old.id)
        elif old.status == "disabled":
            changes |= health.ENABLED_AGAIN
            await _end_rests(tx, call, fields.get("url", old.url))
    new = await subscribers.update(tx, old, **changes)
    if new.status == "disabled" != old.status:
        await health.announce(tx, call.context, new)
    return new


async def _end_rests(tx: Transaction, call: Call, url: str) -> None:
    """End the rests of all lanes to a receiver: a person says that it is well."""
    tenant, origin = call.tenant, parse_target(url).origin
    if await subscribers.end_rests(tx, tenant, origin, tx.now):
        tx.after_commit(call.context.inbox.reload_tenant, tenant, origin)


def _check_headers_follow(old: Subscriber, fields: Mapping[str, Any]) -> None:
    """Problem 422 if stored header values would go to another origin, which could read them."""
    names = old.header_names
    if "headers" in fields:
        names = [name for name, value in fields["headers"].items() if value == REDACTED]
    new_url = fields.get("url", old.url)
    if names and parse_target(new_url).origin != parse_target(old.url).origin:
        errors = [FieldError(json_pointer("headers", name), OTHER_ORIGIN) for name in names]
        refuse_fields("The URL has another origin than before.", errors)


def _seal_headers(call: Call, old: Subscriber, headers: Mapping[str, str]) -> bytes | None:
    """Seal the headers; one that is `[redacted]` keeps the value stored under its name.

    VaultError if that cannot be read: another process may have its secret key.
    """
    vault, names = call.context.vault, {name.lower() for name in old.header_names}
    refuse_fields("A header has no value.", checks.redacted_errors(headers, names))
    stored: dict[str, str] = {}
    if REDACTED in headers.values():  # Other values are taken also if the secret key was lost.
        opened = signing.unseal_headers(vault, old.sealed_headers, old.id)
        stored = {name.lower(): value for name, value in opened.items()}
    values = {n: stored[n.lower()] if v == REDACTED else v for n, v in headers.items()}
    return signing.seal_headers(vault, values, old.id)


async def delete(tx: Transaction, call: Call) -> None:
    """DELETE /v1/subscribers/{id}: its pending deliveries are canceled."""
    old = await lock_own(tx, call, Subscriber)
    await replay.end(tx, call.context, old.id)
    await deliveries.cancel(tx, old.id)  # Its lane cancels further ones.
    await subscribers.delete(tx, old)
    tx.after_commit(call.context.inbox.reload, old.id)


async def get_secret(tx: Transaction, call: Call) -> Answer:
    """GET /v1/subscribers/{id}/secret."""
    subscriber = await find(tx, call)
    assert subscriber.sealed_secrets is not None
    secrets = signing.unseal(call.context.vault, subscriber.sealed_secrets, subscriber.id)
    return answer_secrets(call, secrets)


async def rotate_secret(call: Call) -> Answer:
    """POST /v1/subscribers/{id}/rotate-secret: the old secret signs until the overlap ends."""
    return await answer_rotation(call, _rotate)


async def _rotate(tx: Transaction, call: Call, rotation: Rotation) -> Secrets:
    old = _require_listed(await lock_own(tx, call, Subscriber))
    assert old.sealed_secrets is not None
    is_asymmetric = old.signature == "v1a"
    secrets, sealed = rotate_sealed(
        call, old.sealed_secrets, old.id, rotation, tx.now, asymmetric=is_asymmetric
    )
    await subscribers.update(tx, old, sealed_secrets=sealed, updated_at=tx.now)
    tx.after_commit(call.context.inbox.reload, old.id)
    return secrets


async def get_stats(tx: Transaction, call: Call) -> Answer:
    """GET /v1/subscribers/{id}/stats."""
    return answer(await stats.get(tx, (await get(tx, call)).id))


async def test(call: Call) -> Answer:
    """POST /v1/subscribers/{id}/test: send one `ping` now; 200 with the attempt."""
    subscriber = await call.database.read(get, call)
    try:
        tested = await send_test(call.worker.dispatcher, subscriber)
    except SenderClosed as error:
        detail = "The request may have been stored: the service stops. The test may have been sent."
        raise unavailable(detail) from error
    if tested is None:
        raise not_found("subscriber")
    if isinstance(tested, int):
        headers = {"retry-after": str(tested)}
        raise Problem(429, "too_many_tests", TOO_MANY_TESTS, headers=headers)
    attempt, request = tested
    return answer({"attempt": attempt.view(), "request": request})
