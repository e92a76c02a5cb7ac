"""An unreliable upstream over real sockets, with all its faults at once."""

import random
from pathlib import Path

from chaos import load, promises
from chaos.outcome import Outcome
from chaos.plan import Plan, Try, run_tries
from chaos.unreliable import UnreliableProvider
from chaos.world import open_world

TRIES, QUICK_TRIES = 10, 2
GENERATIONS, QUICK_GENERATIONS, LOAD_SECONDS = 40, 16, 3.0
DEADLINE_SECONDS, QUICK_DEADLINE_SECONDS = "25", "10"
SETTLE_SECONDS = 70.0


async def run(plan: Plan) -> Outcome:
    """Run worlds with an unreliable upstream; half of them trust the bodies of callbacks."""
    count = QUICK_TRIES if plan.quick and plan.only is None else TRIES

    def new_try(number: int) -> Try:
        async def run_try(folder: Path, seed: str, repeat: str) -> Outcome:
            trust = ("confirm", "body")[number % 2]
            return await attack(folder, seed, repeat, trust, quick=plan.quick)

        return Try(f"unreliable {number}", run_try)

    return await run_tries(plan, [new_try(number) for number in range(count)])


async def attack(folder: Path, seed: str, repeat: str, trust: str, *, quick: bool) -> Outcome:
    """Run one world; with `confirm`, callbacks may carry false results, which must be ignored."""
    outcome = Outcome()
    rng = random.Random(f"{seed} provider")
    provider = UnreliableProvider(rng, may_lie=trust == "confirm")
    async with open_world(folder, seed, trust, provider) as world:
        world.settings["GENHOOK_DEADLINE_SECONDS"] = (
            QUICK_DEADLINE_SECONDS if quick else DEADLINE_SECONDS
        )
        await world.start()
        count = QUICK_GENERATIONS if quick else GENERATIONS
        clients = world.run_beside(load.run(world, count, LOAD_SECONDS))
        await clients
        await world.provider.settle()
        await promises.wait_until_done(world, SETTLE_SECONDS)
        status = await world.stop()
        outcome.check(
            "the service stops by SIGTERM", holds=status == 0, detail=f"{status}", repeat=repeat
        )
        promises.check_world(world, outcome, repeat)
        line = _find_traceback(world.folder)
        outcome.check("no traceback", holds=not line, detail=line, repeat=repeat)
        outcome.faults += world.provider.faults + +world.subscribers.faults
    return outcome


def _find_traceback(folder: Path) -> str:
    """Return the first line of the log that shows an unexpected exception."""
    log = (folder / "log").read_text("utf-8", "replace").splitlines()
    return next((line[:600] for line in log if '"exception"' in line or "Traceback" in line), "")
