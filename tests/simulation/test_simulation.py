"""A seed drives clock, network and crashes. A seed that fails is printed, and fails again.

GENHOOK_SIMULATION_SEEDS=1000 pytest tests/simulation    more seeds
GENHOOK_SIMULATION_SEED=17 pytest tests/simulation       one seed
"""

import os
from collections import Counter
from pathlib import Path

import pytest

from service.store import writes
from tests import engine
from tests.relay import Lost, relayed
from tests.simulation.invariants import check_end, check_step
from tests.simulation.world import World

STEPS = 40
BATCHES = 8


def seeds(default: int = 40) -> list[range]:
    """Return the seeds in batches, as the environment says."""
    one = os.environ.get("GENHOOK_SIMULATION_SEED")  # noqa: TID251  the test's own setting
    if one:
        return [range(int(one), int(one) + 1)]
    count = int(os.environ.get("GENHOOK_SIMULATION_SEEDS", default))  # noqa: TID251  the same
    size = max(1, count // BATCHES)
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


async def simulate(seed: int, path: Path) -> World:
    """Run one seed to its end. AssertionError if a promise is broken."""
    if engine.schemas is None:
        return await live(World(path, seed))
    async with relayed(engine.database_of(path)) as relay:
        return await live(World(path, seed, relay))


async def live(world: World) -> World:
    """Run a world to its end."""
    await world.open()
    try:
        for _ in range(STEPS):
            await world.step()
            await check_step(world)
        await world.settle()
        await check_end(world)
    finally:
        await world.close()
    return world


async def simulate_each(batch: range, folder: Path) -> Counter[Lost]:
    """Run every seed in a folder of its own; return what was lost of COMMITs."""
    lost: Counter[Lost] = Counter()
    for seed in batch:
        path = folder / str(seed)
        path.mkdir()
        try:
            lost += (await simulate(seed, path)).lost
        except Exception as error:
            raise AssertionError(f"seed {seed} breaks a promise: {error}") from error
    return lost


@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("batch", seeds(), ids=lambda batch: f"{batch.start}-{batch.stop - 1}")
async def test_the_promises_hold_for_every_seed(batch: range, tmp_path: Path) -> None:
    await simulate_each(batch, tmp_path)


@pytest.mark.timeout(1_800)
@pytest.mark.usefixtures("postgres")
@pytest.mark.parametrize("batch", seeds(4), ids=lambda batch: f"{batch.start}-{batch.stop - 1}")
async def test_the_promises_hold_on_postgresql_although_commits_get_lost(
    batch: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writes, "RETRY_SECONDS", 0.01)
    lost = await simulate_each(batch, tmp_path)
    assert lost["message"] > 0
    assert lost["answer"] > 0
