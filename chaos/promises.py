"""What must be true of a world once it has come to rest, by its files and by what others saw."""

import asyncio
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from chaos.outcome import Outcome
from chaos.provider import FORGED_HOST, SURE_NOT_TAKEN
from chaos.world import World
from service.model.generation import TERMINAL

SETTLE_SECONDS = 45.0
ENDS = {"succeeded": "completed", "failed": "failed"}
OPEN_WORK = """
SELECT (SELECT count(*) FROM generations WHERE status IN ('queued', 'processing'))
     + (SELECT count(*) FROM deliveries WHERE status = 'pending')
     + (SELECT count(*) FROM replays WHERE status = 'running')
     + (SELECT count(*) FROM confirmations) AS count
"""


@dataclass
class Before:
    """What a dead service's files said: what is recorded as delivered, and by how many attempts."""

    delivered: dict[str, int] = field(default_factory=dict)
    phase: int = 0


def look(world: World, path: Path, judged: Outcome, again: str) -> Before:
    """Check the copied files of a service that was just killed."""
    [found] = world.rows("PRAGMA integrity_check", path)
    judged.check("1 stored", holds=found == {"integrity_check": "ok"}, seen=f"{found}", again=again)
    _acknowledged(world, path, judged, again)
    rows = world.rows("SELECT id, attempt_count FROM deliveries WHERE status = 'delivered'", path)
    return Before({row["id"]: row["attempt_count"] for row in rows}, world.audience.phase)


async def settle(world: World, seconds: float = SETTLE_SECONDS) -> bool:
    """Wait until nothing is left to do; False if that does not come."""
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        if world.rows(OPEN_WORK)[0]["count"] == 0:
            return True
        await asyncio.sleep(0.2)
    return False


def judge(world: World, judged: Outcome, again: str, before: Before | None = None) -> None:
    """Every promise of design.md section 1 that a world at rest can show."""
    _acknowledged(world, world.path, judged, again)
    _generations(world, judged, again)
    _events(world, judged, again)
    _creates(world, judged, again)
    _deliveries(world, judged, again)
    _books(world, judged, again)
    if before is not None:
        not_again(world, before, judged, again)
    for said in (*world.provider.wrong_answers, *world.strange):
        judged.check("4 nothing unconfirmed, nothing refused", holds=False, seen=said, again=again)


def _acknowledged(world: World, path: Path, judged: Outcome, again: str) -> None:
    rows = world.rows("SELECT body FROM callback_bodies", path)
    missing = world.provider.acknowledged - {row["body"] for row in rows}
    judged.check(
        "1 stored before acknowledged",
        holds=not missing,
        seen=f"{len(missing)} acknowledged and not on disk: {sorted(missing)[:2]}",
        again=again,
    )


def _generations(world: World, judged: Outcome, again: str) -> None:
    rows = world.rows("SELECT id, status, submission, task_id FROM generations")
    known = {row["id"] for row in rows}
    lost = [one for one in world.accepted.values() if one not in known]
    judged.check("3 nothing is forgotten", holds=not lost, seen=f"gone: {lost[:3]}", again=again)
    still = [row for row in rows if row["status"] not in TERMINAL]
    judged.check("3 every generation ends", holds=not still, seen=f"open: {still[:3]}", again=again)
    pending = world.rows("SELECT id, due_at FROM deliveries WHERE status = 'pending'")
    judged.check(
        "3 every delivery ends", holds=not pending, seen=f"pending: {pending[:3]}", again=again
    )


