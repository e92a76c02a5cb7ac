"""`kill -9`: at every commit of every unit of work, before it and after it, and at any instant."""

import asyncio
import random
from dataclasses import dataclass, field
from pathlib import Path

from chaos import load, plan, promises
from chaos.outcome import Outcome
from chaos.subject import census
from chaos.world import SUBJECT, World, opened

GENERATIONS, LOAD_SECONDS = 16, 1.6
REACH_SECONDS = 25.0
MORE_TRIES = 2
RANDOM_TRIES, RANDOM_KILLS = 24, 3
QUICK_POINTS, QUICK_RANDOM = 5, 3
OLD_MS = 40 * 86_400_000
FORGOTTEN_SHARE = 0.5
# As if the minutes had passed for which the key of a request that died is in use.
FORGET_REQUESTS = "UPDATE idempotency SET created_at = created_at - 300000"
SIDES = ("before", "after")


@dataclass(frozen=True)
class Point:
    """A unit of work, up to how often it is let through, and what makes it happen."""

    unit: str
    times: int = 1
    trust: str | None = None
    creates: dict[str, int] = field(default_factory=dict)
    forges: float | None = None
    aged: bool = False  # Only where old rows are found, for which a service ran long ago.


LOST = {"taken": 3, "closed": 3}
BUSY = {"taken": 3, "busy": 3}
SLOW = {"taken": 2, "slow": 6}
POINTS = (
    Point("migrate"),
    Point("delivery.tenants.ensure"),
    Point("store.reseal._reseal_tenants"),
    Point("store.reseal._reseal_page"),
    Point("api.subscribers._insert", 3),
    Point("api.idempotency._claim", 12),
    Point("api.generations._get_or_accept", 12),
    Point("generations.submit._record", 10),
    Point("generations.submit._claim_due", creates=BUSY),
    Point("store.idempotency.store_answer", 10),
    Point("generations.ingest.receive", 4, trust="confirm"),
    Point("generations.ingest.Ingest.believe", 4, trust="body"),
    Point("store.callbacks.reject", forges=1.0),
    Point("generations.poll.Poller._record", 4, trust="confirm"),
    Point("generations.poll._record_blind", trust="confirm", creates=SLOW),
    Point("generations.poll.expire", creates=LOST),
    Point("store.deliveries.record_attempts", 12),
    Point("delivery.dispatch._record_and_follow", 2),
    Point("api.subscribers._ping"),
    Point("store.deliveries.insert_ended", 2),
    Point("delivery.replay._start", 2),
    Point("delivery.replay._step", 2),
    Point("store.retention._unreferenced.stage", 3),
    Point("store.deliveries.delete_old", aged=True),
    Point("store.events.delete_old", aged=True),
    Point("store.generations.delete_old", aged=True),
    Point("store.subscribers.delete_orphans", aged=True),
)
# Commits that need a person's command or another process; tests/wire and tests/journeys have them.
ELSEWHERE = (
    "api.keys",
    "api.signing_secret",
    "api.deliveries",
    "api.replays",
    "store.keys.record_uses",
)


async def run(of: plan.Plan) -> Outcome:
    """Die at every point, or at some of them where it is to be quick, and at random instants."""
    lots = random.Random(of.seed)
    pairs = [(point, side) for point in POINTS for side in SIDES]
    randoms = RANDOM_TRIES
    if of.quick and of.only is None:
        pairs, randoms = lots.sample(pairs, QUICK_POINTS), QUICK_RANDOM
    tries = [_at_point(point, side) for point, side in pairs]
    tries += [plan.Try(f"instant {number}", at_instants) for number in range(randoms)]
    total = await plan.run(of, tries)
    if not of.quick and of.only is None:
        _all_hit(total)
    return total


def _at_point(point: Point, side: str) -> plan.Try:
    async def attempt(folder: Path, seed: str, again: str) -> Outcome:
        total = Outcome()
        for more in range(1 + MORE_TRIES):
            found = await at_point(folder / str(more), f"{seed}+{more}", again, point, side)
            total.add(found)
            if found.faults[f"kill {side} {point.unit}"] or found.broken:
                return total
        total.check("the point was reached", holds=False, seen=f"{side} {point.unit}", again=again)
        return total

    return plan.Try(f"{side} {point.unit}", attempt)


