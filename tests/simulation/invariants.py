"""Checks the promises at every step of a simulation and at its end."""

from collections import Counter, defaultdict

import msgspec

from service.model.generation import TERMINAL
from tests.simulation.world import HOOKS, World

OUTCOMES = ("generation.succeeded", "generation.failed", "generation.canceled")


async def check_step(world: World) -> None:
    """Check the promises that hold at any instant."""
    assert world.repeated == [], "a submission was sent again though it may have been taken"
    assert all(count == 1 for count in world.takes.values()), "charged twice"
    assert world.changed_bodies == [], "a webhook-id came with two bodies"
    assert world.sent_again == [], "a process sent a webhook again that was taken"
    await _acknowledged_callbacks_are_stored(world)
    await _one_outcome_each(world)
    await _canceled_is_canceled(world)
    overdue = await world.stored(
        "SELECT id FROM deliveries WHERE status = 'pending' AND due_at IS NULL"
    )
    assert overdue == [], "a pending delivery has no due time"


async def check_end(world: World) -> None:
    """Check that after the last deadline and retry everything has ended and was delivered."""
    await check_step(world)
    for generation in await world.stored("SELECT id, status, submission FROM generations"):
        assert generation["status"] in TERMINAL, generation
    ids = {row["id"] for row in await world.stored("SELECT id FROM generations")}
    kept = {id_ for p, id_ in world.generations.items() if p not in world.maybe_deleted}
    assert kept <= ids, "an accepted generation is gone"
    pending = await world.stored("SELECT id, status FROM deliveries WHERE status = 'pending'")
    assert pending == [], pending
    await _every_event_was_delivered(world)


async def _acknowledged_callbacks_are_stored(world: World) -> None:
    """A repeated body is stored with its first callback; the others have its digest."""
    bodies = await world.stored(
        "SELECT (SELECT f.body FROM callback_bodies f WHERE f.generation_id = c.generation_id "
        "AND f.body_digest = c.body_digest ORDER BY f.callback_id LIMIT 1) AS body, "
        "count(*) AS count FROM callbacks c GROUP BY c.generation_id, c.body_digest"
    )
    counts: Counter[bytes] = Counter()
    for row in bodies:
        counts[row["body"]] += row["count"]
    acknowledged: defaultdict[bytes, int] = defaultdict(int)
    for prompt, body in world.acknowledged:
        acknowledged[body] += prompt not in world.maybe_deleted
    for body, count in acknowledged.items():
        assert counts.get(body, 0) >= count, "an acknowledged callback is not on disk"


async def _one_outcome_each(world: World) -> None:
    types: defaultdict[str, list[str]] = defaultdict(list)
    events = await world.stored(
        "SELECT generation_id, type FROM events WHERE generation_id IS NOT NULL ORDER BY seq, id"
    )
    for event in events:
        types[event["generation_id"]].append(event["type"])
    for published in types.values():
        outcomes = [type_ for type_ in published if type_ in OUTCOMES]
        assert len(outcomes) <= 1, published
        assert published.count("generation.timed_out") <= 1, published
        if outcomes:
            assert published[-1] == outcomes[0], published


async def _canceled_is_canceled(world: World) -> None:
    stored = await world.stored("SELECT id, status FROM generations")
    status_of = {row["id"]: row["status"] for row in stored}
    for prompt in world.canceled - world.maybe_deleted:
        assert status_of[world.generations[prompt]] == "canceled", "a cancel did not hold"


async def _every_event_was_delivered(world: World) -> None:
    rows = await world.stored(
        "SELECT s.url, d.event_id, d.status, e.body FROM deliveries d "
        "JOIN subscribers s ON s.id = d.subscriber_id JOIN events e ON e.id = d.event_id"
    )
    for row in rows:
        if row["status"] == "delivered":
            assert row["event_id"] in world.delivered[row["url"]], "recorded but never sent"
        assert msgspec.json.decode(row["body"])["id"] == row["event_id"]
    kept = await world.stored("SELECT id FROM events WHERE tenant <> ''")  # Not erased.
    events = {row["id"] for row in kept}
    assert events <= world.delivered[HOOKS[0]], "the healthy subscriber missed an event"
