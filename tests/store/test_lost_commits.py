"""The way to PostgreSQL breaks at a COMMIT: nothing is stored twice, and nothing fails for ever.

Whether the message was lost or only its answer, this side cannot know by itself.
"""

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.delivery import tenants
from service.delivery.target import SendError
from service.model import ids
from service.model.clock import rfc3339
from service.model.errors import StorageError
from service.model.key import DEFAULT_TENANT
from service.store import poll_rate, writes
from service.store.database import Transaction
from service.store.item import Item
from service.store.postgres import Database
from service.store.postgres import database as database_module
from tests import engine
from tests.faults import rows
from tests.harness import START, Harness, ManualClock, RunningClock, settings
from tests.relay import Lost, Relay, relayed

pytestmark = pytest.mark.usefixtures("postgres")
RATED, PLAIN = "http://127.0.0.1:7/rated", "http://127.0.0.1:7/plain"
# The units that the journey commits, by the name of their function.
UNITS = [
    *("store_new", "store_answer", "_insert", "_store"),  # For clients.
    *("_record", "_claim_due", "record"),  # What upstream answered, and what it is sent again.
    *("store_hints", "write_proofs", "take", "expire", "drop_plan_without_task"),
    *("record_attempts", "_record_with_health", "add", "_run_batch"),
    *("fold_usage", "_delete_old", "_delete_unreferenced", "_reseal_page"),
]
# Of units that only another genhook commits. One whose requests do the work shares a stored rate.
OPTIONS: dict[str, dict[str, Any]] = {
    "write_proofs": {"callback_trust": "body"},
    "take": {"worker": "off", "drive_seconds": 30.0, "poll_rate_per_second": 1_000.0},
}


@pytest.fixture(autouse=True)
def _named_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send the name of each unit first, so that the relay knows whose COMMIT follows."""
    enqueue = Database._enqueue

    @cache
    def named(unit: Any) -> Any:
        async def run(tx: Transaction, *args: Any) -> Any:
            inner = args[1] if getattr(unit, "__name__", "") == "_create" else unit
            function = inner.func if isinstance(inner, partial) else inner
            await tx.select("SELECT CAST(:name AS TEXT)", {"name": f"unit:{function.__name__};"})
            return await unit(tx, *args)

        return run

    def enqueue_named(database: Database, item: Item, **options: Any) -> Awaitable[Any]:
        item.unit = named(item.unit)
        return enqueue(database, item, **options)

    monkeypatch.setattr(Database, "_enqueue", enqueue_named)
    monkeypatch.setattr(writes, "RETRY_SECONDS", 0.01)


@contextlib.asynccontextmanager
async def relayed_world(path: Path, **options: Any) -> AsyncIterator[tuple[Harness, Relay]]:
    clock = RunningClock() if options.get("worker") == "off" else ManualClock()
    async with relayed(engine.database_of(path)) as relay:
        world = Harness(settings(path, database_path=relay.url, **options), clock)
        await world.app.start(worker=False)
        try:
            yield world, relay
        finally:
            await world.client.aclose()
            await world.anonymous.aclose()
            await world.app.stop()


async def until_answered(ask: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
    """Ask again after each 503, as a client and upstream do; fail if that never ends."""
    for _ in range(5):
        if (answer := await ask()).status_code != 503:
            return answer
    raise AssertionError(f"it failed again and again: {answer.text}")


class Journey:
    """What commits the units: a client, upstream, subscribers and the worker's ticks."""

    def __init__(self, world: Harness) -> None:
        self.world = world

    async def post(self, path: str, body: Any, key: str) -> dict[str, Any]:
        """Send a request of a client with a key, so that a repeat is the same request."""
        client, headers = self.world.client, {"idempotency-key": key}
        answer = await until_answered(lambda: client.post(path, json=body, headers=headers))
        assert answer.is_success, answer.text
        created: dict[str, Any] = answer.json()
        return created

    async def run(self, seconds: float) -> None:
        """Do the due work; a tick that fails comes again a little later, as from a cron."""
        self.world.clock.advance(seconds)
        whole = 0
        for _ in range(24):  # How many fail depends on what comes in one commit.
            with contextlib.suppress(StorageError):
                await self.world.run(2)
                whole += 1
            if whole == 6:
                return

    async def generate(self, prompt: str) -> None:
        body = {"model": "imagen4", "input": {"prompt": prompt}}
        await self.post("/v1/generations", body, prompt)
        await self.world.app.worker.submitter.settle()

    async def go(self) -> None:
        """From subscribers to a replay: by callback, by poll, after a 503, never, and unknown."""
        world, upstream = self.world, self.world.upstream
        await self.post("/v1/subscribers", {"url": RATED, "rate_per_second": 100}, "rated")
        plain = await self.post("/v1/subscribers", {"url": PLAIN, "ordered": True}, "plain")
        world.subscribers.answers[RATED].append(500)
        world.subscribers.answers[PLAIN].append(SendError("timeout", "no answer in time"))
        await self.generate("by-callback")
        upstream.create_replies.append(httpx.Response(503))
        await self.generate("busy-at-first")
        await self.run(10)  # It is submitted again.
        await self.generate("never-ends")
        upstream.create_replies.append(httpx.ReadTimeout("no answer"))
        await self.generate("perhaps-taken")
        upstream.finish("task1")
        answer = await until_answered(lambda: world.call_back({"data": {}}, index=0))
        assert answer.status_code == 200
        await self.run(1)
        upstream.fail("task3")
        await self.run(400)
        await self.run(600)  # Beyond the deadline, and not yet so far that it is asked about again.
        times = {"since": rfc3339(START), "until": rfc3339(world.clock.now)}
        body = {"subscriber_id": plain["id"], "only": "all", **times}
        await self.post("/v1/replays", body, "again")
        await self.run(1_000)


