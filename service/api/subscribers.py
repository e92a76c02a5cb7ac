"""Subscribers: create, look at, change, delete; their secrets; a ping to try them."""

import os
from typing import Annotated, Any, Literal

import msgspec

from service.api.call import Answer, Call, listed
from service.api.checks import (
    NO_NUL,
    REDACTED,
    check_url,
    filter_errors,
    header_errors,
    no_value,
    secret_errors,
    type_errors,
)
from service.delivery import health, signing, signing_keys
from service.delivery.attempt import send_test
from service.delivery.retry import DEFAULT_RETRY_SECONDS
from service.model.clock import rfc3339
from service.model.errors import FieldError, Problem, invalid, not_found
from service.model.subscriber import Filter, Subscriber
from service.store import deliveries, events, pages, stats, subscribers
from service.store.database import Transaction

SUBSCRIBERS_MAX = 1_000
OVERLAP_SECONDS = 86_400

Description = Annotated[str, msgspec.Meta(max_length=500, pattern=NO_NUL)]
InFlight = Annotated[int, msgspec.Meta(ge=1, le=100)]
Rate = Annotated[float, msgspec.Meta(ge=0.01, le=1_000)]
Delay = Annotated[int, msgspec.Meta(ge=0, le=604_800)]
Schedule = Annotated[list[Delay], msgspec.Meta(min_length=1, max_length=20)]
Overlap = Annotated[int, msgspec.Meta(ge=0, le=604_800)]
Payload = Literal["full", "thin", "cloudevents"]


