"""Statistics of a subscriber: true against a count, with a bound behind many rows."""

import sqlite3
import statistics
from pathlib import Path
from typing import Any

import pytest

from service.delivery.webhook.request import SendError
from service.store import stats
from service.store.sqlite.database import Database, Transaction
from tests.harness import START, SUBSCRIBER_URL, Harness, opened
from tests.journeys.gates import Gate, answer, attached, deliveries

ONE = {"event_types": ["generation.submitted"]}
EMPTY = {"p50": None, "p95": None, "p99": None}


async def read(world: Harness, subscriber: dict[str, Any]) -> dict[str, Any]:
    return await world.get(f"/v1/subscribers/{subscriber['id']}/stats")


def counted(world: Harness) -> dict[str, dict[str, int]]:
    """Deliveries by subscriber and status, counted in the file itself."""
    counts: dict[str, dict[str, int]] = {}
    with sqlite3.connect(world.settings.database_path) as connection:
        sql = "SELECT subscriber_id, status, count(*) FROM deliveries GROUP BY 1, 2"
        for subscriber_id, status, count in connection.execute(sql):
            counts.setdefault(subscriber_id, {})[status] = count
    connection.close()
    return counts


async def test_of_a_new_subscriber_there_is_nothing_to_say(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe()
        assert await read(world, subscriber) == {
            "subscriber_id": subscriber["id"],
            "counts": {"pending": 0, "delivered": 0, "dead": 0, "canceled": 0},
            "success_rate": None,
            "latency_ms": {"hour": EMPTY, "day": EMPTY},
            "oldest_undelivered_seconds": None,
        }


async def test_counts_follow_every_way_that_a_delivery_can_go(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE, retry_schedule_seconds=[0, 60])
        answer(world, 200, 500, 500, 500)
        for _ in range(3):
            await world.generate()
            await world.run(1)
        counts = (await read(world, subscriber))["counts"]
        assert counts == {"pending": 2, "delivered": 1, "dead": 0, "canceled": 0}
        await world.run(60)
        found = await read(world, subscriber)
        assert found["counts"] == {"pending": 0, "delivered": 2, "dead": 1, "canceled": 0}
        assert found["success_rate"] == pytest.approx(2 / 3)
        dead = (await deliveries(world, status="dead"))[0]
        await world.client.post(f"/v1/deliveries/{dead['id']}/retry")
        counts = (await read(world, subscriber))["counts"]
        assert counts == {"pending": 1, "delivered": 2, "dead": 0, "canceled": 0}
        await world.run()
        await world.client.post(f"/v1/subscribers/{subscriber['id']}/test")
        counts = (await read(world, subscriber))["counts"]
        assert counts == {"pending": 0, "delivered": 4, "dead": 0, "canceled": 0}
        assert counted(world) == {subscriber["id"]: {"delivered": 4}}
        await world.generate()
        await world.client.delete(f"/v1/subscribers/{subscriber['id']}")
        assert counted(world) == {subscriber["id"]: {"delivered": 4, "canceled": 1}}


async def test_an_outcome_of_what_was_canceled_meanwhile_counts_for_nothing(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        gates, made = [Gate() for _ in range(3)], []
        for number, gate in enumerate(gates):
            url = f"{SUBSCRIBER_URL}/{number}"
            answer(world, gate, url=url)
            made.append(await world.subscribe(url, **ONE))
        async with attached(world):
            await world.generate()
            for gate in gates:
                await gate.wait_for(1)
            await world.client.delete(f"/v1/subscribers/{made[0]['id']}")
            for gate in gates:
                gate.is_open.set()  # All three are recorded together.
        statuses = sorted(found["status"] for found in await deliveries(world))
        assert statuses == ["canceled", "delivered", "delivered"]
        assert counted(world)[made[0]["id"]] == {"canceled": 1}


@pytest.mark.parametrize("held_by", ["pause", "throttle", "backoff", "rate", "disabled"])
async def test_the_oldest_that_is_owed_counts_whatever_holds_it(
    tmp_path: Path, held_by: str
) -> None:
    async with opened(tmp_path) as world:
        fields = {"rate_per_second": 0.01} if held_by == "rate" else {}
        subscriber = await world.subscribe(**ONE, **fields)
        path = f"/v1/subscribers/{subscriber['id']}"
        if held_by == "pause":
            await world.client.patch(path, json={"status": "paused"})
        answer(world, {"throttle": 503, "backoff": 500, "disabled": 500}.get(held_by, 200))
        await world.generate()
        if held_by == "rate":
            await world.run()
            await world.generate()
        await world.run()
        if held_by == "disabled":
            await world.client.patch(path, json={"status": "disabled"})
        world.clock.advance(42.5)
        await world.generate()
        assert (await read(world, subscriber))["oldest_undelivered_seconds"] == 42.5


async def test_when_nothing_is_owed_any_more_nothing_is_old(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE)
        await world.generate()
        world.clock.advance(3)
        assert (await read(world, subscriber))["oldest_undelivered_seconds"] == 3
        await world.run()
        assert (await read(world, subscriber))["oldest_undelivered_seconds"] is None


async def test_another_tenant_learns_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe()
        body = {"name": "b", "scopes": ["read"], "tenant": "b"}
        key = (await world.client.post("/v1/keys", json=body)).json()["key"]
        async with world.new_client(key) as stranger:
            path = f"/v1/subscribers/{subscriber['id']}/stats"
            assert (await stranger.get(path)).status_code == 404


# Latency


@pytest.mark.parametrize("duration_ms", [0, 1, 2, 7, 10, 99, 100, 1_000, 15_000, 119_999])
def test_a_quantile_is_exact_to_a_tenth(duration_ms: int) -> None:
    bucket = stats.bucket_of(duration_ms)
    assert stats.duration_of(bucket) == pytest.approx(duration_ms, rel=0.1, abs=1)


def test_buckets_grow_with_durations_and_end() -> None:
    buckets = [stats.bucket_of(duration) for duration in range(150_000)]
    assert buckets == sorted(buckets)
    assert stats.bucket_of(10**12) == stats.BUCKET_MAX


def test_quantiles_agree_with_those_of_the_durations_themselves() -> None:
    durations = [(n * 7_919) % 4_000 for n in range(2_000)]
    counts: dict[int, int] = {}
    for duration in durations:
        bucket = stats.bucket_of(duration)
        counts[bucket] = counts.get(bucket, 0) + 1
    exact = statistics.quantiles(durations, n=100)
    found = stats.quantiles(counts)
    for name, index in (("p50", 49), ("p95", 94), ("p99", 98)):
        assert found[name] == pytest.approx(exact[index], rel=0.1)
    assert stats.quantiles({}) == {"p50": None, "p95": None, "p99": None}
    assert set(stats.quantiles({10: 1}).values()) == {stats.duration_of(10)}


async def add(world: Harness, subscriber_id: str, durations: list[int]) -> None:
    async def unit(tx: Transaction) -> None:
        rows = [
            {
                "subscriber_id": subscriber_id,
                "started_at": tx.now,
                "duration_ms": duration,
                "status": "delivered",
            }
            for duration in durations
        ]
        await stats.add(tx, rows)

    await world.app.database.write(unit)


async def test_latency_is_of_the_last_hour_and_of_the_last_day(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe()
        await add(world, subscriber["id"], [1_000] * 10)
        world.clock.advance(7_200)
        await add(world, subscriber["id"], [10] * 90)
        await add(world, "sub_other", [60_000] * 500)
        latency = (await read(world, subscriber))["latency_ms"]
        assert latency["hour"]["p99"] == pytest.approx(10, rel=0.1)
        assert latency["day"]["p50"] == pytest.approx(10, rel=0.1)
        assert latency["day"]["p99"] == pytest.approx(1_000, rel=0.1)
        world.clock.advance(86_400)
        latency = (await read(world, subscriber))["latency_ms"]
        assert latency["hour"] == EMPTY
        world.clock.advance(300)
        assert (await read(world, subscriber))["latency_ms"]["day"] == EMPTY


async def test_failed_attempts_count_towards_latency(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE)
        answer(world, SendError("timeout", "No answer."))
        await world.generate()
        await world.run()
        assert (await read(world, subscriber))["latency_ms"]["hour"]["p50"] is not None


# Prometheus


async def test_metrics_name_only_those_that_wait_the_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.system.SUBSCRIBER_LABELS_MAX", 2)
    async with opened(tmp_path) as world:
        made = []
        for number in range(4):
            one = await world.subscribe(f"{SUBSCRIBER_URL}/{number}", **ONE)
            made.append(one["id"])
            await world.client.patch(f"/v1/subscribers/{one['id']}", json={"status": "paused"})
            await world.generate()
            world.clock.advance(10)
        lines = (await world.client.get("/metrics")).text.splitlines()
        assert "genhook_oldest_undelivered_seconds 40.0" in lines
        assert "genhook_subscribers_owed 4.0" in lines
        name = "genhook_subscriber_oldest_undelivered_seconds"
        assert [line for line in lines if line.startswith(name)] == [
            f'{name}{{subscriber_id="{made[0]}"}} 40.0',
            f'{name}{{subscriber_id="{made[1]}"}} 30.0',
        ]


# A million rows


async def test_statistics_count_no_further_than_ten_thousand(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe()
        await fill(world.app.database, subscriber["id"], 24_000)
        counts = (await read(world, subscriber))["counts"]
        assert counts["pending"] == stats.COUNT_MAX
        assert counts["dead"] == 6_000
        assert counts["canceled"] == 6_000


async def test_statistics_read_a_bounded_number_of_rows(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe()
        await fill(world.app.database, subscriber["id"], 40_000)
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        async def traced(tx: Transaction) -> stats.Stats:
            tx._connection.set_progress_handler(count, 1_000)
            return await stats.get(tx, subscriber["id"])

        await world.app.database.write(traced)
        small = steps
        await fill(world.app.database, subscriber["id"], 80_000, 40_000)
        steps = 0
        await world.app.database.write(traced)
        assert steps <= small * 1.2


async def test_the_oldest_is_found_among_first_attempts_and_retries(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe()
        await fill(world.app.database, subscriber["id"], 24_000)
        age = (await read(world, subscriber))["oldest_undelivered_seconds"]
        assert age == pytest.approx(24.0)


async def fill(database: Database, subscriber_id: str, count: int, start: int = 0) -> None:
    """Deliveries of the last seconds: half pending, a quarter dead, a quarter canceled."""

    async def unit(tx: Transaction) -> None:
        rows = [
            {
                "tenant": "default",
                "id": f"dlv_{START - count + number:012x}7{number:019x}",
                "subscriber_id": subscriber_id,
                "event_id": f"evt_{number:032x}",
                "event_type": "ping",
                "generation_id": None,
                "trigger": "scheduled",
                "due_at": START - count + number,
            }
            for number in range(start, count)
        ]
        await tx.many("deliveries_insert", rows)
        for number in range(288):
            slot = {"started_at": tx.now - number * stats.SLOT_MS, "subscriber_id": subscriber_id}
            attempts = [
                {**slot, "duration_ms": 3**power, "status": "delivered"} for power in range(10)
            ]
            await stats.add(tx, attempts)
        for remainder, status in ((1, "dead"), (3, "canceled")):
            sql = f"UPDATE deliveries SET status = '{status}' WHERE due_at % 4 = {remainder}"  # noqa: S608
            tx._connection.execute(sql)

    await database.write(unit)
