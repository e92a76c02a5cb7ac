"""The simulations of tests/simulation with many more seeds, in two processes.

`python -m chaos.simulation FIRST STOP SECONDS` runs the seeds until the time is up.
"""

import asyncio
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from chaos.outcome import Outcome
from chaos.plan import Plan, UnknownTryError, run_module
from service.store import write_queue
from service.telemetry import log
from tests.simulation import test_deliveries, test_simulation

# The time of these worlds is a simulated one: a busy machine gives up no commit.
write_queue.WAIT_SECONDS = 600.0
WORLDS = (test_simulation, test_deliveries)
PROCESSES = 2
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  this suite needs no durability
SEEDS, SHARE = 4_000, 0.4  # Of the minutes of a full run.
QUICK_SEEDS, QUICK_SECONDS = 60, 6.0


async def run(plan: Plan) -> Outcome:
    """Run seeds that follow from the plan's seed, split over the processes."""
    count, seconds = (
        (QUICK_SEEDS, QUICK_SECONDS) if plan.quick else (SEEDS, plan.minutes * SHARE * 60)
    )
    first = 1_000 + plan.seed * SEEDS
    share = count // PROCESSES
    starts = [first + number * share for number in range(PROCESSES)]
    if plan.only is not None:
        if not plan.only.isdecimal():
            raise UnknownTryError("A try of simulation is a seed, a whole number.")
        starts, share = [int(plan.only)], 1
    total = Outcome()
    processes = (_run_process(start, start + share, seconds) for start in starts)
    for outcome in await asyncio.gather(*processes):
        total.add(outcome)
    total.notes["seeds"] = total.tries
    return total


async def _run_process(first: int, stop: int, seconds: float) -> Outcome:
    """Run seeds in a process, which prints a line for each of them."""
    numbers = str(first), str(stop), str(seconds)
    results, has_run = await run_module("chaos.simulation", "seed", *numbers)
    outcome = Outcome()
    for result in results:
        outcome.tries += 1
        outcome.faults["crash at a commit"] += result["crashes"]
        outcome.checks += sum(world.STEPS for world in WORLDS)
        outcome.check(
            "every promise, in simulation",
            holds=result["error"] is None,
            detail=f"seed {result['seed']}: {result['error']}",
            repeat=f"GENHOOK_SIMULATION_SEED={result['seed']} pytest tests/simulation",
        )
    outcome.check("the simulation ran", holds=has_run, detail=f"first seed {first}")
    return outcome


async def _run_seeds(first: int, stop: int, seconds: float) -> None:
    log.configure("error")
    ends_at = time.monotonic() + seconds
    for seed in range(first, stop):
        if time.monotonic() >= ends_at:
            return
        folder = Path(tempfile.mkdtemp(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None))
        error, crashes = None, 0
        try:
            for world in WORLDS:
                (folder / world.__name__).mkdir()
                crashes += (await world.simulate(seed, folder / world.__name__)).crashes
        except Exception as caught:  # noqa: BLE001  it is reported
            error = f"{type(caught).__name__}: {caught}"[:500]
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        sys.stdout.write(json.dumps({"seed": seed, "error": error, "crashes": crashes}) + "\n")


if __name__ == "__main__":
    asyncio.run(_run_seeds(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