async def outcome_of(world: Harness) -> dict[str, Any]:
    """Return what must be the same, whatever was lost."""

    async def count(table: str, *columns: str) -> Counter[tuple[Any, ...]]:
        found = await rows(world, f"SELECT * FROM {table}")  # noqa: S608  our own names
        return Counter(tuple(row[column] for column in columns) for row in found)

    exchanges = await count("exchanges", "kind", "outcome")
    asked = await count("exchanges", "generation_id", "kind", "at")
    del exchanges["poll", "processing"]  # How often upstream is asked meanwhile may differ.
    latency = await rows(world, "SELECT * FROM attempt_latency")
    usage = await world.get("/v1/usage")
    return {
        "subscribers": await count("subscribers", "url", "status"),
        "generations": await count("generations", "status", "submission", "submit_count"),
        "exchanges": exchanges,
        "exchanges stored twice": [exchange for exchange, times in asked.items() if times > 1],
        "events": await count("events", "type"),
        "deliveries": await count("deliveries", "event_type", "trigger", "status", "attempt_count"),
        "attempts": await count("attempts", "number", "status_code"),
        "attempts counted": sum(row["count"] for row in latency),
        "replays": await count("replays", "status", "done", "total"),
        "callbacks accepted": (await count("callbacks", "verdict"))["accepted",],
        "usage": [{**row, "day": ""} for row in usage["data"]],
        "created at upstream": [body["prompt"] for body in world.upstream.creates],
        "webhooks": len(world.subscribers.webhooks),
    }


async def travel(path: Path, loses: Callable[[str], Lost], **options: Any) -> dict[str, Any]:
    """Return the outcome of a journey on which the relay loses this."""
    path.mkdir()  # noqa: ASYNC240  nothing else runs
    ids._state.update(ms=0, counter=0)  # Each journey has its own time.
    async with relayed_world(path, deadline_seconds=900, **options) as (world, relay):
        relay.loses = loses
        await Journey(world).go()
        relay.loses = lambda _unit: None
        return await outcome_of(world)


_whole: dict[str, dict[str, Any]] = {}  # By its options, a journey on which nothing is lost.


@pytest.mark.parametrize("lost", ["message", "answer"])
@pytest.mark.parametrize("name", UNITS)
async def test_a_journey_ends_the_same_if_every_second_commit_of_a_unit_breaks(
    tmp_path: Path, name: str, lost: Lost
) -> None:
    commits = Counter[str]()

    def lose(unit: str) -> Lost:
        if not unit:  # The order of events, or a notice.
            return None
        commits[unit] += 1
        return lost if unit == name and commits[unit] % 2 else None

    options = OPTIONS.get(name, {})
    if (expected := _whole.get(str(options))) is None:
        expected = await travel(tmp_path / "whole", lambda _unit: None, **options)
        assert expected["attempts counted"] == expected["webhooks"] == 23
    assert await travel(tmp_path / "broken", lose, **options) == expected
    _whole[str(options)] = expected  # One that differs from this fails no other test.
    assert commits[name], "the journey does not commit this unit"
    # A beat after a failure tries a commit.
    assert commits.keys() <= {*UNITS, "write_trial"}, "a unit that is not tested yet"


async def test_what_is_stored_although_the_client_was_told_otherwise_is_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server cannot be asked for a while what became of the COMMIT."""
    monkeypatch.setattr(database_module, "ASK_SECONDS", 0)
    is_broken = True
    async with relayed_world(tmp_path) as (world, relay):
        relay.loses = lambda unit: "answer" if is_broken and unit == "store_new" else None
        body, key = {"model": "imagen4", "input": {"prompt": "a harbour"}}, {"idempotency-key": "a"}
        answer = await world.client.post("/v1/generations", json=body, headers=key)
        assert answer.status_code == 503
        is_broken = False
        await world.app.worker.submitter.settle()
        await world.run(10)
        again = await world.client.post("/v1/generations", json=body, headers=key)
        assert (again.status_code, again.headers["idempotency-replayed"]) == (202, "true")
        assert len(world.upstream.creates) == 1
        assert world.app.worker.submitter.places.taken == 0


@pytest.mark.parametrize("lost", ["message", "answer"])
async def test_a_question_is_taken_once_if_the_commit_that_took_it_breaks(
    tmp_path: Path, lost: Lost
) -> None:
    async with relayed_world(tmp_path) as (world, relay):
        breaks = [lost]
        relay.loses = lambda unit: breaks.pop() if breaks and unit == "take" else None
        assert await world.app.database.write(poll_rate.take, 1, 2.0) == 1
        [row] = await rows(
            world, "SELECT number FROM revisions WHERE noun = 'upstream_asked_until'"
        )
        free_at_ms = START - poll_rate.UNUSED_KEPT_US // 1_000 + 500
        assert (breaks, row["number"]) == ([], free_at_ms * 1_000)


@pytest.mark.parametrize("lost", ["message", "answer"])
async def test_a_unit_that_writes_nothing_runs_again_if_its_commit_breaks(
    tmp_path: Path, lost: Lost
) -> None:
    """Nothing tells such a transaction from one that never was."""
    async with relayed_world(tmp_path) as (world, relay):
        breaks = [lost]
        relay.loses = lambda unit: breaks.pop() if breaks and unit == "ensure" else None
        await world.app.database.write(tenants.ensure, world.app.context, DEFAULT_TENANT)
        assert breaks == []