async def at_point(folder: Path, seed: str, again: str, point: Point, side: str) -> Outcome:
    """One world whose service dies at the point, is started plainly, and comes to rest."""
    judged, lots = Outcome(), random.Random(seed)
    trust = point.trust or lots.choice(("confirm", "body"))
    async with opened(folder, seed, trust) as world:
        world.provider.weights = point.creates or world.provider.weights
        world.provider.forges = world.provider.forges if point.forges is None else point.forges
        extra = {"CHAOS_REACHED": str(world.reached)}
        if point.aged:
            extra["CHAOS_OFFSET"] = await _long_ago(world)
        extra["CHAOS_POINT"] = f"{side} {point.unit} {lots.randint(1, point.times)}"
        world.spawn(SUBJECT, **extra)
        clients = world.at_once(load.run(world, GENERATIONS, LOAD_SECONDS))
        status = await _death(world, clients)
        if status is None:
            world.kill()
        else:
            judged.check(
                "it died by its own hand",
                holds=status == -9,
                seen=f"status {status}: {world.last_words()}",
                again=again,
            )
        await _rise(world, clients, judged, again)
        died, units = census(world.reached.read_text("utf-8"))
        judged.faults.update({f"kill {name}": n for name, n in died.items()})
        judged.notes.update({f"unit {name}": "committed" for name in units})
    return judged


async def at_instants(folder: Path, seed: str, again: str) -> Outcome:
    """One world whose service is killed from outside, again and again, whatever it does then."""
    judged, lots = Outcome(), random.Random(seed)
    async with opened(folder, seed, lots.choice(("confirm", "body"))) as world:
        world.spawn()
        clients = world.at_once(load.run(world, GENERATIONS, LOAD_SECONDS * 2))
        for _ in range(RANDOM_KILLS - 1):
            await asyncio.sleep(lots.uniform(0.3, 2.0))
            world.kill()
            judged.faults["kill at any instant"] += 1
            promises.look(world, world.copy(f"copy{world.restarts}"), judged, again)
            await world.buried()
            world.spawn()
        await asyncio.sleep(lots.uniform(0.8, 2.5))
        world.kill()
        judged.faults["kill at any instant"] += 1
        await _rise(world, clients, judged, again)
    return judged


async def _death(world: World, clients: "asyncio.Task[None]") -> int | None:
    """Wait until the process has died: its status; None if it does not."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + REACH_SECONDS
    while loop.time() < ends_at:
        status = await world.ended(0.2)
        if status is not None:
            return status
        if clients.done() and await promises.settle(world, 0.1):
            return await world.ended(1.0)
    return None


async def _rise(world: World, clients: "asyncio.Task[None]", judged: Outcome, again: str) -> None:
    """Look at the files as the dead left them, start anew, and judge what it comes to."""
    before = promises.look(world, world.copy("last"), judged, again)
    await world.buried()
    if world.lots.random() < FORGOTTEN_SHARE:
        world.change(FORGET_REQUESTS)
        judged.faults["clients that come back after minutes"] += 1
    await world.start()
    await clients
    await world.provider.settle()
    await promises.settle(world)
    status = await world.stop()
    judged.check("it ends when asked to", holds=status == 0, seen=f"status {status}", again=again)
    promises.judge(world, judged, again, before)
    judged.faults += world.provider.faults + +world.audience.faults


async def _long_ago(world: World) -> str:
    """Have a service work for a while in the past; the file that moves its clock, now at rest."""
    offset = world.folder / "offset"
    offset.write_text(f"{-OLD_MS}")
    world.audience.is_moody = False  # Or it has failed for 40 days by now, and is disabled.
    await world.start(SUBJECT, CHAOS_REACHED=str(world.reached), CHAOS_OFFSET=str(offset))
    await load.run(world, 8, 0.4, first=1_000)
    await world.provider.settle()
    assert await promises.settle(world), "the past does not end"
    await world.stop()
    world.audience.is_moody = True
    world.accepted.clear()
    world.provider.acknowledged.clear()
    world.reached.write_text("")
    offset.write_text("0")
    return str(offset)


def _all_hit(total: Outcome) -> None:
    """A full run has died on both sides of every unit, and knows every unit there is."""
    for point in POINTS:
        for side in SIDES:
            name = f"kill {side} {point.unit}"
            total.check("every commit was attacked", holds=bool(total.faults[name]), seen=name)
    known = {point.unit for point in POINTS}
    found = {name.removeprefix("unit ") for name in total.notes if name.startswith("unit ")}
    strange = [name for name in sorted(found - known) if not name.startswith(ELSEWHERE)]
    total.check("every unit has a point", holds=not strange, seen=f"{strange}: add to POINTS")
    total.notes = {
        "units": len(found & known),
        "kills": sum(n for name, n in total.faults.items() if name.startswith("kill ")),
    }
