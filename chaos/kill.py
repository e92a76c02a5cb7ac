"""`kill -9` before and after the commit of every unit of work, and at random moments."""

import asyncio
import math
import random
from dataclasses import dataclass, field, replace
from pathlib import Path

from chaos import load, promises
from chaos.fleet import Server, running_server
from chaos.outcome import Outcome
from chaos.plan import Plan, Try, run_tries
from chaos.subject import read_reached
from chaos.world import SUBJECT, World, open_world

GENERATIONS, LOAD_SECONDS = 16, 1.6
# Without less open work; and once there is none: the last units are those of no hurry.
REACH_SECONDS, REST_SECONDS = 25.0, 5.0
MORE_TRIES = 2  # Where the point was not reached.
RANDOM_TRIES, RANDOM_KILLS = 24, 3
QUICK_POINTS, QUICK_RANDOM, QUICK_ON_SERVER = 5, 3, 2
OLD_MS = 40 * 86_400_000
FORGOTTEN_SHARE = 0.5  # Of the worlds: idempotency keys of dead requests are freed.
# Moves idempotency keys back by the minutes after which a dead request frees its key.
FORGET_REQUESTS = "UPDATE idempotency SET created_at = created_at - 300000"
SIDES = ("before", "after")


@dataclass(frozen=True)
class Point:
    """A unit of work, at which of its first commits to die, and the settings that cause it."""

    unit: str
    times: int = 1
    trust: str | None = None
    creates: dict[str, int] = field(default_factory=dict)
    forged_share: float | None = None
    aged: bool = False  # Needs old rows, so a service with a clock in the past runs first.


LOST = {"taken": 3, "closed": 3}
BUSY = {"taken": 3, "busy": 3}
SLOW = {"taken": 2, "slow": 6}
POINTS = (
    Point("migrate"),
    Point("tenants.ensure"),
    Point("reseal._reseal_page", 2),
    Point("idempotency._create", 12),
    Point("send._record", 10),
    Point("submit._claim_due", creates=BUSY),
    Point("idempotency.store_answer", 10),
    Point("ingest.store_hints", 4, trust="confirm"),
    Point("proofs.write_proofs", 4, trust="body"),
    Point("callbacks.reject", forged_share=1.0),
    Point("answers.record", 4, trust="confirm"),
    Point("answers.plan_after_submission", trust="confirm", creates=SLOW),
    Point("generations.confirm_submissions"),
    Point("deadlines.expire", creates=LOST),
    Point("deliveries.record_attempts", 12),
    Point("health._record_with_health", 2),
    Point("ping._store_ping"),
    Point("deliveries.insert_ended", 2),
    Point("stats.add", 2),
    Point("replay._run_batch", 2),
    Point("retention.fold_usage"),
    Point("retention._delete_old.callbacks_rejected_old"),
    Point("retention._delete_unreferenced.idempotency_delete_old"),
    Point("retention._delete_unreferenced.stats_delete_old"),
    Point("retention._delete_unreferenced.replays_delete_old"),
    Point("retention._delete_unreferenced.rests_delete_old"),
    Point("retention._delete_old.deliveries_old", aged=True),
    Point("retention._delete_old.events_old", aged=True),
    Point("retention._delete_old.generations_old", aged=True),
    Point("retention._delete_old.subscribers_notify_old", aged=True),
)
# Units of commands that this suite does not send; tests/wire and tests/journeys cover them.
ELSEWHERE = (
    *("writes.write_trial", "keys.revoke", "keys.record_uses", "signing_secret."),
    *("deliveries.retry", "deliveries.cancel", "replays."),
    *("deadlines.move_on", "submit._put_back", "answers.drop_plan_without_task"),
)


async def run(plan: Plan) -> Outcome:
    """Die at every point, or at some of them in a quick run, and at random moments."""
    rng = random.Random(plan.seed)
    pairs = [(point, side) for point in POINTS for side in SIDES]
    randoms = RANDOM_TRIES
    if plan.quick and plan.only is None:
        pairs, randoms = rng.sample(pairs, QUICK_POINTS), QUICK_RANDOM
    tries = [_new_try(point, side) for point, side in pairs]
    tries += [Try(f"instant {number}", kill_at_random) for number in range(randoms)]
    on_server = [pair for pair in pairs if not (pair[0].aged or pair[0].unit == "migrate")]
    async with running_server() as server:
        of_server = on_server[:QUICK_ON_SERVER] if plan.quick and not plan.only else on_server
        tries += [_new_try(point, side, server) for point, side in of_server]
        total = await run_tries(plan, tries)
        deadlocks = server.count_deadlocks()
    total.check("no deadlock", holds=not deadlocks, detail=f"{deadlocks}")
    if not plan.quick and plan.only is None:
        _check_points(total)
    return total


def _new_try(point: Point, side: str, server: Server | None = None) -> Try:
    async def run_try(folder: Path, seed: str, repeat: str) -> Outcome:
        total = Outcome()
        for more in range(1 + MORE_TRIES):
            # A busy machine commits many units at once, and so less often.
            each = replace(point, times=1) if more == MORE_TRIES else point
            outcome = await kill_at(
                folder / str(more), f"{seed}+{more}", repeat, each, side, server
            )
            total.add(outcome)
            if outcome.faults[f"kill {side} {point.unit}"] or outcome.broken:
                return total
        detail = f"{side} {point.unit}"
        total.check("the point was reached", holds=False, detail=detail, repeat=repeat)
        return total

    return Try(f"{'postgres ' if server else ''}{side} {point.unit}", run_try)


