"""Statistics of a subscriber: they agree with the rows, and read a bounded number of them."""

import asyncio
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from service.delivery.target import SendError
from service.model.errors import StorageBusyError
from service.store import stats
from service.store.database import Transaction
from service.store.sqlite.database import Database
from tests.faults import rows
from tests.harness import START, SUBSCRIBER_URL, Harness, opened
from tests.journeys.gates import Gate, attach_worker, deliveries, delivery, queue_answers

ONE = {"event_types": ["generation.submitted"]}
EMPTY = {"p50": None, "p95": None, "p99": None}


async def read(world: Harness, subscriber: dict[str, Any]) -> dict[str, Any]:
    return await world.get(f"/v1/subscribers/{subscriber['id']}/stats")


async def count_deliveries(world: Harness) -> dict[str, dict[str, int]]:
    """Count the deliveries in the database by subscriber and status."""
    counts: dict[str, dict[str, int]] = {}
    sql = "SELECT subscriber_id, status, count(*) AS count FROM deliveries GROUP BY 1, 2"
    for row in await rows(world, sql):
        counts.setdefault(row["subscriber_id"], {})[row["status"]] = row["count"]
    return counts


async def test_a_new_subscriber_has_empty_statistics(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe()
        assert await read(world, subscriber) == {
            "subscriber_id": subscriber["id"],
            "counts": {"pending": 0, "delivered": 0, "dead": 0, "canceled": 0},
            "success_rate": None,
            "latency_ms": {"hour": EMPTY, "day": EMPTY},
            "oldest_undelivered_seconds": None,
        }


async def test_counts_agree_after_every_change_of_status(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE, retry_schedule_seconds=[0, 60])
        queue_answers(world, 200, 500, 500, 500)
        for _ in range(3):
            await world.generate()
            await world.run(1)
        counts = (await read(world, subscriber))["counts"]
        assert counts == {"pending": 2, "delivered": 1, "dead": 0, "canceled": 0}
        await world.run(60)
        current = await read(world, subscriber)
        assert current["counts"] == {"pending": 0, "delivered": 2, "dead": 1, "canceled": 0}
        assert current["success_rate"] == pytest.approx(2 / 3)
        dead = (await deliveries(world, status="dead"))[0]
        await world.client.post(f"/v1/deliveries/{dead['id']}/retry")
        counts = (await read(world, subscriber))["counts"]
        assert counts == {"pending": 1, "delivered": 2, "dead": 0, "canceled": 0}
        await world.run()
        await world.client.post(f"/v1/subscribers/{subscriber['id']}/test")
        counts = (await read(world, subscriber))["counts"]
        assert counts == {"pending": 0, "delivered": 4, "dead": 0, "canceled": 0}
        assert await count_deliveries(world) == {subscriber["id"]: {"delivered": 4}}
        await world.generate()
        await world.client.delete(f"/v1/subscribers/{subscriber['id']}")
        assert await count_deliveries(world) == {subscriber["id"]: {"delivered": 4, "canceled": 1}}


async def test_an_attempt_does_not_change_a_delivery_that_was_canceled_meanwhile(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        gates, subscribers = [Gate() for _ in range(3)], []
        for number, gate in enumerate(gates):
            url = f"{SUBSCRIBER_URL}/{number}"
            queue_answers(world, gate, url=url)
            subscribers.append(await world.subscribe(url, **ONE))
        async with attach_worker(world):
            await world.generate()
            for gate in gates:
                await gate.wait_for(1)
            await world.client.delete(f"/v1/subscribers/{subscribers[0]['id']}")
            for gate in gates:
                gate.is_open.set()  # All three attempts are recorded in one batch.
        statuses = sorted(delivery["status"] for delivery in await deliveries(world))
        assert statuses == ["canceled", "delivered", "delivered"]
        assert (await count_deliveries(world))[subscribers[0]["id"]] == {"canceled": 1}


@pytest.mark.parametrize("answer", [200, 500])
async def test_a_delivery_that_was_canceled_while_it_left_tells_what_came_back(
    tmp_path: Path, answer: int
) -> None:
    async with opened(tmp_path) as world:
        gate = Gate(answer)
        queue_answers(world, gate)
        subscriber = await world.subscribe(**ONE)
        async with attach_worker(world):
            await world.generate()
            await gate.wait_for(1)
            await world.client.delete(f"/v1/subscribers/{subscriber['id']}")
            gate.is_open.set()
        found = await delivery(world)
        assert (found["status"], found["next_attempt_at"]) == ("canceled", None)
        assert (found["attempt_count"], len(found["attempts"])) == (1, 1)
        assert (found["delivered_at"] is not None) == (answer == 200)
        assert (found["last_error"] is not None) == (answer == 500)
        await world.run(86_400)
        assert len(world.subscribers.webhooks) == 1


@pytest.mark.parametrize("cause", ["pause", "throttle", "backoff", "rate", "disabled"])
async def test_the_oldest_pending_delivery_counts_for_every_cause_of_delay(
    tmp_path: Path, cause: str
) -> None:
    async with opened(tmp_path) as world:
        fields = {"rate_per_second": 0.01} if cause == "rate" else {}
        subscriber = await world.subscribe(**ONE, **fields)
        path = f"/v1/subscribers/{subscriber['id']}"
        if cause == "pause":
            await world.client.patch(path, json={"status": "paused"})
        queue_answers(world, {"throttle": 503, "backoff": 500, "disabled": 500}.get(cause, 200))
        await world.generate()
        if cause == "rate":
            await world.run()
            await world.generate()
        await world.run()
        if cause == "disabled":
            await world.client.patch(path, json={"status": "disabled"})
        world.clock.advance(42.5)
        await world.generate()
        assert (await read(world, subscriber))["oldest_undelivered_seconds"] == 42.5


async def test_the_age_is_null_without_pending_deliveries(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE)
        await world.generate()
        world.clock.advance(3)
        assert (await read(world, subscriber))["oldest_undelivered_seconds"] == 3
        await world.run()
        assert (await read(world, subscriber))["oldest_undelivered_seconds"] is None


async def test_another_tenant_gets_404(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe()
        body = {"name": "b", "scopes": ["read"], "tenant": "b"}
        key = (await world.client.post("/v1/keys", json=body)).json()["key"]
        async with world.new_client(key) as other_tenant:
            path = f"/v1/subscribers/{subscriber['id']}/stats"
            assert (await other_tenant.get(path)).status_code == 404


# Latency


@pytest.mark.parametrize("duration_ms", [0, 1, 2, 7, 10, 99, 100, 1_000, 15_000, 119_999])
def test_a_bucket_is_exact_to_a_tenth(duration_ms: int) -> None:
    bucket = stats.bucket_of(duration_ms)
    assert stats.duration_of(bucket) == pytest.approx(duration_ms, rel=0.1, abs=1)


def test_buckets_grow_with_durations_up_to_the_last() -> None:
    buckets = [stats.bucket_of(duration) for duration in range(150_000)]
    assert buckets == sorted(buckets)
    assert stats.bucket_of(10**12) == stats.BUCKET_MAX


def test_quantiles_agree_with_exact_quantiles() -> None:
    durations = [(n * 7_919) % 4_000 for n in range(2_000)]
    exact = statistics.quantiles(durations, n=100)
    estimates = stats.quantiles(Counter(map(stats.bucket_of, durations)))
    for name, index in (("p50", 49), ("p95", 94), ("p99", 98)):
        assert estimates[name] == pytest.approx(exact[index], rel=0.1)
    assert stats.quantiles({}) == {"p50": None, "p95": None, "p99": None}
    assert set(stats.quantiles({10: 1}).values()) == {stats.duration_of(10)}


async def add_attempts(world: Harness, subscriber_id: str, durations: list[int]) -> None:
    async def unit(tx: Transaction) -> None:
        counts = stats.AttemptCounts()
        for duration in durations:
            counts.count(subscriber_id, tx.now, duration, "delivered")
        await stats.add(tx, counts)

    await world.app.database.write(unit)


async def test_latency_of_the_last_hour_and_of_the_last_day(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe()
        await add_attempts(world, subscriber["id"], [1_000] * 10)
        world.clock.advance(7_200)
        await add_attempts(world, subscriber["id"], [10] * 90)
        await add_attempts(world, "sub_other", [60_000] * 500)
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
        queue_answers(world, SendError("timeout", "No answer."))
        await world.generate()
        await world.run()
        assert (await read(world, subscriber))["latency_ms"]["hour"]["p50"] is not None


async def test_statistics_are_stored_a_second_later_and_when_the_worker_ends(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE)
        async with attach_worker(world) as dispatcher:
            await world.generate()
            while (await read(world, subscriber))["counts"]["pending"] != 0:
                await dispatcher.run_due(world.clock())
            assert (await read(world, subscriber))["counts"]["delivered"] == 0
            next_at = await dispatcher.run_due(world.clock())
            assert next_at is not None
            assert next_at <= world.clock() + 1_000
        assert (await read(world, subscriber))["counts"]["delivered"] == 1


async def test_statistics_are_stored_while_another_attempt_hangs(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber, gate = await world.subscribe(**ONE), Gate()
        queue_answers(world, 200, gate)
        async with attach_worker(world) as dispatcher:
            await world.generate()
            await world.generate()
            await gate.wait_for(1)
            # The commit of the first attempt is seen before the dispatcher has counted it.
            while not dispatcher._tally.counts:
                await read(world, subscriber)
            settling = asyncio.ensure_future(dispatcher.settle())
            while (await read(world, subscriber))["counts"]["delivered"] != 1:
                pass
            gate.is_open.set()
            await settling


async def test_a_subscriber_with_a_rate_has_its_last_attempt_stored_with_it(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE, rate_per_second=1)
        async with attach_worker(world):
            await world.generate()
            while (await read(world, subscriber))["counts"]["pending"] != 0:
                pass
            assert (await read(world, subscriber))["counts"]["delivered"] == 1


# Prometheus


async def test_metrics_have_labels_for_the_longest_waiting_subscribers_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.system.SUBSCRIBER_LABELS_MAX", 2)
    async with opened(tmp_path) as world:
        ids = []
        for number in range(4):
            subscriber_id = (await world.subscribe(f"{SUBSCRIBER_URL}/{number}", **ONE))["id"]
            ids.append(subscriber_id)
            await world.client.patch(f"/v1/subscribers/{subscriber_id}", json={"status": "paused"})
            await world.generate()
            world.clock.advance(10)
        lines = (await world.client.get("/metrics")).text.splitlines()
        assert 'genhook_oldest_undelivered_seconds{role="web"} 40.0' in lines
        assert 'genhook_subscribers_owed{role="web"} 4.0' in lines
        name = "genhook_subscriber_oldest_undelivered_seconds"
        assert [line for line in lines if line.startswith(name)] == [
            f'{name}{{role="web",subscriber_id="{ids[0]}"}} 40.0',
            f'{name}{{role="web",subscriber_id="{ids[1]}"}} 30.0',
        ]


class CountingTransaction:
    """A transaction that notes the statements and the limits of its reads."""

    def __init__(self, tx: Transaction) -> None:
        self._tx, self.now = tx, tx.now
        self.reads: list[tuple[str, Any]] = []

    async def all(self, name: str, **values: Any) -> Any:
        self.reads.append((name, values["limit"]))
        return await self._tx.all(name, **values)


async def test_metrics_read_a_bounded_number_of_rows_in_two_statements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats, "OLDEST_ROWS", 20)
    async with opened(tmp_path) as world:
        database = world.app.database
        for number in range(4):
            await fill(database, f"sub_{number}", 40 * number + 40, 40 * number)

        async def unit(tx: Transaction) -> tuple[list[tuple[str, Any]], dict[str, float]]:
            counting: Any = CountingTransaction(tx)
            ages = await stats.oldest_undelivered(counting)
            return counting.reads, ages

        reads, ages = await database.read(unit)
        assert reads == [("subscribers_owed", stats.COUNT_MAX), ("stats_oldest", 5)]
        assert set(ages) == {f"sub_{number}" for number in range(4)}


async def test_any_number_of_scrapes_leaves_readers_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        running, most, oldest = 0, 0, stats.oldest_undelivered

        async def measure(tx: Transaction) -> dict[str, float]:
            nonlocal running, most
            running += 1
            most = max(most, running)
            time.sleep(0.01)  # noqa: ASYNC251, TID251  a slow one, on a reader's thread
            ages = await oldest(tx)
            running -= 1
            return ages

        monkeypatch.setattr(stats, "oldest_undelivered", measure)
        answers = await asyncio.gather(*(world.client.get("/metrics") for _ in range(3)))
        assert [answer.status_code for answer in answers] == [200] * 3
        assert most == 1


async def refuse_turn(*_: object) -> None:
    raise StorageBusyError("too many others wait for their turn")


async def wait_for_turn(*_: object) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("search", [refuse_turn, wait_for_turn])
async def test_a_scrape_that_waits_too_long_for_others_is_answered_without_ages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, search: Any
) -> None:
    monkeypatch.setattr("service.api.system.AGES_SECONDS", 0.01)
    async with opened(tmp_path) as world:
        monkeypatch.setattr(world.app.database, "search", search)
        async with asyncio.timeout(60):
            answer = await world.client.get("/metrics")
    assert answer.status_code == 200
    assert "genhook_write_queue{" in answer.text
    assert "genhook_subscribers_owed{" not in answer.text


# Many rows


async def test_counts_end_at_ten_thousand(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe()
        await fill(world.app.database, subscriber["id"], 24_000)
        counts = (await read(world, subscriber))["counts"]
        assert counts["pending"] == stats.COUNT_MAX
        assert counts["dead"] == 6_000
        assert counts["canceled"] == 6_000


@pytest.mark.sqlite_only("it counts the steps of SQLite")
async def test_answer_read_a_bounded_number_of_rows(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe()
        await fill(world.app.database, subscriber["id"], 40_000)
        steps = 0

        def count_step() -> int:
            nonlocal steps
            steps += 1
            return 0

        async def get_and_count_steps(tx: Any) -> dict[str, Any]:
            tx._connection.set_progress_handler(count_step, 1_000)
            return await stats.get(tx, subscriber["id"])

        await world.app.database.write(get_and_count_steps)
        steps_of_40_000 = steps
        await fill(world.app.database, subscriber["id"], 80_000, 40_000)
        steps = 0
        await world.app.database.write(get_and_count_steps)
        assert steps <= steps_of_40_000 * 1.2


async def test_the_oldest_of_many_deliveries_has_the_right_age(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe()
        await fill(world.app.database, subscriber["id"], 24_000)
        age = (await read(world, subscriber))["oldest_undelivered_seconds"]
        assert age == pytest.approx(24.0)


async def fill(database: Database, subscriber_id: str, count: int, start: int = 0) -> None:
    """Insert deliveries of the last seconds: half pending, a quarter dead, a quarter canceled."""

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
            counts = stats.AttemptCounts()
            for power in range(10):
                at = tx.now - number * stats.SLOT_MS
                counts.count(subscriber_id, at, 3**power, "delivered")
            await stats.add(tx, counts)
        for remainder, status in ((1, "dead"), (3, "canceled")):
            sql = f"UPDATE deliveries SET status = '{status}' WHERE due_at % 4 = {remainder}"  # noqa: S608
            await tx.select(sql, {})

    await database.write(unit)
