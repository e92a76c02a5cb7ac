"""Many processes on one database under load, of which one after the other is killed."""

import asyncio
import bisect
import itertools
import json
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chaos import load, promises
from chaos.fleet import Fleet, Server, open_fleet, running_server
from chaos.outcome import Outcome
from chaos.plan import Plan, Try, run_tries
from chaos.webhooks import Receipt
from chaos.world import World, open_world

SECONDS, QUICK_SECONDS = 60.0, 15.0
KILL_SECONDS = 2.0
PER_SECOND = 5.0  # Generations.
CAP, HOLD_SECONDS = 3, 0.25
RATE = 8.0  # Webhooks per second to one subscriber.
POLL_RATE = 4.0  # Less than the load needs: every callback is confirmed.
MEAN_MAX = 1.25
# A worker counts what it may ask, then reads from the database about whom, and asks so much later.
READ_SECONDS = 1.0
SETTLE_SECONDS = 90.0
START_SECONDS = 3.0  # Until a process that begins to work has taken its share.
AWAY_SECONDS = 1.0  # After a kill, what was under way may still be on its way to the receiver.
SETTINGS = {
    "GENHOOK_POLL_RATE_PER_SECOND": f"{POLL_RATE}",
    "GENHOOK_DEADLINE_SECONDS": "30",
    # An attempt that is given up is still under way at a receiver that a busy machine holds up.
    "GENHOOK_ATTEMPT_TIMEOUT_SECONDS": "20",
}
LIMITED: dict[str, dict[str, float]] = {
    "capped": {"max_in_flight": CAP},
    "rated": {"rate_per_second": RATE},
}
Death = tuple[float, float]  # When a process was killed, and when all that follows is over.
Arrival = tuple[float, float]  # After when something was sent, and when it was read.


async def run(plan: Plan) -> Outcome:
    """Attack both databases."""
    seconds = QUICK_SECONDS if plan.quick else SECONDS

    async def on_postgres(folder: Path, seed: str, repeat: str) -> Outcome:
        async with running_server() as server:
            return await attack(folder, seed, repeat, seconds, server)

    async def on_sqlite(folder: Path, seed: str, repeat: str) -> Outcome:
        return await attack(folder, seed, repeat, seconds, None)

    tries = [Try("postgres", on_postgres), Try("sqlite", on_sqlite)]
    return await run_tries(plan, tries, side_by_side=1)


async def attack(
    folder: Path, seed: str, repeat: str, seconds: float, server: Server | None
) -> Outcome:
    """Run a fleet under load, kill its processes meanwhile, and check the promises."""
    outcome, rng = Outcome(), random.Random(seed)
    webs, workers = (2, 3) if server else (1, 1)
    async with open_world(folder, seed) as world:
        world.settings |= SETTINGS
        world.subscribers.hold_seconds["capped"] = HOLD_SECONDS
        pulse = world.provider.pulse = world.subscribers.pulse
        world.run_beside(pulse.run())
        async with open_fleet(world, webs, workers, server) as fleet:
            for name, limit in LIMITED.items():
                await _subscribe(world, name, limit)
            work = load.run(world, int(PER_SECOND * seconds), seconds)
            clients = world.run_beside(work)
            await _kill_in_turn(fleet, seconds, outcome, rng)
            await clients
            await world.provider.settle()
            is_done = await promises.wait_until_done(world, SETTLE_SECONDS)
            await fleet.wait_for_starts()  # A signal would end at once a process that only begins.
            outcome.check("3 all work ends", holds=is_done, detail=world.log_end(), repeat=repeat)
            statuses = await fleet.stop()
            wrong = {name: status for name, status in statuses.items() if status != 0}
            outcome.check("all stop", holds=not wrong, detail=f"{wrong}", repeat=repeat)
            problem = await asyncio.to_thread(world.collect) if server else ""
            outcome.check("all can be copied", holds=not problem, detail=problem, repeat=repeat)
            deadlocks = server.count_deadlocks() if server else 0
            outcome.check("no deadlock", holds=not deadlocks, detail=f"{deadlocks}", repeat=repeat)
            promises.check_world(world, outcome, repeat)
            _check_limits(world, fleet, outcome, repeat)
            outcome.faults += world.provider.faults + +world.subscribers.faults
    return outcome


async def _subscribe(world: World, name: str, limit: dict[str, float]) -> None:
    body = {"url": f"{world.subscriber_url}/{name}", **limit}
    key = {"idempotency-key": name}
    new = (await load.request(world, "POST", "/v1/subscribers", json=body, headers=key)).json()
    world.subscribers.secrets[name] = new["secret"]


async def _kill_in_turn(fleet: Fleet, seconds: float, outcome: Outcome, rng: random.Random) -> None:
    """Kill a process every two seconds and start it again; restart the server once."""
    names = [*fleet.webs, *fleet.workers]
    ends_at = time.monotonic() + seconds
    restart_at: float | None = time.monotonic() + seconds / 2
    for name in itertools.cycle(names):
        await asyncio.sleep(KILL_SECONDS + rng.uniform(-0.3, 0.3))
        if time.monotonic() >= ends_at:
            return
        fleet.kill(name)
        outcome.faults[f"kill a {name.partition(' ')[0]} process"] += 1
        fleet.world.subscribers.phase += 1
        if fleet.server and restart_at and time.monotonic() >= restart_at:
            await fleet.restart_server()
            outcome.faults["restart of the database"] += 1
            restart_at = None
        fleet.spawn(name)