async def kill_at(
    folder: Path, seed: str, repeat: str, point: Point, side: str, server: Server | None
) -> Outcome:
    """Run a world whose service dies at the point and is started again normally."""
    outcome, rng = Outcome(), random.Random(seed)
    trust = point.trust or rng.choice(("confirm", "body"))
    async with open_world(folder, seed, trust) as world:
        world.server_url = server.new_schema() if server else ""
        world.provider.weights = point.creates or world.provider.weights
        if point.forged_share is not None:
            world.provider.forged_share = point.forged_share
        extra = {"CHAOS_REACHED": str(world.reached)}
        if point.aged:
            extra["CHAOS_OFFSET"] = await _run_in_the_past(world)
        extra["CHAOS_POINT"] = f"{side} {point.unit} {rng.randint(1, point.times)}"
        world.spawn(SUBJECT, **extra)
        clients = world.run_beside(load.run(world, GENERATIONS, LOAD_SECONDS))
        status = await _wait_for_death(world, clients)
        if status is None:
            world.kill()
        else:
            outcome.check(
                "the service killed itself",
                holds=status == -9,
                detail=f"status {status}: {world.log_end()}",
                repeat=repeat,
            )
        await _restart(world, clients, outcome, repeat)
        deaths, units = read_reached(world.reached.read_text("utf-8"))
        outcome.faults.update({f"kill {name}": n for name, n in deaths.items()})
        outcome.notes.update({f"unit {name}": "committed" for name in units})
    return outcome


async def kill_at_random(folder: Path, seed: str, repeat: str) -> Outcome:
    """Run a world whose service is killed from outside at random moments."""
    outcome, rng = Outcome(), random.Random(seed)
    async with open_world(folder, seed, rng.choice(("confirm", "body"))) as world:
        world.spawn()
        clients = world.run_beside(load.run(world, GENERATIONS, LOAD_SECONDS * 2))
        for _ in range(RANDOM_KILLS - 1):
            await asyncio.sleep(rng.uniform(0.3, 2.0))
            world.kill()
            outcome.faults["kill at a random moment"] += 1
            copy = await asyncio.to_thread(world.copy, f"copy{world.restarts}")
            promises.check_files(world, copy, outcome, repeat)
            await world.drain_connections()
            world.spawn()
        await asyncio.sleep(rng.uniform(0.8, 2.5))
        world.kill()
        outcome.faults["kill at a random moment"] += 1
        await _restart(world, clients, outcome, repeat)
    return outcome


async def _wait_for_death(world: World, clients: "asyncio.Task[None]") -> int | None:
    """Wait until the process has died; return its status, or None if it does not die."""
    loop = asyncio.get_running_loop()
    ends_at, least = loop.time() + REACH_SECONDS, math.inf
    while (status := await world.wait_for_exit(0.2)) is None and loop.time() < ends_at:
        if not clients.done():
            ends_at = loop.time() + REACH_SECONDS  # Each of them waits for a limited time.
        elif (count := await promises.count_open(world)) < least:
            least, ends_at = count, loop.time() + (REACH_SECONDS if count else REST_SECONDS)
    return status


async def _restart(
    world: World, clients: "asyncio.Task[None]", outcome: Outcome, repeat: str
) -> None:
    """Check the files of the dead service, start it again, and check the promises."""
    # In a thread: a copy of a server takes seconds, and other tries run in this loop.
    copy = await asyncio.to_thread(world.copy, "last")
    snapshot = promises.check_files(world, copy, outcome, repeat)
    await world.drain_connections()
    if world.rng.random() < FORGOTTEN_SHARE:
        world.execute(FORGET_REQUESTS)
        outcome.faults["clients that repeat after minutes"] += 1
    await world.start()
    await clients
    await world.provider.settle()
    await promises.wait_until_done(world)
    await promises.check_stop(world, outcome, repeat)
    if world.server_url:
        problem = await asyncio.to_thread(world.collect)
        outcome.check("all can be copied", holds=not problem, detail=problem, repeat=repeat)
    promises.check_world(world, outcome, repeat, snapshot)
    outcome.faults += world.provider.faults + +world.subscribers.faults


async def _run_in_the_past(world: World) -> str:
    """Run a service whose clock is 40 days behind; return the file that moves the clock."""
    offset = world.folder / "offset"
    offset.write_text(f"{-OLD_MS}")
    world.subscribers.has_faults = False  # Failures 40 days ago would disable a subscriber.
    await world.start(SUBJECT, CHAOS_REACHED=str(world.reached), CHAOS_OFFSET=str(offset))
    await load.run(world, 8, 0.4, first=1_000)
    await world.provider.settle()
    assert await promises.wait_until_done(world), "work in the past is left"
    await world.stop()
    world.subscribers.has_faults = True
    world.accepted.clear()
    world.provider.acknowledged.clear()
    world.reached.write_text("")
    offset.write_text("0")
    return str(offset)


def _check_points(total: Outcome) -> None:
    """Check that a full run died on both sides of every unit, and that POINTS names every unit."""
    for point in POINTS:
        for side in SIDES:
            name = f"kill {side} {point.unit}"
            total.check("every commit was attacked", holds=bool(total.faults[name]), detail=name)
    known = {point.unit for point in POINTS}
    units = {name.removeprefix("unit ") for name in total.notes if name.startswith("unit ")}
    missing = [name for name in sorted(units - known) if not name.startswith(ELSEWHERE)]
    total.check("every unit has a point", holds=not missing, detail=f"add to POINTS: {missing}")
    total.notes = {
        "units": len(units & known),
        "kills": sum(n for name, n in total.faults.items() if name.startswith("kill ")),
    }