def _events(world: World, judged: Outcome, again: str) -> None:
    """One terminal event each; after `timed_out`, a late result may bring one more."""
    told: defaultdict[str, list[str]] = defaultdict(list)
    rows = world.rows("SELECT generation_id, type FROM events WHERE generation_id NOT NULL")
    for row in rows:
        told[row["generation_id"]].append(row["type"].removeprefix("generation."))
    wrong = []
    for row in world.rows("SELECT id, status FROM generations"):
        ends = [word for word in told[row["id"]] if word != "submitted"]
        expected = [row["status"]]
        if ends not in (expected, ["timed_out", *expected]) or len(set(ends)) != len(ends):
            wrong.append((row["id"], row["status"], told[row["id"]]))
        if told[row["id"]].count("submitted") > 1:
            wrong.append((row["id"], row["status"], told[row["id"]]))
    judged.check("2 one outcome", holds=not wrong, seen=f"{wrong[:3]}", again=again)
    truth = {task.prompt: task for task in world.provider.tasks.values()}
    names = {id_: prompt for prompt, id_ in world.accepted.items()}
    lies = [
        (id_, words)
        for id_, words in told.items()
        if (task := truth.get(names.get(id_, "")))
        and not {ENDS[word] for word in words if word in ENDS} <= task.said
    ]
    judged.check("4 only what upstream said", holds=not lies, seen=f"{lies[:3]}", again=again)
    forged = world.rows(f"SELECT id FROM events WHERE instr(body, '{FORGED_HOST}')")
    judged.check("4 nothing forged", holds=not forged, seen=f"{forged[:3]}", again=again)


def _creates(world: World, judged: Outcome, again: str) -> None:
    twice = {
        prompt: outcomes
        for prompt, outcomes in world.provider.creates.items()
        if any(outcome not in SURE_NOT_TAKEN for outcome in outcomes[:-1])
    }
    judged.check("5 never charged twice", holds=not twice, seen=f"sent again: {twice}", again=again)


def _deliveries(world: World, judged: Outcome, again: str) -> None:
    """Who was owed an event got it, signed; nobody got what is not stored."""
    got: defaultdict[str, set[str]] = defaultdict(set)
    for one in world.audience.receipts:
        if one.status in (200, 204):
            got[one.name].add(one.webhook_id)
    rows = world.rows(
        "SELECT s.url, d.event_id, d.event_type, d.status FROM deliveries d "
        "JOIN subscribers s ON s.id = d.subscriber_id"
    )
    missed = [
        row
        for row in rows
        if row["status"] == "delivered"
        and (name := row["url"].rpartition("/")[2]) in world.audience.secrets
        and row["event_id"] not in got[name]
    ]
    judged.check("3 delivered means received", holds=not missed, seen=f"{missed[:3]}", again=again)
    events = {
        row["id"] for row in world.rows("SELECT id FROM events WHERE type LIKE 'generation.%'")
    }
    for name in ("well", "ordered"):
        absent = events - got[name]
        judged.check(
            "3 every event reaches its subscriber",
            holds=not absent,
            seen=f"{name} misses {len(absent)}: {sorted(absent)[:3]}",
            again=again,
        )
    wrong = world.audience.wrong
    judged.check("3 signed, one id one body", holds=not wrong, seen=f"{wrong[:3]}", again=again)


def _books(world: World, judged: Outcome, again: str) -> None:
    """The tables agree with each other, whatever was interrupted."""
    for name, sql in ORPHANS.items():
        [row] = world.rows(sql)
        judged.check(
            "2 no half of a unit", holds=row["n"] == 0, seen=f"{row['n']} {name}", again=again
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


def not_again(world: World, before: Before, judged: Outcome, again: str) -> None:
    """What was recorded as delivered before the crash left no more, and no storm followed it."""
    rows = world.rows("SELECT id, attempt_count FROM deliveries")
    more = [
        row["id"]
        for row in rows
        if row["id"] in before.delivered and row["attempt_count"] != before.delivered[row["id"]]
    ]
    judged.check(
        "3 nothing delivered is sent again", holds=not more, seen=f"{more[:3]}", again=again
    )
    attempted = Counter(
        (row["url"].rpartition("/")[2], row["event_id"])
        for row in world.rows(
            "SELECT s.url, d.event_id, d.id, a.number FROM attempts a "
            "JOIN deliveries d ON d.id = a.delivery_id JOIN subscribers s ON s.id = d.subscriber_id"
        )
        if row["number"] > before.delivered.get(row["id"], 0)
    )
    seen = Counter(
        (one.name, one.webhook_id)
        for one in world.audience.receipts
        if one.phase > before.phase and one.status
    )
    storm = {key: n for key, n in seen.items() if n > attempted[key]}
    judged.check("3 no storm after a crash", holds=not storm, seen=f"{storm}", again=again)
