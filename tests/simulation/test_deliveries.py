"""The dispatcher, driven by a seed: nothing is forgotten, sent twice at once, or out of its bounds.

GENHOOK_SIMULATION_SEEDS=1000 pytest tests/simulation    more seeds
GENHOOK_SIMULATION_SEED=17 pytest tests/simulation       one seed
"""

from pathlib import Path
from random import Random  # noqa: TID251  a simulation is its seed

import pytest

from tests.simulation.deliveries import Deliveries, in_turns
from tests.simulation.test_simulation import seeds

STEPS = 60


async def simulate(seed: int, path: Path) -> Deliveries:
    """Run one seed to its end. AssertionError if a promise is broken."""
    random = Random(seed)
    world = Deliveries(path, random)
    with in_turns(random, world.clock):
        await world.open()
        try:
            for _ in range(STEPS):
                await world.step()
                check_step(world)
            await world.settle()
            await check_end(world)
        finally:
            await world.close()
    return world


def check_step(world: Deliveries) -> None:
    """Check what holds at any instant."""
    assert world.receivers.wrong == [], world.receivers.wrong
    slots = world.app.worker.dispatcher.slots
    assert 0 <= slots.free <= slots.count
    assert slots.in_use == len(slots._taken) == slots._root.held


async def check_end(world: Deliveries) -> None:
    """Check that all has ended now that receivers have been good for a while, and left nothing."""
    check_step(world)
    # Disabled, it waits: that of a `notify_url` that is gone, asked for while it answered so.
    pending = await world.stored(
        "SELECT d.* FROM deliveries d JOIN subscribers s ON s.id = d.subscriber_id "
        "WHERE d.status = 'pending' AND s.status <> 'disabled'"
    )
    assert pending == [], "forgotten"
    delivered = await world.stored(
        "SELECT iif(s.is_notify, s.url, s.id) AS id, d.event_id FROM deliveries d "
        "JOIN subscribers s ON s.id = d.subscriber_id WHERE d.status = 'delivered'"
    )
    for row in delivered:
        assert (row["id"], row["event_id"]) in world.receivers.accepted, "recorded but never sent"
    dispatcher = world.app.worker.dispatcher
    assert (dispatcher.slots.waiting, len(dispatcher.unrecorded)) == ({}, 0)
    assert (dispatcher.slots.in_use, dispatcher.bodies.held_bytes) == (0, 0)
    for lane in dispatcher.lanes.values():
        assert (lane.waiting, lane.in_flight) == (0, 0)
        assert (lane.held_ids, lane.generation_ids) == (set(), set())


@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("batch", seeds(16), ids=lambda batch: f"{batch.start}-{batch.stop - 1}")
async def test_whatever_happens_each_delivery_ends_within_its_bounds(
    batch: range, tmp_path: Path
) -> None:
    for seed in batch:
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            await simulate(seed, folder)
        except Exception as error:
            raise AssertionError(f"seed {seed} breaks a promise: {error}") from error
