"""What must hold at every step of a simulation, and what must be true at its end."""

from collections import defaultdict

import msgspec

from service.model.generation import TERMINAL
from tests.simulation.world import HOOKS, World

OUTCOMES = ("generation.succeeded", "generation.failed")


async def check_step(world: World) -> None:
    """The promises that hold at any instant."""
    assert world.repeated == [], "a submission was sent again though it may have been taken"
    assert all(count == 1 for count in world.takes.values()), "charged twice"
    assert world.changed_bodies == [], "a webhook-id came with two bodies"
    await _acknowledged_callbacks_are_stored(world)
    await _one_outcome_each(world)
    overdue = await world.stored(
        "SELECT id FROM deliveries WHERE status = 'pending' AND due_at IS NULL"
    )
    assert overdue == [], "a pending delivery has no due time"


async def check_end(world: World) -> None:
    """After the last deadline and the last retry everything has ended, and everybody was told."""
    await check_step(world)
    for generation in await world.stored("SELECT id, status, submission FROM generations"):
        assert generation["status"] in TERMINAL, generation
    known = {row["id"] for row in await world.stored("SELECT id FROM generations")}
    assert set(world.generations.values()) <= known, "an accepted generation is gone"
    pending = await world.stored("SELECT id, status FROM deliveries WHERE status = 'pending'")
    assert pending == [], pending
    await _everybody_was_told(world)


async def _acknowledged_callbacks_are_stored(world: World) -> None:
    kept = await world.stored(
        "SELECT b.body, count(*) AS count FROM callback_bodies b "
        "JOIN callbacks c ON c.id = b.callback_id GROUP BY b.body"
    )
    counts = {row["body"]: row["count"] for row in kept}
    wanted: defaultdict[bytes, int] = defaultdict(int)
    for body in world.acknowledged:
        wanted[body] += 1
    for body, count in wanted.items():
        assert counts.get(body, 0) >= count, "an acknowledged callback is not on disk"


async def _one_outcome_each(world: World) -> None:
    types: defaultdict[str, list[str]] = defaultdict(list)
    events = await world.stored(
        "SELECT generation_id, type FROM events WHERE generation_id IS NOT NULL ORDER BY seq"
    )
    for event in events:
        types[event["generation_id"]].append(event["type"])
    for told in types.values():
        outcomes = [type_ for type_ in told if type_ in OUTCOMES]
        assert len(outcomes) <= 1, told
        assert told.count("generation.timed_out") <= 1, told
        if outcomes:
            assert told[-1] == outcomes[0], told


async def _everybody_was_told(world: World) -> None:
    rows = await world.stored(
        "SELECT s.url, d.event_id, d.status, e.body FROM deliveries d "
        "JOIN subscribers s ON s.id = d.subscriber_id JOIN events e ON e.id = d.event_id"
    )
    for row in rows:
        if row["status"] == "delivered":
            assert row["event_id"] in world.delivered[row["url"]], "recorded but never sent"
        assert msgspec.json.decode(row["body"])["id"] == row["event_id"]
    events = {row["id"] for row in await world.stored("SELECT id FROM events")}
    assert events <= world.delivered[HOOKS[0]], "the subscriber that was well missed an event"