class New(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/subscribers."""

    url: str
    description: Description = ""
    event_types: list[str] = []
    filter: Filter = Filter()
    headers: dict[str, str] = {}
    max_in_flight: InFlight = 100
    rate_per_second: Rate | None = None
    retry_schedule_seconds: Schedule = msgspec.field(
        default_factory=lambda: list(DEFAULT_RETRY_SECONDS)
    )
    ordered: bool = False
    payload: Payload = "full"
    signature: Literal["v1", "v1a"] = "v1"
    secret: str | None = None


class Update(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of PATCH /v1/subscribers/{id}: what is left out stays."""

    url: str | msgspec.UnsetType = msgspec.UNSET
    description: Description | msgspec.UnsetType = msgspec.UNSET
    event_types: list[str] | msgspec.UnsetType = msgspec.UNSET
    filter: Filter | msgspec.UnsetType = msgspec.UNSET
    headers: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    status: Literal["active", "paused", "disabled"] | msgspec.UnsetType = msgspec.UNSET
    max_in_flight: InFlight | msgspec.UnsetType = msgspec.UNSET
    rate_per_second: Rate | msgspec.UnsetType | None = msgspec.UNSET
    retry_schedule_seconds: Schedule | msgspec.UnsetType = msgspec.UNSET
    ordered: bool | msgspec.UnsetType = msgspec.UNSET
    payload: Payload | msgspec.UnsetType = msgspec.UNSET


class Rotation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a rotation."""

    secret: str | None = None
    overlap_seconds: Overlap = OVERLAP_SECONDS


async def create(call: Call) -> Answer:
    """POST /v1/subscribers: 201, with the secret this once."""
    new = call.decode(New)
    _check(call, new)
    context = call.context
    secrets = signing_keys.new_secrets(os.urandom, asymmetric=new.signature == "v1a")
    if new.secret is not None:
        secrets = msgspec.structs.replace(secrets, current=new.secret)
    subscriber = Subscriber(
        id=call.resource_id,
        tenant=call.tenant,
        url=new.url,
        description=new.description,
        event_types=new.event_types,
        filter=new.filter,
        header_names=sorted(new.headers),
        sealed_headers=signing_keys.seal_headers(context.vault, new.headers, call.resource_id),
        sealed_secrets=signing_keys.seal(context.vault, secrets, call.resource_id),
        max_in_flight=new.max_in_flight,
        rate_per_second=new.rate_per_second,
        retry_schedule_seconds=new.retry_schedule_seconds,
        ordered=new.ordered,
        payload=new.payload,
        signature=new.signature,
        created_at=context.clock(),
        updated_at=context.clock(),
    )
    await context.database.write(_insert, subscriber)
    return Answer(status=201, content={**subscriber.view(), "secret": secrets.current})


async def _insert(tx: Transaction, new: Subscriber) -> None:
    if await subscribers.count(tx, new.tenant) >= SUBSCRIBERS_MAX:
        raise Problem(409, "conflict", f"A tenant has at most {SUBSCRIBERS_MAX} subscribers.")
    if await subscribers.get(tx, new.id) is not None:
        raise Problem(409, "conflict", "The first request made this subscriber; list them.")
    await subscribers.insert(tx, new)


def _check(call: Call, new: New | Update) -> None:
    """Problem unless the URL may be delivered to and every field makes sense."""
    errors: list[FieldError] = []
    if isinstance(new.event_types, list):
        errors += type_errors(new.event_types)
    if isinstance(new.headers, dict):
        errors += header_errors(new.headers)
    if isinstance(new.filter, Filter):
        errors += filter_errors(new.filter)
    if isinstance(new, New):
        errors += [no_value(name) for name, value in new.headers.items() if value == REDACTED]
        errors += [] if new.secret is None else secret_errors(new.secret)
    if errors:
        raise invalid("The subscriber has wrong fields.", *errors)
    if isinstance(new.url, str):
        check_url(call.context, new.url, "/url")


async def get_one(call: Call) -> Subscriber:
    """The subscriber that the path names, if it is the tenant's; else Problem 404."""
    found = await call.context.database.read(subscribers.get, call.path["id"])
    return _own(call, found)


def _own(call: Call, found: Subscriber | None) -> Subscriber:
    if found is None or found.tenant != call.tenant or found.is_notify:
        raise not_found("subscriber")
    return found


async def get(call: Call) -> Answer:
    """GET /v1/subscribers/{id}."""
    return Answer(content=(await get_one(call)).view())


async def list_(call: Call) -> Answer:
    """GET /v1/subscribers."""
    where = ["tenant = :tenant", "is_notify = 0"]
    rows, more = await call.context.database.read(
        pages.page, pages.SUBSCRIBERS, call.page("sub"), where, {"tenant": call.tenant}
    )
    return listed([subscribers.subscriber(row).view() for row in rows], more=more)


async def update(call: Call) -> Answer:
    """PATCH /v1/subscribers/{id}: also how a person pauses, disables and re-enables."""
    new = call.decode(Update)
    _check(call, new)
    after = await call.context.database.write(_update, call, new)
    return Answer(content=after.view())


async def _update(tx: Transaction, call: Call, new: Update) -> Subscriber:
    old = _own(call, await subscribers.get(tx, call.path["id"]))
    changes: dict[str, Any] = {
        name: value
        for name, value in msgspec.structs.asdict(new).items()
        if value is not msgspec.UNSET and name not in ("headers", "status")
    }
    if isinstance(new.headers, dict):
        changes["header_names"] = sorted(new.headers)
        changes["sealed_headers"] = _reseal_headers(call, old, new.headers)
    if isinstance(new.status, str) and new.status != old.status:
        changes |= _status_changes(old, new.status)
    tx.after_commit(call.context.inbox.reload, old.id)
    after = await subscribers.change(tx, old, **changes, updated_at=tx.now)
    if after.status == "disabled" != old.status:
        await health.announce(tx, call.context, after)
    return after


def _reseal_headers(call: Call, old: Subscriber, given: dict[str, str]) -> bytes | None:
    """`given` sealed; a value that is `[redacted]` stays what is stored under that name."""
    vault = call.context.vault
    stored = signing_keys.unseal_headers(vault, old.sealed_headers, old.id)
    kept = {name.lower(): value for name, value in stored.items()}
    missing = [n for n, v in given.items() if v == REDACTED and n.lower() not in kept]
    if missing:
        raise invalid("A header has no value.", *map(no_value, missing))
    values = {n: kept[n.lower()] if v == REDACTED else v for n, v in given.items()}
    return signing_keys.seal_headers(vault, values, old.id)


def _status_changes(old: Subscriber, status: str) -> dict[str, Any]:
    changes: dict[str, Any] = {"status": status, "disabled_reason": None}
    if status == "disabled":
        changes["disabled_reason"] = "manual"
    elif old.status == "disabled":
        changes |= health.PROBED
    return changes


async def delete(call: Call) -> Answer:
    """DELETE /v1/subscribers/{id}: what it is still owed is canceled."""
    await call.context.database.write(_delete, call)
    return Answer(status=204)


async def _delete(tx: Transaction, call: Call) -> None:
    old = _own(call, await subscribers.get(tx, call.path["id"]))
    await subscribers.delete(tx, old)
    await deliveries.cancel(tx, old.id, deliveries.CANCEL_BATCH)  # Its lane sees to the rest.
    tx.after_commit(call.context.inbox.reload, old.id)


async def secret(call: Call) -> Answer:
    """GET /v1/subscribers/{id}/secret."""
    subscriber = await get_one(call)
    assert subscriber.sealed_secrets is not None
    found = signing_keys.unseal(call.context.vault, subscriber.sealed_secrets, subscriber.id)
    return Answer(content=secrets_view(found, call.context.clock()))


async def rotate(call: Call) -> Answer:
    """POST /v1/subscribers/{id}/rotate-secret: the old one signs beside the new for a while."""
    wanted = rotation(call)
    rotated = await call.context.database.write(_rotate, call, wanted)
    return Answer(content=secrets_view(rotated, call.context.clock()))


async def _rotate(tx: Transaction, call: Call, wanted: Rotation) -> signing_keys.Secrets:
    old = _own(call, await subscribers.get(tx, call.path["id"]))
    assert old.sealed_secrets is not None
    vault = call.context.vault
    rotated = rotate_secrets(signing_keys.unseal(vault, old.sealed_secrets, old.id), wanted, tx.now)
    await subscribers.change(
        tx, old, sealed_secrets=signing_keys.seal(vault, rotated, old.id), updated_at=tx.now
    )
    tx.after_commit(call.context.inbox.reload, old.id)
    return rotated


def rotation(call: Call) -> Rotation:
    """The body of a rotation, its secret checked."""
    wanted = call.decode(Rotation, empty=b"{}")
    if wanted.secret is not None and (errors := secret_errors(wanted.secret)):
        raise invalid("The secret cannot be used.", *errors)
    return wanted


def rotate_secrets(old: signing_keys.Secrets, wanted: Rotation, now: int) -> signing_keys.Secrets:
    """`old` with a new current secret: the given one, or a fresh one."""
    new = wanted.secret or signing.new_secret(os.urandom)
    return old.rotated(new, wanted.overlap_seconds, now)


def secrets_view(of: signing_keys.Secrets, now: int) -> dict[str, Any]:
    """Secrets as the API shows them."""
    live = [previous.expires_at for previous in of.previous if previous.expires_at > now]
    return {
        "secret": of.current,
        "public_key": of.private_key and signing.public_key_of(of.private_key),
        "previous_expires_at": rfc3339(max(live)) if live else None,
    }


async def stats_(call: Call) -> Answer:
    """GET /v1/subscribers/{id}/stats."""
    subscriber = await get_one(call)
    found = await call.context.database.read(stats.get, subscriber.id)
    content = {
        "subscriber_id": subscriber.id,
        "counts": found.counts,
        "success_rate": found.success_rate,
        "latency_ms": {"hour": found.hour, "day": found.day},
        "oldest_undelivered_seconds": found.oldest_undelivered_seconds,
    }
    return Answer(content=content)


async def test(call: Call) -> Answer:
    """POST /v1/subscribers/{id}/test: one `ping` now, answered with the attempt."""
    subscriber = await get_one(call)
    event = await call.context.database.write(_ping, subscriber)
    attempt, request = await send_test(call.context, call.dispatcher.sender, subscriber, event)
    return Answer(content={"attempt": attempt.view(), "request": request})


async def _ping(tx: Transaction, subscriber: Subscriber) -> Any:
    data = {"subscriber_id": subscriber.id}
    return await events.insert(tx, subscriber.tenant, "ping", data, None)
