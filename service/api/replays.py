"""Replays: create, list, get, cancel."""

import re
from typing import Annotated, Literal

import msgspec

from service.api import idempotency, subscribers
from service.api.call import ID, Answer, Call, answer, answer_page, get_own, lock_own, read_own_page
from service.api.checks import EventTypes, Rate, type_errors
from service.api.problem import FieldError, conflict, refuse_fields, subscriber_disabled
from service.delivery import replay as replaying
from service.model.clock import parse_rfc3339
from service.model.replay import Replay
from service.store import pages
from service.store.database import Transaction

Time = Annotated[str, msgspec.Meta(max_length=64)]


class New(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/replays."""

    subscriber_id: str
    since: Time
    until: Time
    event_types: EventTypes = []
    only: Literal["dead", "all"] = "dead"
    dry_run: bool = False
    rate_per_second: Rate | None = None


async def create(call: Call) -> Answer:
    """POST /v1/replays: 202; a dry run only counts, and is done."""
    new, now = call.decode(New), call.context.clock()
    since_at, until_at = _check(new)
    only_dead = new.only == "dead"
    subscriber = await call.database.read(subscribers.find, call, new.subscriber_id)
    replay = Replay(
        id=call.resource_id,
        tenant=call.tenant,
        subscriber_id=new.subscriber_id,
        since_at=since_at,
        until_at=until_at,
        event_types=replaying.event_types(subscriber, new.event_types, only_dead=only_dead),
        only_dead=only_dead,
        rate_per_second=new.rate_per_second,
        dry_run=new.dry_run,
        status="done" if new.dry_run else "running",
        due_at=None if new.dry_run else now,
        created_at=now,
        finished_at=now if new.dry_run else None,
    )
    counted = await replaying.count(call.context, replay, subscriber)
    return await idempotency.create(call, _store, call, counted)


async def _store(tx: Transaction, call: Call, new: Replay) -> Answer:
    started = await replaying.store(tx, call.context, new)
    if started == "subscriber_disabled":
        raise subscriber_disabled()
    if started == "replay_running":
        raise conflict("A replay to this subscriber is running; wait for it or cancel it.")
    return answer(started.view(), 202)


def _check(new: New) -> tuple[int, int]:
    """Return `since` and `until` in milliseconds; Problem 422 with every wrong field."""
    errors = type_errors(new.event_types)
    if not re.fullmatch("sub" + ID, new.subscriber_id):
        errors.append(FieldError("/subscriber_id", "must be the id of a subscriber"))
    times: list[int] = []
    for name, text in (("since", new.since), ("until", new.until)):
        try:
            times.append(parse_rfc3339(text, round_up=True))
        except (ValueError, OverflowError):
            errors.append(FieldError(f"/{name}", "must be an RFC 3339 time"))
    if len(times) == 2 and times[0] >= times[1]:
        errors.append(FieldError("/until", "must be after since"))
    refuse_fields("The replay has wrong fields.", errors)
    return times[0], times[1]


async def get(tx: Transaction, call: Call) -> Replay:
    """GET /v1/replays/{id}."""
    return await get_own(tx, call, Replay)


async def list_(call: Call) -> Answer:
    """GET /v1/replays."""
    return await answer_page(call, "rpl", Replay, read_own_page, pages.Source(table="replays"))


async def cancel(tx: Transaction, call: Call) -> Replay:
    """POST /v1/replays/{id}/cancel: canceling again changes nothing; 409 if it is done."""
    replay = await lock_own(tx, call, Replay)
    if replay.status == "done":
        raise conflict("The replay is done: all its deliveries exist.")
    if replay.status == "running":
        replay = await replaying.cancel(tx, call.context, replay)
    return replay
