"""Rows that cannot be worked, in every kind of due work: everybody else's work goes on."""

import asyncio
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from bench.world import SECRET_KEY
from chaos import load, promises
from chaos.outcome import Outcome
from chaos.plan import Plan, Try, run_tries
from chaos.world import World, open_world
from service.model.clock import now_ms, rfc3339

BROKEN = "broken"  # The tenant of the bad rows.
SUBSCRIBER_URL = "http://127.0.0.1:9/"  # Nothing listens there.
GENERATIONS, QUICK_GENERATIONS, LOAD_SECONDS = 16, 6, 2.0
SETTLE_SECONDS, DUE_SECONDS = 30.0, 2.0
LARGEST = 2**63 - 1
OTHERS_WORK = f"""
SELECT (SELECT count(*) FROM generations
        WHERE status IN ('queued', 'processing') AND tenant <> '{BROKEN}')
     + (SELECT count(*) FROM deliveries WHERE status = 'pending' AND tenant <> '{BROKEN}')
     + (SELECT count(*) FROM replays WHERE status = 'running' AND tenant <> '{BROKEN}') AS count
"""


class Damage(NamedTuple):
    """What makes one row due and unworkable; its parameters are :id, :now and :largest."""

    name: str
    sql: tuple[str, ...]
    table: str = "generations"


WAITING = (
    "UPDATE generations SET status='queued', submission='waiting', submit_at=1, {} WHERE id=:id"
)
OPEN = "UPDATE generations SET status='processing', submission='taken', {} WHERE id=:id"
BODY = "UPDATE generation_bodies SET {} WHERE generation_id=:id"
SUBSCRIBER = "UPDATE subscribers SET {} WHERE id=:id"
CONFIRM = "INSERT OR REPLACE INTO confirmations VALUES (:id, 1)"
DAMAGES = (
    Damage("submit: no JSON", (WAITING.format("task_id=NULL"), BODY.format("input='{'"))),
    Damage("submit: too large", (WAITING.format("task_id=NULL, submit_count=:largest"),)),
    Damage("submit: no model", (WAITING.format("task_id=NULL, model=x'ff'"),)),
    Damage(
        "confirm: no JSON", (OPEN.format("next_poll_at=NULL"), BODY.format("output='{'"), CONFIRM)
    ),
    Damage("confirm: no text", (OPEN.format("task_id=x'ff00'"), CONFIRM)),
    Damage("poll: no JSON", (OPEN.format("next_poll_at=1"), BODY.format("metadata='['"))),
    Damage("poll: no text", (OPEN.format("next_poll_at=1, task_id=x'ff00'"),)),
    Damage("poll: too large", (OPEN.format("next_poll_at=1, poll_count=:largest"),)),
    Damage("poll: no such status", (OPEN.format("next_poll_at=1, route='pigeon'"),)),
    Damage("overdue: no JSON", (OPEN.format("next_poll_at=1, deadline_at=1, event_ids='x'"),)),
    Damage("overdue: too large", (OPEN.format("next_poll_at=1, deadline_at=1, credits=1e300"),)),
    Damage("expire: no JSON", (OPEN.format("next_poll_at=NULL, deadline_at=1, event_ids='x'"),)),
    Damage(
        "expire: no such state", (OPEN.format("next_poll_at=NULL, deadline_at=1, submission=7"),)
    ),
    Damage("attempt: no JSON", ("UPDATE events SET body=x'ff' WHERE generation_id=:id",)),
    Damage(
        "attempt: too large",
        ("UPDATE deliveries SET attempt_count=:largest, due_at=1 WHERE generation_id=:id",),
    ),
    Damage("lane: no secret", (SUBSCRIBER.format("sealed_secrets=x'00'"),), "subscribers"),
    Damage("lane: no schedule", (SUBSCRIBER.format("retry_schedule_seconds='x'"),), "subscribers"),
    Damage("lane: no filter", (SUBSCRIBER.format("filter='{'"),), "subscribers"),
    Damage("lane: no URL", (SUBSCRIBER.format("url=x'ff'"),), "subscribers"),
    Damage("lane: no headers", (SUBSCRIBER.format("sealed_headers=x'00'"),), "subscribers"),
    Damage(
        "replay: no types",
        ("UPDATE replays SET event_types='x', due_at=1 WHERE id=:id",),
        "replays",
    ),
    Damage(
        "replay: too large", ("UPDATE replays SET done=:largest, due_at=1 WHERE id=:id",), "replays"
    ),
    Damage(
        "tenant: no secret", ("UPDATE tenants SET sealed_secrets=x'00' WHERE id=:id",), "tenants"
    ),
)
# What shows the other processes of a database that subscribers have changed.
REVISE = "UPDATE revisions SET number = number + 1 WHERE noun = 'subscribers'"
DELETE = (
    *(
        f"DELETE FROM {t} WHERE tenant = :t"
        for t in ("events", "deliveries", "replays", "callbacks")
    ),
    "DELETE FROM confirmations WHERE generation_id IN (SELECT id FROM generations WHERE tenant=:t)",
    "DELETE FROM generations WHERE tenant = :t",
    "DELETE FROM subscribers WHERE tenant = :t",
    "DELETE FROM generation_bodies WHERE generation_id NOT IN (SELECT id FROM generations)",
    "DELETE FROM callback_bodies WHERE callback_id NOT IN (SELECT id FROM callbacks)",
    "DELETE FROM attempts WHERE delivery_id NOT IN (SELECT id FROM deliveries)",
)


