"""Replays: events that are stored, sent again; counted first where that is all that is wanted."""

import re
from typing import Annotated, Literal

import msgspec

from service.api.call import Answer, Call, listed
from service.api.checks import type_errors
from service.api.problem import FieldError, Problem, invalid, not_found
from service.api.subscribers import Rate
from service.delivery import replay as replaying
from service.model.clock import parse_rfc3339
from service.model.replay import Replay
from service.model.subscriber import Subscriber
from service.store import pages, replays, subscribers
from service.store.database import Transaction

_SUBSCRIBER_ID = re.compile(r"sub_[0-9a-f]{32}")
_REFUSALS = {
    "subscriber_disabled": (
        "subscriber_disabled",
        "The subscriber is disabled; enable it first.",
    ),
    "replay_running": (
        "conflict",
        "A replay to this subscriber is running; wait for it or cancel it.",
    ),
}
Time = Annotated[str, msgspec.Meta(max_length=64)]


class New(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/replays."""

    subscriber_id: str
    since: Time
    until: Time
    event_types: list[str] = []
    only: Literal["dead", "all"] = "dead"
    dry_run: bool = False
    rate_per_second: Rate | None = None


async def create(call: Call) -> Answer:
    """POST /v1/replays: 202; a dry run is done at once."""
    new = call.decode(New)
    since_at, until_at = _checked(new)
    subscriber = await call.context.database.read(_subscriber, call, new.subscriber_id)
    now = call.context.clock()
    replay = Replay(
        id=call.resource_id,
        tenant=call.tenant,
        subscriber_id=new.subscriber_id,
        since_at=since_at,
        until_at=until_at,
        event_types=replaying.event_types(subscriber, new.event_types),
        only_dead=new.only == "dead",
        rate_per_second=new.rate_per_second,
        dry_run=new.dry_run,
        status="done" if new.dry_run else "running",
        total=0,
        cursor=0,
        last_seq=0,
        due_at=None if new.dry_run else now,
        created_at=now,
        finished_at=now if new.dry_run else None,
    )
    started = await replaying.start(call.context, replay, subscriber)
    if not isinstance(started, Replay):
        raise Problem(409, *_REFUSALS[started])
    return Answer(status=202, content=started.view())


async def _subscriber(tx: Transaction, call: Call, subscriber_id: str) -> Subscriber:
    found = await subscribers.get(tx, subscriber_id)
    if found is None or found.tenant != call.tenant or found.is_notify:
        raise not_found("subscriber")
    return found


def _checked(new: New) -> tuple[int, int]:
    """The span in milliseconds; Problem 422 with every field that is wrong."""
    errors: list[FieldError] = type_errors(new.event_types)
    if not _SUBSCRIBER_ID.fullmatch(new.subscriber_id):
        errors.append(FieldError("/subscriber_id", "must be the id of a subscriber"))
    times: list[int] = []
    for name, text in (("since", new.since), ("until", new.until)):
        try:
            times.append(parse_rfc3339(text))
        except (ValueError, OverflowError):
            errors.append(FieldError(f"/{name}", "must be an RFC 3339 time"))
    if len(times) == 2 and times[0] >= times[1]:
        errors.append(FieldError("/until", "must be after since"))
    if errors:
        raise invalid("The replay has wrong fields.", *errors)
    return times[0], times[1]


def _own(call: Call, found: Replay | None) -> Replay:
    if found is None or found.tenant != call.tenant:
        raise not_found("replay")
    return found


async def get(call: Call) -> Answer:
    """GET /v1/replays/{id}."""
    found = await call.context.database.read(replays.get, call.path["id"])
    return Answer(content=_own(call, found).view())


async def list_(call: Call) -> Answer:
    """GET /v1/replays."""
    rows, more = await call.context.database.read(
        pages.page, pages.REPLAYS, call.page("rpl"), ["tenant = :tenant"], {"tenant": call.tenant}
    )
    return listed([replays.replay(row).view() for row in rows], more=more)


async def cancel(call: Call) -> Answer:
    """POST /v1/replays/{id}/cancel: once is as good as twice; 409 if it is done."""
    canceled = await call.context.database.write(_cancel, call)
    return Answer(content=canceled.view())


async def _cancel(tx: Transaction, call: Call) -> Replay:
    replay = _own(call, await replays.get(tx, call.path["id"]))
    if replay.status == "done":
        raise Problem(409, "conflict", "The replay has made all its deliveries already.")
    if replay.status == "canceled":
        return replay
    return await replaying.cancel(tx, call.context, replay)
