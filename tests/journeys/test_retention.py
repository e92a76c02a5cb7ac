"""Retention: what is past its time goes in small steps; what is owed stays, however old."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from service.delivery import replay
from service.store import retention
from tests.harness import Harness, opened
from tests.journeys.gates import answer, deliveries
from tests.journeys.test_stats import counted

DAY = 86_400
ONE = {"event_types": ["generation.failed"]}
NOTIFY_URL = "http://127.0.0.1:7/notify"
FAILED = {"data": {"status": "failed"}}
ABOUT = (
    "generations",
    "generation_bodies",
    "generation_metadata",
    "exchanges",
    "callbacks",
    "callback_bodies",
    "events",
    "deliveries",
    "attempts",
)


def rows(world: Harness, *tables: str) -> dict[str, int]:
    with sqlite3.connect(world.settings.database_path) as connection:
        found = {
            table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608
            for table in tables or ABOUT
        }
    connection.close()
    return found


async def ended(world: Harness, index: int = -1, **fields: Any) -> None:
    """A generation with metadata that was called back about and failed."""
    await world.generate(metadata={"team": "a", "order": "7"}, **fields)
    assert (await world.call_back(FAILED, index=index)).is_success
    await world.run()


async def days(world: Harness, count: int) -> None:
    for _ in range(count):
        await world.run(DAY)
    await world.run(retention.SWEEP_EVERY_MS / 1_000)


async def test_what_is_old_and_over_goes_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await world.subscribe(**ONE)
        await ended(world, notify_url=NOTIFY_URL)
        before = rows(world)
        assert 0 not in before.values()
        await days(world, 28)
        assert rows(world) == before
        await days(world, 10)
        assert rows(world) == dict.fromkeys(ABOUT, 0)
        assert rows(world, "subscribers", "attempt_latency") == {
            "subscribers": 1,
            "attempt_latency": 0,
        }
        assert counted(world) == {}


async def test_what_is_pending_stays_with_its_event_and_generation(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        made = await world.subscribe(**ONE)
        path = f"/v1/subscribers/{made['id']}"
        await world.client.patch(path, json={"status": "paused"})
        await ended(world)
        await days(world, 60)
        [owed] = await deliveries(world)
        assert owed["status"] == "pending"
        await world.get(f"/v1/events/{owed['event_id']}")
        await world.get(f"/v1/generations/{owed['generation_id']}/timeline")
        await world.client.patch(path, json={"status": "active"})
        await world.run()
        assert len(world.subscribers.sent) == 1
        assert (await deliveries(world))[0]["status"] == "delivered"
        await days(world, 20)
        assert len(await deliveries(world)) == 1  # It was tried twenty days ago.
        await days(world, 11)
        assert rows(world) == dict.fromkeys(ABOUT, 0)


async def test_a_generation_that_is_open_stays(tmp_path: Path) -> None:
    async with opened(tmp_path, deadline_seconds=7 * DAY, retention_days=1) as world:
        made = await world.generate(metadata={"team": "a"})
        world.upstream.tasks["task1"] = {"status": "IN_PROGRESS"}
        await days(world, 6)
        seen = await world.get(f"/v1/generations/{made['id']}")
        assert seen["status"] == "processing"


async def test_a_late_callback_finds_its_generation_for_a_week(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body", retention_days=1) as world:
        await ended(world)
        await days(world, 6)
        assert (await world.call_back(FAILED)).status_code == 200
        await days(world, 12)
        assert rows(world)["generations"] == 0
        assert (await world.call_back(FAILED)).status_code == 404


async def test_what_a_running_replay_is_about_stays(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await ended(world)
        made = await world.subscribe(**ONE)
        path = f"/v1/subscribers/{made['id']}"
        await world.client.patch(path, json={"status": "paused"})
        span = {"since": "2026-11-01T00:00:00Z", "until": "2026-12-01T00:00:00Z"}
        body = {"subscriber_id": made["id"], "only": "all", **span}
        started = (await world.client.post("/v1/replays", json=body)).json()
        assert started["total"] == 1
        await days(world, 60)
        assert rows(world, "events", "replays") == {"events": 2, "replays": 1}
        await world.client.patch(path, json={"status": "active"})
        await world.run(replay.CLOSED_WAIT_MS / 1_000)
        assert len(world.subscribers.sent) == 1
        await days(world, 40)
        assert rows(world, "events", "replays") == {"events": 0, "replays": 0}


async def test_old_idempotency_keys_are_forgotten_after_a_day(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        headers = {"idempotency-key": "one"}
        body = {"url": "http://127.0.0.1:7/inbox"}
        assert (await world.client.post("/v1/subscribers", json=body, headers=headers)).is_success
        await world.run(DAY)
        assert rows(world, "idempotency") == {"idempotency": 1}
        await world.run(2 * 3_600)
        assert rows(world, "idempotency") == {"idempotency": 0}


async def test_a_notify_url_that_is_still_named_keeps_its_subscriber(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await ended(world, notify_url=NOTIFY_URL)
        await days(world, 25)
        await ended(world, notify_url=NOTIFY_URL)
        await days(world, 20)
        assert rows(world, "subscribers", "generations") == {"subscribers": 1, "generations": 1}
        await days(world, 30)
        assert rows(world, "subscribers", "generations") == {"subscribers": 0, "generations": 0}


@pytest.mark.parametrize("batch", [1, 2, 3])
async def test_small_batches_come_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(retention, "BATCH", batch)
    monkeypatch.setattr(retention, "GENERATIONS_BATCH", batch)
    async with opened(tmp_path, callback_trust="body") as world:
        made = await world.subscribe(**ONE, retry_schedule_seconds=[0])
        answer(world, 500)
        for index in range(4):
            await ended(world, index)
        world.clock.advance(40 * DAY)
        path = f"/v1/subscribers/{made['id']}"
        await world.client.patch(path, json={"status": "paused"})
        await ended(world, 4)
        await world.run()
        await world.run(retention.SWEEP_EVERY_MS / 1_000)
        left = rows(world)
        assert (left["generations"], left["deliveries"], left["attempts"]) == (1, 1, 0)
        assert counted(world) == {made["id"]: {"pending": 1}}


async def test_one_step_takes_no_more_than_its_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    async with opened(tmp_path, callback_trust="body") as world:
        await world.subscribe(**ONE)
        for index in range(5):
            await ended(world, index)
        world.clock.advance(40 * DAY)
        database, sweep = world.app.database, retention.Sweep()
        taken, next_at = [], 0
        while next_at <= world.clock():
            deleted, next_at = await retention.run_due(database, sweep, 30, world.clock())
            taken.append(deleted)
        assert max(taken) <= 5  # Generations have a batch of their own.
        assert taken.count(2) >= 6
        assert next_at == world.clock() + retention.SWEEP_EVERY_MS
        assert await retention.run_due(database, sweep, 30, world.clock()) == (0, next_at)
        assert rows(world) == dict.fromkeys(ABOUT, 0)


async def test_a_tick_says_how_many_rows_went(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await world.subscribe(**ONE)
        await ended(world)
        world.clock.advance(40 * DAY)
        done = (await world.client.post("/v1/tick")).json()
        assert done["deleted"] >= 4
        assert done["more"] is False