async def run(plan: Plan) -> Outcome:
    """Damage one kind of row in each world; in a quick run all kinds in one world."""
    tries = [_new_try(damage.name, (damage,), quick=plan.quick) for damage in DAMAGES]
    together = _new_try("all together", DAMAGES, quick=plan.quick)
    return await run_tries(plan, [together] if plan.quick and not plan.only else [together, *tries])


def _new_try(name: str, damages: tuple[Damage, ...], *, quick: bool) -> Try:
    async def run_try(folder: Path, seed: str, repeat: str) -> Outcome:
        return await damage(folder, seed, repeat, damages, quick=quick)

    return Try(name, run_try)


async def damage(
    folder: Path, seed: str, repeat: str, damages: tuple[Damage, ...], *, quick: bool
) -> Outcome:
    """Damage rows of one tenant while the service runs, and start it again over them."""
    outcome, count = Outcome(), QUICK_GENERATIONS if quick else GENERATIONS
    async with open_world(folder, seed) as world:
        world.provider.weights = {"taken": 1}
        world.provider.forged_share = 0.0
        await world.start()
        await _damage_rows(world, damages)
        outcome.faults.update({each.name: 1 for each in damages})
        await _check_others(world, outcome, repeat, count, first=0)
        await promises.check_stop(world, outcome, repeat)
        # A new secret key, so that every sealed secret is read at the start.
        await world.start(GENHOOK_SECRET_KEYS=f"{SECRET_KEY},{'another-' * 5}")
        await _check_others(world, outcome, repeat, count, first=count)
        await world.stop()
        _execute(world, DELETE, t=BROKEN)
        own = {body for body in world.provider.acknowledged if f"-{BROKEN}-".encode() in body}
        world.provider.acknowledged -= own
        for prompt in [each for each in world.provider.creates if each.startswith(BROKEN)]:
            del world.provider.creates[prompt]  # A damage has made them wait again.
        promises.check_world(world, outcome, repeat)
    return outcome


async def _damage_rows(world: World, damages: tuple[Damage, ...]) -> None:
    """Have a row of another tenant for each kind, then damage it."""
    body = {"name": BROKEN, "tenant": BROKEN, "scopes": ["submit", "read", "manage"]}
    key = (await load.request(world, "POST", "/v1/keys", json=body)).json()["key"]
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(
        base_url=world.api.base_url, headers=headers, trust_env=False, timeout=30
    ) as api:
        now = now_ms()
        await _create(api, "subscribers", url=f"{SUBSCRIBER_URL}first")
        for number, each in enumerate(damages):
            new = {"model": "imagen4-fast", "input": {"prompt": f"{BROKEN}-{number}"}}
            id_ = await _create(api, "generations", **new)
            if each.table in ("subscribers", "replays"):
                id_ = await _create(api, "subscribers", url=f"{SUBSCRIBER_URL}{number}")
            if each.table == "replays":
                window = {"since": rfc3339(now - 60_000), "until": rfc3339(now + 60_000)}
                more = {"subscriber_id": id_, "only": "all", "rate_per_second": 0.01, **window}
                id_ = await _create(api, "replays", **more)
            if each.table == "tenants":
                id_ = BROKEN
            _execute(world, (*each.sql, REVISE), id=id_, now=now, largest=LARGEST)
    await asyncio.sleep(DUE_SECONDS)


async def _create(api: httpx.AsyncClient, what: str, **body: Any) -> str:
    answer = await api.post(f"/v1/{what}", json=body)
    assert answer.is_success, answer.text
    id_: str = answer.json()["id"]
    return id_


def _execute(world: World, statements: tuple[str, ...], **values: Any) -> None:
    with closing(sqlite3.connect(world.path, timeout=10)) as file, file:
        for sql in statements:
            file.execute(sql, values)


async def _check_others(
    world: World, outcome: Outcome, repeat: str, count: int, *, first: int
) -> None:
    """Check that the work of all other tenants ends in time, and that the process is healthy."""
    await world.run_beside(load.run(world, count, LOAD_SECONDS, first))
    await world.provider.settle()
    await promises.wait_until_done(world, SETTLE_SECONDS, OTHERS_WORK)
    left = await promises.count_open(world, OTHERS_WORK)
    detail = f"{left} rows are left; {_failed_step(world)}"
    outcome.check("everybody else's work goes on", holds=not left, detail=detail, repeat=repeat)
    ready = 0
    outcome.check("the process lives", holds=world.is_alive, detail=world.log_end(), repeat=repeat)
    with suppress(load.NoAnswerError):  # It may be busy for a moment.
        ready = (await load.request(world, "GET", "/readyz")).status_code
    outcome.check("it is ready", holds=ready == 200, detail=f"{ready}", repeat=repeat)
    line = _failed_step(world)
    outcome.check("one row stops no loop", holds=not line, detail=line, repeat=repeat)


def _failed_step(world: World) -> str:
    """Return the first line of the log that shows a loop that had to back off."""
    log = (world.folder / "log").read_text("utf-8", "replace").splitlines()
    return next((line[:300] for line in log if "worker.step_failed" in line), "")
