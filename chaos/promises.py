"""Checks the promises by a world's files, and by what upstream and subscribers have noted."""

import asyncio
import math
import re
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from chaos.outcome import Outcome
from chaos.provider import FORGED_HOST, SURELY_NOT_TAKEN
from chaos.world import World
from service.model.generation import TERMINAL

SETTLE_SECONDS = 45.0
FILE = re.compile(r"https://cdn\.example/task-\d+-([\w-]+)\.png")  # See `provider.Task.data`.
UPSTREAM_STATUS = {"succeeded": "completed", "failed": "failed"}
OPEN_WORK = """
SELECT (SELECT count(*) FROM generations WHERE status IN ('queued', 'processing'))
     + (SELECT count(*) FROM deliveries WHERE status = 'pending')
     + (SELECT count(*) FROM replays WHERE status = 'running')
     + (SELECT count(*) FROM confirmations)
     -- An old one whose events are deleted, and which is next.
     + (SELECT count(*) FROM generations g WHERE status NOT IN ('queued', 'processing')
        AND NOT EXISTS (SELECT 1 FROM events e WHERE e.generation_id = g.id)) AS count
"""


@dataclass
class Snapshot:
    """The attempts of every delivery that a dead service had recorded as delivered, by its id."""

    delivered: dict[str, int] = field(default_factory=dict)
    phase: int = 0


def check_files(world: World, path: Path, outcome: Outcome, repeat: str) -> Snapshot:
    """Check the copied files of a service that was just killed."""
    [row] = world.rows("PRAGMA integrity_check", path)
    is_ok = row == {"integrity_check": "ok"}
    outcome.check("1 stored", holds=is_ok, detail=f"{row}", repeat=repeat)
    _check_acknowledged(world, path, outcome, repeat)
    rows = world.rows("SELECT id, attempt_count FROM deliveries WHERE status = 'delivered'", path)
    return Snapshot({row["id"]: row["attempt_count"] for row in rows}, world.subscribers.phase)


async def wait_until_done(
    world: World, seconds: float = SETTLE_SECONDS, open_work: str = OPEN_WORK
) -> bool:
    """Wait until no work is left; return False if in so many seconds it did not become less.

    A busy machine takes longer for all of it, but some of it ends meanwhile. What upstream has not
    said yet may make new work, even of a generation that has timed out.
    """
    least, ends_at = math.inf, 0.0
    has_more = open_work is OPEN_WORK
    while (count := await count_open(world, open_work)) or (has_more and world.provider.is_busy):
        if count < least:
            least, ends_at = count, time.monotonic() + seconds
        if time.monotonic() >= ends_at:
            return False
        await asyncio.sleep(0.2)
    return True


async def count_open(world: World, open_work: str = OPEN_WORK) -> int:
    """Count the rows that are not done, in a thread: other tries run in this loop."""
    [row] = await asyncio.to_thread(world.rows, open_work) or [{"count": 0}]
    return int(row["count"])


async def check_stop(world: World, outcome: Outcome, repeat: str) -> None:
    """Stop the service, and check that it ends in order."""
    status = await world.stop()
    outcome.check(
        "the service stops by SIGTERM", holds=status == 0, detail=f"status {status}", repeat=repeat
    )


def check_world(
    world: World, outcome: Outcome, repeat: str, snapshot: Snapshot | None = None
) -> None:
    """Check every promise that shows in a world without open work."""
    _check_acknowledged(world, world.path, outcome, repeat)
    _check_generations(world, outcome, repeat)
    _check_events(world, outcome, repeat)
    _check_creates(world, outcome, repeat)
    _check_deliveries(world, outcome, repeat)
    _check_tables(world, outcome, repeat)
    if snapshot is not None:
        check_not_repeated(world, snapshot, outcome, repeat)
    for text in (*world.provider.wrong_answers, *world.wrong_answers):
        outcome.check("4 every answer is right", holds=False, detail=text, repeat=repeat)


def _check_acknowledged(world: World, path: Path, outcome: Outcome, repeat: str) -> None:
    rows = world.rows("SELECT body FROM callback_bodies", path)
    missing = world.provider.acknowledged - {row["body"] for row in rows}
    outcome.check(
        "1 stored before acknowledged",
        holds=not missing,
        detail=f"{len(missing)} acknowledged and not on disk: {sorted(missing)[:2]}",
        repeat=repeat,
    )


