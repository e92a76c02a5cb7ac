"""No tenant's question waits for all that another has: places and tokens are given in turn."""

import asyncio
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from service.generations.places import Places
from service.upstream import wire
from tests.harness import Harness, opened

RATE = 10.0
TURN_SECONDS = 0.5  # For a turn of two tenants, with half of the tokens for each kind of question.
USUAL, SONG = "ideogram-v3-turbo", "chirp-v4-5"  # Models with routes of their own.
COPY = """
INSERT INTO generations (id, tenant, model, status, route, task_id, submitted_at, deadline_at,
    nonce, submission, next_poll_at)
SELECT :id, :tenant, :model, 'processing', route, :id, submitted_at, deadline_at,
    nonce, 'taken', :at
FROM generations WHERE task_id = 'task1'
"""
COPY_BODY = """
INSERT INTO generation_bodies (generation_id, input, metadata)
SELECT :id, input, metadata FROM generation_bodies LIMIT 1
"""
COPY_HINT = "INSERT INTO confirmations (generation_id, due_at) VALUES (:id, :now)"


class Asked:
    """Upstream's task routes: they hang for some tenants, and note when each was asked."""

    def __init__(self, world: Harness, hanging: str) -> None:
        self.world, self.hanging = world, hanging
        self.first_at: dict[str, int] = {}  # By tenant.
        self.count = Counter[str]()
        self._forever = asyncio.Event()
        self._ids = 0
        world.app.context.client.poll = self.poll  # type: ignore[assignment,method-assign]

    async def poll(self, _path: str, task_id: str, *_more: object) -> wire.Answer:
        tenant = task_id.split("_")[2]
        self.first_at.setdefault(tenant, self.world.clock.now)
        self.count[tenant] += 1
        if tenant in self.hanging:
            await self._forever.wait()
        return wire.Report("processing", task_id, (task_id,), word="running")

    async def add(
        self, tenant: str, model: str, count: int, *, hints: bool = False, polls: bool = True
    ) -> None:
        """Store open generations whose poll is due, or a confirmation, or both."""
        now, new = self.world.clock.now, []
        for _ in range(count):
            self._ids += 1
            id_ = f"gen_{self._ids:032x}_{tenant}"
            at = now if polls else None
            new.append({"id": id_, "tenant": tenant, "model": model, "at": at, "now": now})
        statements = [COPY, COPY_BODY, *([COPY_HINT] if hints else [])]
        await self.world.app.database.apply(
            lambda c: [c.executemany(statement, new) for statement in statements]
        )

    async def run(self, seconds: float) -> None:
        """Work for a while in steps of a tenth of a second."""
        poller = self.world.app.worker.poller
        for _ in range(round(seconds * 10)):
            self.world.clock.advance(0.1)
            next_at: int | None = 0
            while next_at is not None and next_at <= self.world.clock.now:
                _, next_at = await poller.run_due(self.world.clock.now)
                ended = [t for id_, t in poller.in_flight.items() if id_[-1] not in self.hanging]
                if ended:
                    await asyncio.wait(ended)

    async def end(self) -> None:
        self._forever.set()
        await self.world.app.worker.poller.settle()


async def longest_wait(theirs: int, hints: int, models: list[str], hanging: str) -> float:
    """Return after how many seconds two other tenants' poll and confirmation came."""
    with tempfile.TemporaryDirectory() as folder:
        async with opened(Path(folder), poll_rate_per_second=RATE, public_url=None) as world:
            await world.generate()
            asked = Asked(world, hanging)
            world.clock.advance(60)
            await asked.add("a", models[0], theirs)
            await asked.add("a", models[-1], hints, hints=True)
            await asked.run(3)
            began_at = world.clock.now
            await asked.add("b", models[0], 2)
            await asked.add("c", models[0], 2, hints=True, polls=False)
            await asked.run(2)
            await asked.end()
            return max(asked.first_at.get(t, 10**15) - began_at for t in "bc") / 1_000


@settings(
    max_examples=10,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # To shrink an example takes minutes.
    suppress_health_check=[HealthCheck.too_slow],
)
@example(theirs=300, hints=0, models=[USUAL], hanging="a")
@example(theirs=300, hints=200, models=[USUAL, SONG], hanging="")
@given(
    theirs=st.integers(0, 500),
    hints=st.integers(0, 300),
    models=st.lists(st.sampled_from([USUAL, SONG]), min_size=1, max_size=2),
    hanging=st.sampled_from(["", "a"]),
)
def test_a_tenant_with_few_questions_does_not_wait_for_all_of_anothers(
    theirs: int, hints: int, models: list[str], hanging: str
) -> None:
    waited = asyncio.run(longest_wait(theirs, hints, models, hanging))
    assert waited <= TURN_SECONDS


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.booleans()), max_size=400))
def test_places_that_five_tenants_hold_leave_one_for_a_sixth(steps: list[tuple[str, bool]]) -> None:
    places, held = Places(64), Counter[str]()
    for tenant, is_taking in steps:
        if is_taking and places.take(tenant):
            held[tenant] += 1
        elif not is_taking and held[tenant]:
            places.give_back(tenant)
            held[tenant] -= 1
        assert places.taken == held.total() < 64
        assert held[tenant] <= 32
        assert set(places.full()) == {t for t in held if held[t] >= places.free and held[t]}
    assert places.take("f")


@pytest.mark.parametrize("rate", [1.0, 50.0])
async def test_tenants_are_asked_about_alike_whoever_has_more(tmp_path: Path, rate: float) -> None:
    async with opened(tmp_path, poll_rate_per_second=rate, public_url=None) as world:
        await world.generate()
        asked = Asked(world, "")
        world.clock.advance(60)
        for tenant, count in (("a", 900), ("b", 300), ("c", 300)):
            await asked.add(tenant, USUAL, count)
        await asked.run(12)
        most, least = max(asked.count.values()), min(asked.count[tenant] for tenant in "abc")
        assert most - least <= 1, asked.count


async def test_what_is_due_as_confirmation_and_poll_hides_no_other_poll(tmp_path: Path) -> None:
    async with opened(tmp_path, poll_rate_per_second=RATE, public_url=None) as world:
        await world.generate()
        asked = Asked(world, "")
        world.clock.advance(60)
        await asked.add("a", USUAL, 100, hints=True)
        await asked.run(3)
        await asked.add("b", USUAL, 1)
        await asked.run(TURN_SECONDS)
        assert asked.count["b"]