def _check_limits(world: World, fleet: Fleet, outcome: Outcome, repeat: str) -> None:
    """Check caps, rates, order and the budget of polls, over all processes."""
    bodies = {id_: json.loads(body) for id_, body in world.subscribers.bodies.items()}
    by_name: defaultdict[str, list[Receipt]] = defaultdict(list)
    for receipt in sorted(world.subscribers.receipts, key=lambda each: each.began_at):
        # A test is sent by a process that only serves, which cannot know what is under way.
        if bodies[receipt.webhook_id]["type"] != "ping":
            by_name[receipt.name].append(receipt)
    lost_at = [at for at, _ in fleet.deaths]
    most = _most_at_once(by_name["capped"], lost_at)
    outcome.check("the cap holds", holds=0 < most <= CAP, detail=f"{most}", repeat=repeat)
    arrivals = [(receipt.sent_after, receipt.began_at) for receipt in by_name["rated"]]
    # An attempt that a dead process had not recorded is unknown to the next one.
    deaths = [(at, at + AWAY_SECONDS) for at in lost_at]
    excess = _excess(arrivals, RATE, 2.0, 1.0, deaths)
    outcome.check("the rate holds", holds=excess <= 0, detail=f"{excess:.1f}", repeat=repeat)
    wrong = _out_of_order(by_name["ordered"], bodies)
    outcome.check("the order holds", holds=not wrong, detail=f"{wrong[:3]}", repeat=repeat)
    _check_polls(world.provider.polled, fleet, outcome, repeat)
    outcome.notes[f"most at once of {CAP}, {fleet.engine}"] = most
    outcome.notes[f"webhooks, {fleet.engine}"] = len(world.subscribers.receipts)


def _check_polls(polled: Sequence[Arrival], fleet: Fleet, outcome: Outcome, repeat: str) -> None:
    # A process that begins has the tokens of its share, once it has started. While shards are free,
    # drives may take them; they share a rate of their own.
    share = POLL_RATE / len(fleet.workers) + 1
    deaths = [(at, begun_at + START_SECONDS) for at, begun_at in fleet.deaths]
    burst = POLL_RATE + POLL_RATE * READ_SECONDS
    excess = _excess(polled, POLL_RATE, burst, share + POLL_RATE, deaths)
    outcome.check("the poll budget holds", holds=excess <= 0, detail=f"{excess:.1f}", repeat=repeat)
    rate = len(polled) / max(polled[-1][1] - polled[0][1], 1.0)
    detail = f"{rate:.1f} of {POLL_RATE:g}"
    is_kept = rate <= POLL_RATE * MEAN_MAX
    outcome.check("the poll budget holds all in all", holds=is_kept, detail=detail, repeat=repeat)
    outcome.notes[f"polls per second of {POLL_RATE:g}, {fleet.engine}"] = rate


def _most_at_once(receipts: Sequence[Receipt], lost_at: Sequence[float]) -> int:
    """Return how many were under way at once, without what a killed process left behind."""
    changes: list[tuple[float, int]] = []
    for each in receipts:
        if not any(each.sent_after - AWAY_SECONDS < at < each.ended_at for at in lost_at):
            changes += [(each.began_at, 1), (each.ended_at, -1)]
    return max(itertools.accumulate(change for _, change in sorted(changes)), default=0)


def _excess(
    arrivals: Sequence[Arrival], rate: float, burst: float, more: float, deaths: Sequence[Death]
) -> float:
    """Return by how many the busiest stretch is over the rate.

    It may have begun before the first of it was read. For each death `more` are allowed in a
    stretch that overlaps it, from the kill to its end.
    """
    killed_at, over_at = sorted(at for at, _ in deaths), sorted(end for _, end in deaths)
    worst = -burst
    for i, (first, _) in enumerate(arrivals):
        over = bisect.bisect_left(over_at, first)
        for j in range(i + 1, len(arrivals)):
            last = arrivals[j][1]
            count = bisect.bisect_right(killed_at, last) - over
            worst = max(worst, j - i - rate * (last - first) - burst - more * count)
    return worst


def _out_of_order(receipts: Sequence[Receipt], bodies: dict[str, Any]) -> list[list[str]]:
    """Return the generations of which an outcome was taken before the event of its submission."""
    taken: defaultdict[str, list[str]] = defaultdict(list)
    for receipt in receipts:
        event = bodies[receipt.webhook_id]
        if receipt.status == 204 and event["type"] not in taken[event["data"].get("id", "")]:
            taken[event["data"].get("id", "")].append(event["type"])
    return [
        [id_, *types]
        for id_, types in taken.items()
        if id_.startswith("gen_") and "generation.submitted" in types[1:]
    ]
