"""The simulation of tests/simulation, over many more seeds, in two processes.

`python -m chaos.simulation FIRST STOP SECONDS` runs seeds until one of both bounds is met.
"""

import asyncio
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from bench.machine import ROOT, python_command
from chaos import plan
from chaos.outcome import Outcome
from service.telemetry import log
from tests.simulation.test_simulation import STEPS, simulate

PROCESSES = 2
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  no power fails here: syncs would only cost time
SEEDS, SHARE = 4_000, 0.4  # Of the minutes of a full run.
QUICK_SEEDS, QUICK_SECONDS = 60, 6.0


async def run(of: plan.Plan) -> Outcome:
    """Seeds from a start that the plan's seed gives, split over the processes."""
    count, seconds = (QUICK_SEEDS, QUICK_SECONDS) if of.quick else (SEEDS, of.minutes * SHARE * 60)
    first = 1_000 + of.seed * SEEDS
    share = count // PROCESSES
    starts = [first + number * share for number in range(PROCESSES)]
    if of.only is not None:
        starts, share = [int(of.only)], 1
    total = Outcome()
    found = await asyncio.gather(*(_process(start, start + share, seconds) for start in starts))
    for one in found:
        total.add(one)
    total.notes["seeds"] = total.tries
    return total


async def _process(first: int, stop: int, seconds: float) -> Outcome:
    """What one process found, a line for each seed."""
    process = await asyncio.create_subprocess_exec(
        *python_command("-m", "chaos.simulation", str(first), str(stop), str(seconds)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    said, _ = await process.communicate()
    found = Outcome()
    for line in said.decode().splitlines():
        if not line.startswith('{"seed"'):
            continue  # What the service says meanwhile.
        one = json.loads(line)
        found.tries += 1
        found.faults["crash at a commit"] += one["crashes"]
        again = f"GENHOOK_SIMULATION_SEED={one['seed']} pytest tests/simulation"
        found.checks += STEPS
        found.check(
            "every promise, in simulation",
            holds=one["error"] is None,
            seen=f"seed {one['seed']}: {one['error']}",
            again=again,
        )
    found.check(
        "the simulation ran", holds=process.returncode == 0 and found.tries > 0, seen=f"{first}"
    )
    return found


async def _seeds(first: int, stop: int, seconds: float) -> None:
    log.configure("error")
    ends_at = time.monotonic() + seconds
    for seed in range(first, stop):
        if time.monotonic() >= ends_at:
            return
        folder = Path(tempfile.mkdtemp(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None))
        error, crashes = None, 0
        try:
            crashes = (await simulate(seed, folder)).crashes
        except Exception as caught:  # noqa: BLE001  it is told
            error = f"{type(caught).__name__}: {caught}"[:500]
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        sys.stdout.write(json.dumps({"seed": seed, "error": error, "crashes": crashes}) + "\n")


if __name__ == "__main__":
    asyncio.run(_seeds(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
