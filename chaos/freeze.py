"""A process is frozen for two minutes under load, and every connection of PostgreSQL ends."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from chaos import load, promises
from chaos.fleet import TICK, WORK, Fleet, open_fleet, running_server
from chaos.outcome import Outcome
from chaos.plan import Plan, Try, run_tries
from chaos.world import HOST, LISTEN_SECONDS, World, open_world

FROZEN_SECONDS = 120.0
LOAD_SECONDS, GENERATIONS = 12.0, 60
AGAIN = 20  # Generations that the process is to carry after it was thawed.
HOLD_SECONDS = 0.4  # How long a receiver takes: attempts are under way at any moment.
END_SECONDS = 1.0  # From the freeze until the connections end.
THAWED_SECONDS = 12.0  # For what the process had begun before, and for its way back.
SETTLE_SECONDS = 90.0
SETTINGS = {"GENHOOK_DEADLINE_SECONDS": "30"}
# What has ended and must stay. An answer to a submission is recorded whenever it comes, and a
# callback that waited in the socket of a frozen process may bring a late result.
ENDED = """
SELECT g.id, g.status, g.completed_at, (SELECT count(*) FROM exchanges x
    WHERE x.generation_id = g.id AND x.kind <> 'submission') AS asked
FROM generations g WHERE g.status IN ('succeeded', 'failed', 'canceled')"""
DELIVERED = "SELECT id, attempt_count FROM deliveries WHERE status = 'delivered'"


@dataclass(frozen=True)
class Kind:
    """The processes of a fleet, and which of them is frozen beside which other one of its kind."""

    frozen: str
    other: str
    webs: int = 2
    workers: int = 2
    work: tuple[str, ...] = WORK


KINDS = {
    "web": Kind("web 0", "web 1"),
    "worker": Kind("worker 0", "worker 1"),
    # Nothing works but requests, and ticks as from a schedule.
    "serverless": Kind("web 0", "web 1", workers=1, work=TICK),
}


async def run(plan: Plan) -> Outcome:
    """Freeze a process of each kind."""
    if plan.quick and plan.only is None:
        return Outcome(not_run="it takes over three minutes: part of a full run")
    tries = [Try(name, _freeze(kind)) for name, kind in KINDS.items()]
    return await run_tries(plan, tries)


def _freeze(kind: Kind) -> Callable[[Path, str, str], Awaitable[Outcome]]:
    async def run_try(folder: Path, seed: str, repeat: str) -> Outcome:
        outcome = Outcome()

        def check(promise: str, detail: object, *, holds: bool) -> None:
            outcome.check(promise, holds=holds, detail=f"{detail}", repeat=repeat)

        async with running_server() as server, open_world(folder, seed) as world:
            world.settings |= SETTINGS
            world.subscribers.hold_seconds |= {"healthy": HOLD_SECONDS}
            async with open_fleet(world, kind.webs, kind.workers, server, kind.work) as fleet:
                await _live(world, fleet, kind, outcome, check, repeat)
        return outcome

    return run_try


async def _live(
    world: World,
    fleet: Fleet,
    kind: Kind,
    outcome: Outcome,
    check: Callable[..., None],
    repeat: str,
) -> None:
    """Freeze a process under load, thaw it, and have it carry the load that follows alone."""
    clients = world.run_beside(load.run(world, GENERATIONS, LOAD_SECONDS))
    await asyncio.sleep(LOAD_SECONDS * random.Random(world.seed).uniform(0.3, 0.7))
    fleet.freeze(kind.frozen)
    outcome.faults[f"freeze a {kind.frozen.partition(' ')[0]} process"] += 1
    frozen_at = time.monotonic()
    await asyncio.sleep(END_SECONDS)
    assert fleet.server is not None
    outcome.faults["end of a connection"] += fleet.server.end_connections()
    await clients
    await world.provider.settle()
    is_done = await promises.wait_until_done(world, SETTLE_SECONDS)
    check("3 all work ends beside a frozen process", world.log_end(), holds=is_done)
    await asyncio.sleep(max(0.0, frozen_at + FROZEN_SECONDS - time.monotonic()))
    await _thaw(world, fleet, kind, check, outcome, repeat)
    fleet.kill(kind.other)
    await load.run(world, AGAIN, LOAD_SECONDS / 2, first=GENERATIONS)
    await world.provider.settle()
    is_done = await promises.wait_until_done(world, SETTLE_SECONDS)
    check("3 a thawed process works alone", world.log_end(), holds=is_done)
    statuses = await fleet.stop()
    del statuses[kind.other]
    check("all stop", statuses, holds=not any(status != 0 for status in statuses.values()))
    problem = await asyncio.to_thread(world.collect)
    check("all can be copied", problem, holds=not problem)
    promises.check_world(world, outcome, repeat)
    outcome.faults += world.provider.faults + +world.subscribers.faults


async def _thaw(
    world: World,
    fleet: Fleet,
    kind: Kind,
    check: Callable[..., None],
    outcome: Outcome,
    repeat: str,
) -> None:
    """Thaw the process, and check that what it had begun changes nothing that has ended."""
    ended = {row["id"]: row for row in world.rows(ENDED)}
    delivered = {row["id"]: row["attempt_count"] for row in world.rows(DELIVERED)}
    snapshot = promises.Snapshot(delivered, world.subscribers.phase)
    created = sum(map(len, world.provider.creates.values()))
    world.subscribers.phase += 1
    fleet.thaw(kind.frozen)
    if kind.frozen in fleet.webs:
        status = await _first_status(fleet.ports[fleet.webs.index(kind.frozen)])
        check("a thawed process answers", status, holds=status == 200)
    await asyncio.sleep(THAWED_SECONDS)
    changed = [row for row in world.rows(ENDED) if ended.get(row["id"], row) != row]
    check("2 nothing that has ended changes", changed[:3], holds=not changed)
    late = sum(map(len, world.provider.creates.values())) - created
    check("5 nothing is submitted after its end", late, holds=not late)
    promises.check_not_repeated(world, snapshot, outcome, repeat)


async def _first_status(port: int) -> int:
    """Return the status of the first answer of the process at this port; 0 if none comes."""
    async with httpx.AsyncClient(trust_env=False, timeout=LISTEN_SECONDS) as client:
        try:
            return (await client.get(f"http://{HOST}:{port}/readyz")).status_code
        except httpx.TransportError:
            return 0
