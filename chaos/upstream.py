"""An upstream that cannot be relied on, in every way at once, over real sockets."""

import random
from pathlib import Path

from chaos import load, plan, promises
from chaos.liar import Liar
from chaos.outcome import Outcome
from chaos.world import opened

TRIES, QUICK_TRIES = 10, 2
GENERATIONS, QUICK_GENERATIONS, LOAD_SECONDS = 40, 16, 3.0
DEADLINE_SECONDS, QUICK_DEADLINE_SECONDS = "25", "10"
SETTLE_SECONDS = 70.0


async def run(of: plan.Plan) -> Outcome:
    """Worlds with an upstream of this kind; half of them believe the body of a callback."""
    count = QUICK_TRIES if of.quick and of.only is None else TRIES

    def a_try(number: int) -> plan.Try:
        async def attempt(folder: Path, seed: str, again: str) -> Outcome:
            trust = ("confirm", "body")[number % 2]
            return await lied_to(folder, seed, again, trust, quick=of.quick)

        return plan.Try(f"lies {number}", attempt)

    return await plan.run(of, [a_try(number) for number in range(count)])


async def lied_to(folder: Path, seed: str, again: str, trust: str, *, quick: bool) -> Outcome:
    """One world. With `confirm`, a callback's own body may be false, and must not be believed."""
    judged = Outcome()
    liar = Liar(random.Random(f"{seed} liar"), may_lie=trust == "confirm")
    async with opened(folder, seed, trust, liar) as world:
        world.settings["GENHOOK_DEADLINE_SECONDS"] = (
            QUICK_DEADLINE_SECONDS if quick else DEADLINE_SECONDS
        )
        await world.start()
        count = QUICK_GENERATIONS if quick else GENERATIONS
        clients = world.at_once(load.run(world, count, LOAD_SECONDS))
        await clients
        await world.provider.settle()
        await promises.settle(world, SETTLE_SECONDS)
        status = await world.stop()
        judged.check("it ends when asked to", holds=status == 0, seen=f"{status}", again=again)
        promises.judge(world, judged, again)
        broken = _tracebacks(world.folder)
        judged.check("no traceback", holds=not broken, seen=broken, again=again)
        judged.faults += world.provider.faults + +world.audience.faults
    return judged


def _tracebacks(folder: Path) -> str:
    """The first line of the log that tells of an exception nobody planned."""
    log = (folder / "log").read_text("utf-8", "replace").splitlines()
    return next((line[:600] for line in log if '"exception"' in line or "Traceback" in line), "")
