"""An upstream that is unreliable, or lies and lags, over real sockets with all faults at once."""

import random
from pathlib import Path

from chaos import load, promises
from chaos.lagging import LaggingProvider
from chaos.outcome import Outcome
from chaos.plan import Plan, Try, run_tries
from chaos.provider import Provider
from chaos.unreliable import UnreliableProvider
from chaos.world import World, open_world

TRIES, QUICK_TRIES = 10, 2
LAGGING_TRIES, QUICK_LAGGING_TRIES = 8, 2
GENERATIONS, QUICK_GENERATIONS, LOAD_SECONDS = 40, 16, 3.0
DEADLINE_SECONDS, QUICK_DEADLINE_SECONDS = "25", "10"
SETTLE_SECONDS = 70.0


async def run(plan: Plan) -> Outcome:
    """Run worlds with such an upstream; half of them trust the bodies of callbacks."""
    is_few = plan.quick and plan.only is None
    count = QUICK_TRIES if is_few else TRIES
    lagging = QUICK_LAGGING_TRIES if is_few else LAGGING_TRIES

    def new_try(name: str, number: int) -> Try:
        async def run_try(folder: Path, seed: str, repeat: str) -> Outcome:
            trust, rng = ("confirm", "body")[number % 2], random.Random(f"{seed} provider")
            provider = (
                LaggingProvider(rng)
                if name == "lagging"
                else UnreliableProvider(rng, may_lie=trust == "confirm")
            )
            return await attack(folder, seed, repeat, trust, provider, quick=plan.quick)

        return Try(f"{name} {number}", run_try)

    tries = [new_try("unreliable", number) for number in range(count)]
    tries += [new_try("lagging", number) for number in range(lagging)]
    return await run_tries(plan, tries)


async def attack(
    folder: Path, seed: str, repeat: str, trust: str, provider: Provider, *, quick: bool
) -> Outcome:
    """Run one world; with `confirm`, callbacks may carry false results, which must be ignored."""
    outcome = Outcome()
    async with open_world(folder, seed, trust, provider) as world:
        world.settings["GENHOOK_DEADLINE_SECONDS"] = (
            QUICK_DEADLINE_SECONDS
            if quick and isinstance(provider, UnreliableProvider)
            else DEADLINE_SECONDS
        )
        if isinstance(provider, LaggingProvider):  # It is never silent, and what it tells is read.
            world.settings["GENHOOK_UPSTREAM_TIMEOUT_SECONDS"] = "20"
        await world.start()
        count = QUICK_GENERATIONS if quick else GENERATIONS
        clients = world.run_beside(load.run(world, count, LOAD_SECONDS))
        await clients
        await world.provider.settle()
        await promises.wait_until_done(world, SETTLE_SECONDS)
        await promises.check_stop(world, outcome, repeat)
        promises.check_world(world, outcome, repeat)
        if isinstance(provider, LaggingProvider):
            _check_news(world, provider, outcome, repeat)
        line = _find_traceback(world.folder)
        outcome.check("no traceback", holds=not line, detail=line, repeat=repeat)
        outcome.faults += world.provider.faults + +world.subscribers.faults
    return outcome


def _check_news(world: World, provider: LaggingProvider, outcome: Outcome, repeat: str) -> None:
    """Check that what upstream has told was not asked for again, and did not time out."""
    again = provider.created_after
    outcome.check(
        "5 no submission after a proof", holds=not again, detail=f"{again}", repeat=repeat
    )
    prompts = {id_: prompt for prompt, id_ in world.accepted.items()}
    late = world.rows("SELECT generation_id FROM events WHERE type = 'generation.timed_out'")
    lost = [prompts.get(row["generation_id"], "") for row in late]
    known = {*provider.proved_at, *(p for p, kinds in provider.creates.items() if "taken" in kinds)}
    false = [prompt for prompt in lost if prompt in known]
    outcome.check("3 no false time-out", holds=not false, detail=f"{false}", repeat=repeat)


def _find_traceback(folder: Path) -> str:
    """Return the first line of the log that shows an unexpected exception."""
    log = (folder / "log").read_text("utf-8", "replace").splitlines()
    return next((line[:600] for line in log if '"exception"' in line or "Traceback" in line), "")
