"""What one process does while another one stops within a transaction."""

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import httpx

from service.delivery.attempt import attempt, read_recipient
from service.delivery.health import _record_with_health
from service.delivery.replay import _run_batch
from service.generations.deadlines import expire
from service.generations.submit import _claim_due
from service.model.attempt import Attempt
from service.store import deliveries, poll_rate, retention, sign_ins
from tests.harness import Harness, success_report
from tests.overlaps.world import NOTIFY_URL, Act

SWEPT = (
    *("idempotency_delete_old", "rests_delete_old", "deliveries_old", "events_old"),
    *("generations_old", "subscribers_notify_old"),
)
_NEW = {"model": "imagen4", "input": {"prompt": "a small harbour"}}
_ASYNC = {"prefer": "respond-async"}
_REPLAY = {"since": "2020-01-01T00:00:00Z", "until": "2100-01-01T00:00:00Z", "only": "all"}


def _call(method: str, path: str, body: Any = None, /, **headers: str) -> Act:
    async def act(world: Harness, names: Mapping[str, str]) -> httpx.Response:
        content = {} if body is None else {"json": _fill(body, names)}
        return await world.client.request(method, path.format(**names), headers=headers, **content)

    return act


def _fill(body: Any, names: Mapping[str, str]) -> Any:
    return {k: v.format(**names) if isinstance(v, str) else v for k, v in body.items()}


def _call_back(name: str, body: Any) -> Act:
    async def act(world: Harness, names: Mapping[str, str]) -> httpx.Response:
        return await world.anonymous.post(names[f"{name}_callback"], json=body)

    return act


async def _step(world: Harness, names: Mapping[str, str]) -> int:
    """Run the next step of a replay, which the process with its shard does."""
    context = world.app.context
    return await context.database.write(_run_batch, context, names["replay"])


async def _expire(world: Harness, names: Mapping[str, str]) -> None:
    context = world.app.context
    await context.database.write(expire, context, names["lost"])


async def _claim(world: Harness, names: Mapping[str, str]) -> list[str]:
    """Take a submission that is due, but do not send it."""
    return [*await world.app.context.database.write(_claim_due, [names["waiting"]])]


async def _take(world: Harness, _names: Mapping[str, str]) -> int:
    """Take one of two polls a second."""
    return await world.app.context.database.write(poll_rate.take, 1, 2.0)


def _attempt(status: int) -> Act:
    async def act(world: Harness, names: Mapping[str, str]) -> None:
        """Send what is pending, and record the answer with the health of the subscriber."""
        context, id_ = world.app.context, names["subscriber"]
        database = context.database
        recipient = await database.read(read_recipient, context.vault, id_)
        pending = await database.read(deliveries.fetch_due, id_, 1, "retries", False, frozenset())
        if recipient is not None and pending[0]:
            world.subscribers.answers[recipient.subscriber.url].append(status)
            [due] = pending[0]
            result = await attempt(context, world.subscribers, recipient, due)
            await database.write(_record_with_health, context, result)

    return act


def _sweep_of(name: str) -> Act:
    async def act(world: Harness, _names: Mapping[str, str]) -> None:
        """Delete what is older than 30 days by one statement."""
        database = world.app.context.database
        for stage in await retention._stages(database, 30, world.clock()):
            if isinstance(stage, partial) and stage.args[0] == name:
                await database.write(stage, "")

    return act


async def _record_again(world: Harness, names: Mapping[str, str]) -> None:
    """Record an attempt that is recorded already, as when the answer to its COMMIT was lost."""
    first = Attempt(
        id="att_" + "0" * 32,
        delivery_id=names["pending"],
        number=1,
        trigger="scheduled",
        started_at=world.clock(),
        duration_ms=1,
        status_code=200,
        error_code=None,
        error_message=None,
        response_headers=[],
        response_body=b"",
    )
    record = deliveries.AttemptRecord(
        tenant="default",
        subscriber_id=names["subscriber"],
        generation_id=names["ended"],
        ordered=False,
        status="delivered",
        due_at=None,
        delivered_at=world.clock(),
        attempt=first,
    )
    await world.app.context.database.write(deliveries.record_attempts, [record])