def _check_generations(world: World, outcome: Outcome, repeat: str) -> None:
    rows = world.rows("SELECT id, status, submission, task_id FROM generations")
    known = {row["id"] for row in rows}
    lost = [id_ for id_ in world.accepted.values() if id_ not in known]
    outcome.check("3 nothing is lost", holds=not lost, detail=f"lost: {lost[:3]}", repeat=repeat)
    open_ = [row for row in rows if row["status"] not in TERMINAL]
    detail = f"open: {open_[:3]}"
    outcome.check("3 every generation ends", holds=not open_, detail=detail, repeat=repeat)
    pending = world.rows("SELECT id, due_at FROM deliveries WHERE status = 'pending'")
    outcome.check(
        "3 every delivery ends", holds=not pending, detail=f"pending: {pending[:3]}", repeat=repeat
    )


def _check_events(world: World, outcome: Outcome, repeat: str) -> None:
    """Check that each generation has one terminal event, or a late one after `timed_out`."""
    types: defaultdict[str, list[str]] = defaultdict(list)
    conflicts = set()  # Upstream told of them what it told of another task: they failed by that.
    rows = world.rows(
        "SELECT generation_id, type, instr(body, '\"task_id_conflict\"') AS conflict FROM events "
        "WHERE generation_id NOT NULL"
    )
    for row in rows:
        conflicts |= {row["generation_id"]} if row["conflict"] else set()
        types[row["generation_id"]].append(row["type"].removeprefix("generation."))
    wrong = []
    for row in world.rows("SELECT id, status FROM generations"):
        terminal = [word for word in types[row["id"]] if word != "submitted"]
        expected = [row["status"]]
        is_repeated = len(set(terminal)) != len(terminal)
        if terminal not in (expected, ["timed_out", *expected]) or is_repeated:
            wrong.append((row["id"], row["status"], types[row["id"]]))
        if types[row["id"]].count("submitted") > 1:
            wrong.append((row["id"], row["status"], types[row["id"]]))
    outcome.check("2 one outcome", holds=not wrong, detail=f"{wrong[:3]}", repeat=repeat)
    tasks = {task.prompt: task for task in world.provider.tasks.values()}
    prompts = {id_: prompt for prompt, id_ in world.accepted.items()}
    unreported = [
        (id_, words)
        for id_, words in types.items()
        if id_ not in conflicts
        and (task := tasks.get(prompts.get(id_, "")))
        and not {UPSTREAM_STATUS[word] for word in words if word in UPSTREAM_STATUS}
        <= task.reported
    ]
    detail = f"{unreported[:3]}"
    outcome.check("4 upstream reported it", holds=not unreported, detail=detail, repeat=repeat)
    strange = [
        (row["generation_id"], urls)
        for row in world.rows("SELECT generation_id, CAST(body AS TEXT) AS body FROM events")
        if (prompt := prompts.get(row["generation_id"]))
        and (urls := [url for url in FILE.findall(row["body"]) if url != prompt])
    ]
    detail = f"{strange[:3]}"
    outcome.check("4 no result of another task", holds=not strange, detail=detail, repeat=repeat)
    forged = world.rows(f"SELECT id FROM events WHERE instr(body, '{FORGED_HOST}')")
    outcome.check(
        "4 nothing forged is published", holds=not forged, detail=f"{forged[:3]}", repeat=repeat
    )


def _check_creates(world: World, outcome: Outcome, repeat: str) -> None:
    twice = {
        prompt: outcomes
        for prompt, outcomes in world.provider.creates.items()
        if any(outcome not in SURELY_NOT_TAKEN for outcome in outcomes[:-1])
    }
    outcome.check(
        "5 never charged twice", holds=not twice, detail=f"sent again: {twice}", repeat=repeat
    )


