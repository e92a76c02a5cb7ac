"""Overlapping transactions of two processes on PostgreSQL: tests/overlaps with random acts.

`python -m chaos.overlaps SEED SECONDS` tries points of random pairs of acts until the time is up.
"""

import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from chaos.outcome import Outcome
from chaos.plan import Plan, run_module
from service.api import subscribers
from service.store import write_queue
from service.store.postgres import connection
from service.telemetry import log
from tests import engine
from tests.overlaps import world as stage
from tests.overlaps.acts import ACTS, SINGLE, sweep
from tests.overlaps.world import END, Point, Stage

TRUSTS = ("body", "confirm")  # Whether a callback is proof, so that the outcome is in its commit.
SHARE = 0.4  # Of the minutes of a full run.
QUICK_SECONDS = 12.0
POINTS = 4  # Of a unit, for each pair.


async def run(plan: Plan) -> Outcome:
    """Run random pairs that follow from the plan's seed."""
    seconds = QUICK_SECONDS if plan.quick else plan.minutes * SHARE * 60
    seed = plan.only or str(plan.seed)
    results, has_run = await run_module("chaos.overlaps", "pair", seed, str(seconds))
    outcome = Outcome()
    for result in results:
        outcome.tries += 1
        outcome.faults["act within a transaction"] += result["points"]
        outcome.checks += result["points"]
        wrong = result["wrong"]
        outcome.check(
            "what overlaps is stored as if it had not",
            holds=not wrong,
            detail=f"{result['pair']}: {wrong}",
            repeat=plan.repeat_command(str(plan.seed)),
        )
    outcome.check("the overlaps ran, without a deadlock", holds=has_run)
    return outcome


async def _run_pairs(seed: int, seconds: float) -> None:
    rng, ends_at = random.Random(seed), time.monotonic() + seconds
    while time.monotonic() < ends_at:
        trust, is_old = rng.choice(TRUSTS), rng.random() < 0.2
        folder = Path(tempfile.mkdtemp())
        async with Stage(folder, trust, sweep if is_old else None) as stage:
            for _ in range(10):
                pair = rng.choice([*ACTS]), rng.choice([*SINGLE])
                label = [*pair, trust, *(["old"] if is_old else [])]
                result = await _run_pair(stage, pair, rng)
                sys.stdout.write(json.dumps({"pair": label, **result}) + "\n")
                sys.stdout.flush()
                if time.monotonic() >= ends_at:
                    break


async def _run_pair(stage: Stage, pair: tuple[str, str], rng: random.Random) -> dict[str, Any]:
    """Let the second act at some points of a unit of the first."""
    acts = ACTS[pair[0]], SINGLE[pair[1]]
    points = await stage.points_of(acts[0])
    if not points:
        return {"points": 0, "wrong": []}
    unit = rng.choice(points).unit
    within = [p for p in points if p.unit == unit and p.statement not in (0, END)]
    chosen = rng.sample(within, min(POINTS, len(within)))
    expected = [await stage.play(*acts, Point(unit, end)) for end in (0, END)]
    outcomes = {each: await stage.play(*acts, each) for each in chosen}
    if None in (*expected, *outcomes.values()):
        return {"points": 0, "wrong": []}
    wrong = [each for each, outcome in outcomes.items() if outcome not in expected]
    return {"points": len(chosen), "wrong": wrong}


def main() -> int:
    """Start a server and run pairs; 1 if it had to break a deadlock."""
    log.configure("critical")
    # Who stops in a transaction may stop for long on a busy machine, and nobody gives up meanwhile.
    write_queue.WAIT_SECONDS = connection.COMMAND_SECONDS = 600.0
    connection.TRANSACTION_SETTINGS["idle_in_transaction_session_timeout"] = "600000"
    stage.BLOCKED_SECONDS = 120
    subscribers.SUBSCRIBERS_MAX = 3  # One more than there are.
    with tempfile.TemporaryDirectory(prefix="genhook-chaos-") as folder:
        Path(folder).chmod(0o755)  # Its user, which is not root, must reach it.
        schemas, leave = engine.start(Path(folder) / "postgres", "chaos")
        engine.schemas = schemas
        try:
            asyncio.run(_run_pairs(int(sys.argv[1]), float(sys.argv[2])))
            return min(schemas.count_deadlocks(), 1)
        finally:
            leave()


if __name__ == "__main__":
    raise SystemExit(main())