async def _sign_in(world: Harness, _names: Mapping[str, str]) -> None:
    await world.app.context.database.write(sign_ins.begin, os.urandom(16), b"key")


async def sweep(world: Harness, _names: Mapping[str, str]) -> None:
    """Delete what is older than 30 days, in every table."""
    database, now = world.app.context.database, world.clock()
    for stage in await retention._stages(database, 30, now):
        after: str | None = ""
        while after is not None:
            _, after = await database.write(stage, after)


# Each is one unit, apart from the submission that follows a new generation.
SINGLE: dict[str, Act] = {
    "a callback of an open one": _call_back("open", success_report("task3")),
    "a callback of progress": _call_back("open", {"task_id": "task3", "status": "processing"}),
    "a callback that names another task": _call_back("open", success_report("task1")),
    "a callback of one that ended": _call_back("ended", success_report("task1")),
    "a callback of a lost one": _call_back("lost", success_report("task9")),
    "a callback of a waiting one": _call_back("waiting", success_report("task9")),
    "an unreadable callback": _call_back("open", "hello"),
    "cancel": _call("POST", "/v1/generations/{open}/cancel"),
    "cancel a waiting one": _call("POST", "/v1/generations/{waiting}/cancel"),
    "erase": _call("DELETE", "/v1/generations/{ended}"),
    "erase one with a notify_url": _call("DELETE", "/v1/generations/{noticed}"),
    "create": _call("POST", "/v1/generations", {**_NEW, "metadata": {"a": "b"}}, **_ASYNC),
    "create once": _call(
        "POST", "/v1/generations", _NEW, **_ASYNC, **{"idempotency-key": "the-key"}
    ),
    "create with a notify_url": _call(
        "POST", "/v1/generations", {**_NEW, "notify_url": NOTIFY_URL}, **_ASYNC
    ),
    "create with a new notify_url": _call(
        "POST", "/v1/generations", {**_NEW, "notify_url": f"{NOTIFY_URL}/new"}, **_ASYNC
    ),
    "retry a delivery": _call("POST", "/v1/deliveries/{delivery}/retry"),
    "retry a pending delivery": _call("POST", "/v1/deliveries/{pending}/retry"),
    "subscribe": _call("POST", "/v1/subscribers", {"url": "http://127.0.0.1:7/new"}),
    "pause": _call("PATCH", "/v1/subscribers/{subscriber}", {"status": "paused"}),
    "disable": _call("PATCH", "/v1/subscribers/{subscriber}", {"status": "disabled"}),
    "enable": _call("PATCH", "/v1/subscribers/{other}", {"status": "active"}),
    "describe": _call("PATCH", "/v1/subscribers/{subscriber}", {"description": "another"}),
    "unsubscribe": _call("DELETE", "/v1/subscribers/{subscriber}"),
    "rotate": _call("POST", "/v1/subscribers/{subscriber}/rotate-secret"),
    "rotate the tenant's": _call("POST", "/v1/signing-secret/rotate"),
    "replay": _call("POST", "/v1/replays", {**_REPLAY, "subscriber_id": "{subscriber}"}),
    "replay step": _step,
    "cancel a replay": _call("POST", "/v1/replays/{replay}/cancel"),
    "expire": _expire,
    "claim": _claim,
    "take": _take,
    "record again": _record_again,
    "sign in": _sign_in,
    **{f"sweep {name}": _sweep_of(name) for name in SWEPT},
}
# These have several units, or a request between what they read and what they store.
ACTS: dict[str, Act] = {
    **SINGLE,
    "ask": _call("POST", "/v1/generations/{open}/refresh"),
    "create and wait": _call("POST", "/v1/generations", _NEW),
    "an attempt that delivers": _attempt(200),
    "an attempt that fails": _attempt(500),
    "an attempt that is throttled": _attempt(429),
    "an attempt that disables": _attempt(410),
    "sweep": sweep,
}