def _check_deliveries(world: World, outcome: Outcome, repeat: str) -> None:
    """Check that every subscriber received its events, each with a signature and one body."""
    received: defaultdict[str, set[str]] = defaultdict(set)
    for receipt in world.subscribers.receipts:
        if receipt.status in (200, 204):
            received[receipt.name].add(receipt.webhook_id)
    rows = world.rows(
        "SELECT s.url, d.event_id, d.event_type, d.status FROM deliveries d "
        "JOIN subscribers s ON s.id = d.subscriber_id"
    )
    missed = [
        row
        for row in rows
        if row["status"] == "delivered"
        and (name := row["url"].rpartition("/")[2]) in world.subscribers.secrets
        and row["event_id"] not in received[name]
    ]
    outcome.check(
        "3 delivered means received", holds=not missed, detail=f"{missed[:3]}", repeat=repeat
    )
    events = {
        row["id"] for row in world.rows("SELECT id FROM events WHERE type LIKE 'generation.%'")
    }
    for name in ("healthy", "ordered"):
        absent = events - received[name]
        outcome.check(
            "3 every event reaches its subscriber",
            holds=not absent,
            detail=f"{name} misses {len(absent)}: {sorted(absent)[:3]}",
            repeat=repeat,
        )
    wrong = world.subscribers.wrong
    outcome.check(
        "3 signed, one id one body", holds=not wrong, detail=f"{wrong[:3]}", repeat=repeat
    )


def _check_tables(world: World, outcome: Outcome, repeat: str) -> None:
    """Check that the tables agree with each other."""
    for name, sql in ORPHANS.items():
        [row] = world.rows(sql)
        outcome.check(
            "2 no unit is half stored",
            holds=row["n"] == 0,
            detail=f"{row['n']} {name}",
            repeat=repeat,
        )


ORPHANS = {
    "bodies without a callback": "SELECT count(*) AS n FROM callback_bodies "
    "WHERE callback_id NOT IN (SELECT id FROM callbacks)",
    "callbacks without a body": "SELECT count(*) AS n FROM callbacks "
    "WHERE id NOT IN (SELECT callback_id FROM callback_bodies)",
    "deliveries without an event": "SELECT count(*) AS n FROM deliveries "
    "WHERE event_id NOT IN (SELECT id FROM events)",
    "attempts without a delivery": "SELECT count(*) AS n FROM attempts "
    "WHERE delivery_id NOT IN (SELECT id FROM deliveries)",
    "generations without a body": "SELECT count(*) AS n FROM generations "
    "WHERE id NOT IN (SELECT generation_id FROM generation_bodies)",
    "attempts that are not counted": "SELECT count(*) AS n FROM deliveries d WHERE attempt_count "
    "!= (SELECT count(*) FROM attempts a WHERE a.delivery_id = d.id)",
}


def list_pings(world: World) -> set[str]:
    """Return the ids of the tests. One is sent once, but its record may be refused as too late."""
    return {row["id"] for row in world.rows("SELECT id FROM events WHERE type = 'ping'")}


def check_not_repeated(world: World, snapshot: Snapshot, outcome: Outcome, repeat: str) -> None:
    """Check that a crash repeated no recorded delivery, and no attempt more often than recorded."""
    rows = world.rows("SELECT id, attempt_count FROM deliveries")
    repeated = [
        row["id"]
        for row in rows
        if row["id"] in snapshot.delivered and row["attempt_count"] != snapshot.delivered[row["id"]]
    ]
    outcome.check(
        "3 nothing delivered is sent again",
        holds=not repeated,
        detail=f"{repeated[:3]}",
        repeat=repeat,
    )
    attempted = Counter(
        (row["url"].rpartition("/")[2], row["event_id"])
        for row in world.rows(
            "SELECT s.url, d.event_id, d.id, a.number FROM attempts a "
            "JOIN deliveries d ON d.id = a.delivery_id JOIN subscribers s ON s.id = d.subscriber_id"
        )
        if row["number"] > snapshot.delivered.get(row["id"], 0)
    )
    pings = list_pings(world)
    answered = Counter(
        (receipt.name, receipt.webhook_id)
        for receipt in world.subscribers.receipts
        if receipt.phase > snapshot.phase and receipt.status
    )
    storm = {key: n for key, n in answered.items() if n > (attempted[key] or key[1] in pings)}
    outcome.check("3 no storm after a crash", holds=not storm, detail=f"{storm}", repeat=repeat)
