"""Retention: old rows are deleted in batches; pending deliveries and what they need stay."""

from pathlib import Path
from typing import Any

import pytest

from service.delivery import replay
from service.store import retention
from service.store.database import Transaction
from tests.harness import Harness, opened
from tests.journeys.gates import TABLES, attach_worker, count_rows, deliveries, queue_answers
from tests.journeys.test_stats import count_deliveries

DAY = 86_400
ONE = {"event_types": ["generation.failed"]}
NOTIFY_URL = "http://127.0.0.1:7/notify"
FAILED = {"data": {"status": "failed"}}


async def fail_generation(world: Harness, index: int = -1, **fields: Any) -> None:
    """Create a generation with metadata, which a callback then fails."""
    await world.generate(metadata={"team": "a", "order": "7"}, **fields)
    assert (await world.call_back(FAILED, index=index)).is_success
    await world.run()


async def run_days(world: Harness, count: int) -> None:
    for _ in range(count):
        await world.run(DAY)
    await world.run(retention.SWEEP_INTERVAL_MS / 1_000)


async def test_an_old_ended_generation_is_deleted_from_every_table(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await world.subscribe(**ONE)
        await fail_generation(world, notify_url=NOTIFY_URL)
        before = await count_rows(world)
        assert 0 not in before.values()
        await run_days(world, 28)
        assert await count_rows(world) == before
        await run_days(world, 10)
        assert await count_rows(world) == dict.fromkeys(TABLES, 0)
        assert await count_rows(world, "subscribers", "attempt_latency") == {
            "subscribers": 1,
            "attempt_latency": 0,
        }
        assert await count_deliveries(world) == {}


async def test_a_pending_delivery_stays_with_its_event_and_generation(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        subscriber = await world.subscribe(**ONE)
        path = f"/v1/subscribers/{subscriber['id']}"
        await world.client.patch(path, json={"status": "paused"})
        await fail_generation(world)
        await run_days(world, 60)
        [pending] = await deliveries(world)
        assert pending["status"] == "pending"
        await world.get(f"/v1/events/{pending['event_id']}")
        await world.get(f"/v1/generations/{pending['generation_id']}/timeline")
        await world.client.patch(path, json={"status": "active"})
        await world.run()
        assert len(world.subscribers.webhooks) == 1
        assert (await deliveries(world))[0]["status"] == "delivered"
        await run_days(world, 20)
        assert len(await deliveries(world)) == 1  # Its attempt is twenty days old.
        await run_days(world, 11)
        assert await count_rows(world) == dict.fromkeys(TABLES, 0)


async def test_an_open_generation_stays(tmp_path: Path) -> None:
    async with opened(tmp_path, deadline_seconds=7 * DAY, retention_days=1) as world:
        created = await world.generate(metadata={"team": "a"})
        world.upstream.tasks["task1"] = {"status": "IN_PROGRESS"}
        await run_days(world, 6)
        generation = await world.get(f"/v1/generations/{created['id']}")
        assert generation["status"] == "processing"


async def test_a_late_callback_is_accepted_for_a_week(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body", retention_days=1) as world:
        await fail_generation(world)
        await run_days(world, 6)
        assert (await world.call_back(FAILED)).status_code == 200
        await run_days(world, 12)
        assert (await count_rows(world))["generations"] == 0
        assert (await world.call_back(FAILED)).status_code == 404


async def test_the_events_of_a_running_replay_stay(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await fail_generation(world)
        subscriber = await world.subscribe(**ONE)
        path = f"/v1/subscribers/{subscriber['id']}"
        await world.client.patch(path, json={"status": "paused"})
        span = {"since": "2026-11-01T00:00:00Z", "until": "2026-12-01T00:00:00Z"}
        body = {"subscriber_id": subscriber["id"], "only": "all", **span}
        started = (await world.client.post("/v1/replays", json=body)).json()
        assert started["total"] == 1
        await run_days(world, 60)
        assert await count_rows(world, "events", "replays") == {"events": 2, "replays": 1}
        await world.client.patch(path, json={"status": "active"})
        await world.run(replay.INACTIVE_WAIT_MS / 1_000)
        assert len(world.subscribers.webhooks) == 1
        await run_days(world, 40)
        assert await count_rows(world, "events", "replays") == {"events": 0, "replays": 0}


async def test_idempotency_keys_are_deleted_after_a_day(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        headers = {"idempotency-key": "one"}
        body = {"url": "http://127.0.0.1:7/inbox"}
        assert (await world.client.post("/v1/subscribers", json=body, headers=headers)).is_success
        await world.run(DAY)
        assert await count_rows(world, "idempotency") == {"idempotency": 1}
        await world.run(2 * 3_600)
        assert await count_rows(world, "idempotency") == {"idempotency": 0}


async def test_the_subscriber_of_a_notify_url_stays_while_a_generation_has_that_url(
    tmp_path: Path,
) -> None:
    tables = ("subscribers", "generations")
    async with opened(tmp_path, callback_trust="body") as world:
        await fail_generation(world, notify_url=NOTIFY_URL)
        await run_days(world, 25)
        await fail_generation(world, notify_url=NOTIFY_URL)
        await run_days(world, 20)
        assert await count_rows(world, *tables) == dict.fromkeys(tables, 1)
        await run_days(world, 30)
        assert await count_rows(world, *tables) == dict.fromkeys(tables, 0)


@pytest.mark.parametrize("batch", [1, 2, 3])
async def test_small_batches_delete_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(retention, "BATCH", batch)
    monkeypatch.setattr(retention, "GENERATIONS_BATCH", batch)
    async with opened(tmp_path, callback_trust="body") as world:
        subscriber = await world.subscribe(**ONE, retry_schedule_seconds=[0])
        queue_answers(world, 500)
        for index in range(4):
            await fail_generation(world, index)
        world.clock.advance(40 * DAY)
        path = f"/v1/subscribers/{subscriber['id']}"
        await world.client.patch(path, json={"status": "paused"})
        await fail_generation(world, 4)
        await world.run()
        await world.run(retention.SWEEP_INTERVAL_MS / 1_000)
        counts = await count_rows(world)
        assert (counts["generations"], counts["deliveries"], counts["attempts"]) == (1, 1, 0)
        assert await count_deliveries(world) == {subscriber["id"]: {"pending": 1}}


async def test_one_step_deletes_at_most_one_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    async with opened(tmp_path, callback_trust="body") as world:
        await world.subscribe(**ONE)
        for index in range(5):
            await fail_generation(world, index)
        world.clock.advance(40 * DAY)
        database, sweep = world.app.database, retention.Sweep()
        counts, next_at = [], 0
        while next_at <= world.clock():
            deleted, next_at = await retention.run_due(database, sweep, 30, world.clock())
            counts.append(deleted)
        assert max(counts) <= 5  # GENERATIONS_BATCH is larger than BATCH here.
        assert counts.count(2) >= 6
        assert sweep.next_at == world.clock() + retention.SWEEP_INTERVAL_MS
        assert await retention.run_due(database, sweep, 30, world.clock()) == (0, next_at)
        assert await count_rows(world) == dict.fromkeys(TABLES, 0)


async def test_a_tick_returns_how_many_rows_were_deleted(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await world.subscribe(**ONE)
        await fail_generation(world)
        world.clock.advance(40 * DAY)
        result = (await world.client.post("/v1/tick")).json()
        assert result["deleted"] >= 4
        assert result["more"] is False


async def test_what_a_disabled_subscriber_is_owed_ends_after_the_retention(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body", retention_days=2) as world:
        subscriber = await world.subscribe(**ONE)
        path = f"/v1/subscribers/{subscriber['id']}"
        await world.client.patch(path, json={"status": "paused"})
        await fail_generation(world)
        await run_days(world, 4)
        [owed] = await deliveries(world)
        assert owed["status"] == "pending"
        await world.client.patch(path, json={"status": "disabled"})
        await world.run(retention.SWEEP_INTERVAL_MS / 1_000)
        await run_days(world, 1)
        assert await deliveries(world) == []
        assert await count_rows(world, "deliveries", "attempts") == {"deliveries": 0, "attempts": 0}


async def test_what_a_disabled_subscriber_is_owed_stays_within_the_retention(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, callback_trust="body", retention_days=5) as world:
        subscriber = await world.subscribe(**ONE)
        path = f"/v1/subscribers/{subscriber['id']}"
        await world.client.patch(path, json={"status": "paused"})
        await fail_generation(world)
        await world.client.patch(path, json={"status": "disabled"})
        await run_days(world, 4)
        await world.client.patch(path, json={"status": "active"})
        await world.run()
        assert (await deliveries(world))[0]["status"] == "delivered"


async def test_one_step_deletes_few_callbacks_of_a_generation_with_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "PARTS_BATCH", 5)
    steps: list[tuple[int, int]] = []
    delete_old = retention._delete_old

    async def record(name: str, tx: Transaction, after: str, **values: Any) -> retention.Progress:
        async def count(table: str) -> int:
            [row] = await tx.select(f"SELECT count(*) AS n FROM {table}", {})  # noqa: S608
            return int(row["n"])

        before = [await count("callbacks"), await count("callback_bodies")]
        progress = await delete_old(name, tx, after, **values)
        left = [await count("callbacks"), await count("callback_bodies")]
        steps.append((before[0] - left[0], before[1] - left[1]))
        return progress

    monkeypatch.setattr(retention, "_delete_old", record)
    async with opened(tmp_path, callback_trust="body", retention_days=1) as world:
        for _ in range(3):
            await fail_generation(world)
        for number in range(12):
            await world.call_back({"number": number}, index=1)
        await run_days(world, 28)
        assert await count_rows(world, "generations", "callbacks", "callback_bodies") == {
            "generations": 0,
            "callbacks": 0,
            "callback_bodies": 0,
        }
    assert max(steps) <= (5, 5)
    assert all(callbacks == bodies for callbacks, bodies in steps)


@pytest.mark.sqlite_only  # The pause is between transactions, whatever runs them.
@pytest.mark.parametrize(("took_ms", "pause_ms"), [(0, 10), (40, 80), (5_000, 1_000)])
async def test_others_commit_between_batches_for_twice_as_long_as_one_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, took_ms: int, pause_ms: int
) -> None:
    async def delete_slowly(*_: Any) -> tuple[int, int]:
        world.clock.advance(took_ms / 1_000)
        return 500, 0  # More is due.

    monkeypatch.setattr(retention, "run_due", delete_slowly)
    async with opened(tmp_path) as world, attach_worker(world):
        next_at = await world.app.worker.session._clean(world.clock())
        assert next_at == world.clock() + pause_ms
