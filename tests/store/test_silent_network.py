"""A network between a worker and PostgreSQL that drops everything, while connections stay open."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from msgspec.structs import replace

from service.store.postgres import connection, locks, ownership
from tests import engine
from tests.faults import rows
from tests.harness import SUBSCRIBER_URL, opened
from tests.journeys.gates import Gate
from tests.relay import relayed
from tests.store.test_workers import beside, shards, until, until_shared

pytestmark = pytest.mark.usefixtures("postgres")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all that is measured in seconds take less, in the same relation."""
    monkeypatch.setattr("service.worker.STANDBY_SECONDS", 0.1)
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(ownership, "VALID_SECONDS", 1.5)
    monkeypatch.setattr(ownership, "BEAT_SECONDS_MAX", 4.0)
    monkeypatch.setattr(locks, "SILENT_SECONDS", 2.5)
    monkeypatch.setattr(connection, "COMMAND_SECONDS", 4.0)


@pytest.mark.parametrize("only_anew", [False, True], ids=["goes on", "forgets its connections"])
async def test_who_cannot_be_reached_is_replaced_and_changes_nothing_afterwards(
    tmp_path: Path, *, only_anew: bool
) -> None:
    gate = Gate()
    async with (
        relayed(engine.database_of(tmp_path)) as relay,
        opened(tmp_path, public_url=None) as world,
    ):
        await world.subscribe(event_types=["generation.submitted"])
        world.subscribers.answers[SUBSCRIBER_URL].append(gate)
        direct, world.settings = world.settings, replace(world.settings, database_path=relay.url)
        async with beside(world) as cut_off:
            world.settings = direct
            await until_shared(world, cut_off)
            await world.generate()
            await gate.wait_for(1)  # An attempt is under way.
            session = cut_off.worker.session
            relay.fall_silent()
            world.app.worker.start()
            async with asyncio.timeout(60):
                await until(world, lambda: shards(world.app) == [64])
            assert shards(cut_off) == [0], "it stopped by its own clock"
            await until(world, lambda: len(world.subscribers.webhooks) >= 2)
            await world.generate()
            await until(world, lambda: len(world.subscribers.webhooks) >= 3)
            gate.is_open.set()  # Its attempt ends, and cannot be recorded.
            relay.speak(only_anew=only_anew)
            await until_shared(world, world.app, cut_off)
            await until(world, lambda: cut_off.worker.session is not session)
            await world.generate()
            await until(world, lambda: len(world.subscribers.webhooks) >= 4)
            apps = world.app, cut_off
            await until(world, lambda: not any(app.worker.dispatcher._tasks for app in apps))
        attempts = await rows(world, "SELECT * FROM attempts")
        sent = Counter(webhook.headers["webhook-id"] for webhook in world.subscribers.webhooks)
        assert sorted(sent.values()) == [1, 1, 2], "what was under way is repeated once"
        assert {attempt["number"] for attempt in attempts} == {1}
        deliveries = await rows(world, "SELECT status, attempt_count FROM deliveries")
        assert [tuple(row.values()) for row in deliveries] == [("delivered", 1)] * 3
