"""Several workers on PostgreSQL: together they keep what one promises, while they come and go."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.app import App
from service.delivery.dispatch import Dispatcher
from service.delivery.lanes import Lane
from service.store import reseal
from service.store.postgres import ShardLocks, locks, ownership
from service.store.shards import ALL, NONE, shard_of
from service.store.vault import Vault
from service.store.writes import Database
from tests import engine
from tests.harness import SUBSCRIBER_URL, Harness, opened, success_report
from tests.journeys.gates import Counting, Gate, queue_answers, tick_until_asked
from tests.journeys.test_drives import submit_without_a_drive
from tests.journeys.test_ticks import until_nothing_is_due
from tests.store.test_postgres import connected

pytestmark = pytest.mark.usefixtures("postgres")
END_OF_ALL = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1"""
URLS = [f"http://127.0.0.1:7/{number}" for number in range(12)]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr("service.worker.STANDBY_SECONDS", 0.01)
    # After a look at ten lanes a worker would rest for a millisecond: the clock stands still.
    monkeypatch.setattr("service.session.LANES_PER_SECOND", 1_000_000)


async def until(world: Harness, is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(100):
        while not is_so():
            await world.get("/v1/events")


@contextlib.asynccontextmanager
async def beside(world: Harness) -> AsyncIterator[App]:
    """Run another process with a worker on the same database."""
    app = world.new_app()
    await app.start(worker=True)
    try:
        yield app
    finally:
        await app.stop()


def shards(*apps: App) -> list[int]:
    return sorted(len(app.worker.ownership.shards) for app in apps)


async def until_shared(world: Harness, *apps: App) -> None:
    """Wait until the workers share everything evenly."""

    def is_shared() -> bool:
        held = shards(*apps)
        return sum(held) == len(ALL) and held[-1] - held[0] <= 1

    await until(world, is_shared)


async def test_workers_that_come_and_go_deliver_everything_once(tmp_path: Path) -> None:
    async with opened(tmp_path, public_url=None) as world:
        for url in URLS:
            await world.subscribe(url, event_types=["generation.submitted"])
        world.app.worker.start()
        await until_shared(world, world.app)
        async with beside(world) as second:
            await asyncio.gather(*(world.generate() for _ in range(10)))
            async with beside(world) as third:
                await until_shared(world, world.app, second, third)
                await asyncio.gather(*(world.generate() for _ in range(10)))
            await asyncio.gather(*(world.generate() for _ in range(10)))
            await until_shared(world, world.app, second)
        await until_shared(world, world.app)
        await until(world, lambda: len(world.subscribers.webhooks) >= 30 * len(URLS))
        sent = Counter((w.url, w.headers["webhook-id"]) for w in world.subscribers.webhooks)
        assert (len(sent), set(sent.values())) == (30 * len(URLS), {1})
        assert len(world.upstream.creates) == 30


async def until_looked(world: Harness) -> None:
    """Start the worker, and wait until the first look is over: deliveries are handed over then."""
    worker = world.app.worker
    worker.start()
    await until_shared(world, world.app)
    await until(world, lambda: (worker.session._next_look_at or 0) > world.clock())


@contextlib.asynccontextmanager
async def during_a_look(
    world: Harness, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[asyncio.Event]:
    """Within, the worker is at the end of a look, as with many lanes, until the event is set."""
    scan, mine = Dispatcher.scan, world.app.worker.dispatcher
    has_looked, may_go_on = asyncio.Event(), asyncio.Event()

    async def scan_slowly(dispatcher: Dispatcher) -> int:
        count = await scan(dispatcher)
        if dispatcher is mine:
            has_looked.set()
            await may_go_on.wait()
        return count

    monkeypatch.setattr(Dispatcher, "scan", scan_slowly)
    world.app.worker.session._next_look_at = 0
    await has_looked.wait()
    try:
        yield may_go_on
    finally:
        may_go_on.set()


async def test_shards_that_go_and_come_back_during_one_look_repeat_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "LOOK_SECONDS", float("inf"))
    async with opened(tmp_path, public_url=None) as world:
        for url in URLS:
            await world.subscribe(url, event_types=["generation.submitted"], rate_per_second=5)
        await until_looked(world)
        mine, webhooks = world.app.worker.dispatcher, world.subscribers.webhooks
        await world.generate()
        await until(world, lambda: len(webhooks) == len(URLS) and mine.is_settled)
        for _ in range(2):  # Lanes hold these in memory: the rate lets none of them leave.
            await world.generate()
        holding = [id_ for id_, lane in mine.lanes.items() if lane.waiting]
        assert any(shard_of(id_) >= len(ALL) // 2 for id_ in holding), "one will be given up"
        async with during_a_look(world, monkeypatch) as may_go_on:
            async with beside(world) as other:
                await until_shared(world, world.app, other)
                world.clock.advance(0.2)
                await until(world, lambda: len(webhooks) == 2 * len(URLS))
            await until_shared(world, world.app)
            may_go_on.set()
            world.clock.advance(0.2)
            await until(world, lambda: len(webhooks) >= 3 * len(URLS))
        sent = Counter((w.url, w.headers["webhook-id"]) for w in webhooks)
        assert (len(sent), set(sent.values())) == (3 * len(URLS), {1})


async def test_what_ended_in_a_shard_that_was_to_be_given_up_holds_up_nothing_if_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "LOOK_SECONDS", float("inf"))
    gate = Gate()
    async with opened(tmp_path, public_url=None) as world:
        id_ = ""
        while not id_ or shard_of(id_) < len(ALL) // 2:  # The upper half is given up first.
            await world.client.delete(f"/v1/subscribers/{id_}")
            fields = {"event_types": ["generation.submitted"], "max_in_flight": 1}
            id_ = (await world.subscribe(**fields))["id"]
        queue_answers(world, gate)
        await until_looked(world)
        for _ in range(2):
            await world.generate()
        await gate.wait_for(1)
        lane, holds = world.app.worker.dispatcher.lanes[id_], world.app.database.holds
        async with during_a_look(world, monkeypatch):
            world.app.worker.ownership.busy = lambda: ALL
            async with beside(world):
                await until(world, lambda: not holds(id_))
                gate.is_open.set()
                await until(world, lambda: not lane.in_flight)
                assert len(world.subscribers.webhooks) == 1
            await until(world, lambda: holds(id_))
        await until(world, lambda: len(world.subscribers.webhooks) == 2)


async def test_what_is_sent_upstream_again_is_sent_by_one_of_the_workers(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        busy = httpx.Response(503, headers={"retry-after": "1"})
        world.upstream.create_replies.extend([busy] * 10)
        for _ in range(10):
            await world.generate()
        world.app.worker.start()
        async with beside(world) as second, beside(world) as third:
            await until_shared(world, world.app, second, third)
            world.clock.advance(120)
            for app in (world.app, second, third):
                for _, signal in app.worker.session.loops:
                    signal.set()
            await until(world, lambda: len(world.upstream.creates) >= 20)
            page = await world.get("/v1/generations")
            await until(world, lambda: not second.worker.submitter.in_flight)
        assert {row["status"] for row in page["data"]} <= {"queued", "processing"}
        assert len(world.upstream.creates) == 20


async def test_a_cap_and_the_order_hold_over_all_workers_and_writers(tmp_path: Path) -> None:
    """Eight processes store callbacks, three of them work."""
    receiver = Counting()
    async with (
        opened(tmp_path, callback_trust="body") as world,
        contextlib.AsyncExitStack() as all_,
    ):
        await world.subscribe(ordered=True, max_in_flight=2)
        world.subscribers.answers[SUBSCRIBER_URL].extend([receiver] * 1_000)
        world.app.worker.start()
        for _ in range(2):
            await all_.enter_async_context(beside(world))
        clients = [world.anonymous]
        for _ in range(7):
            app = world.new_app()
            await app.start(worker=False)
            all_.push_async_callback(app.stop)
            clients.append(httpx.AsyncClient(transport=httpx.ASGITransport(app)))
            all_.push_async_callback(clients[-1].aclose)
        count = 40
        for _ in range(count):
            await world.generate()
        reports = [
            clients[n % 8].post(world.upstream.callback_url(n), json=success_report(f"task{n + 1}"))
            for n in range(count)
        ]
        assert {answer.status_code for answer in await asyncio.gather(*reports)} == {200}
        await until(world, lambda: len(world.subscribers.webhooks) >= 2 * count)
        assert receiver.most <= 2
        events = [webhook.event for webhook in world.subscribers.webhooks]
        types = ["generation.submitted", "generation.succeeded"]
        for n in range(count):
            of_task = [e["type"] for e in events if e["data"]["task_id"] == f"task{n + 1}"]
            assert of_task == types
        listed = await world.get("/v1/events", order="asc", limit=250)
        assert len({row["id"] for row in listed["data"]}) == 2 * count


async def test_the_rates_of_all_workers_are_the_rate(tmp_path: Path) -> None:
    async with opened(tmp_path, poll_rate_per_second=30.0) as world:
        world.app.worker.start()
        await until_shared(world, world.app)
        async with beside(world) as second, beside(world) as third:
            apps = world.app, second, third
            await until_shared(world, *apps)
            budgets = [app.worker.submitter.budget for app in apps]
            await until(world, lambda: sum(b.rate for b in budgets) == pytest.approx(30.0))
            assert max(b.rate for b in budgets) < 11
            assert sum(b.capacity for b in budgets) == pytest.approx(30.0)
        await until(world, lambda: world.app.worker.submitter.budget.rate == 30.0)


async def test_who_loses_its_connection_begins_anew_and_nothing_is_lost(tmp_path: Path) -> None:
    async with opened(tmp_path, public_url=None) as world:
        for url in URLS:
            await world.subscribe(url, event_types=["generation.submitted"])
        world.app.worker.start()
        async with beside(world) as second:
            await until_shared(world, world.app, second)
            session = second.worker.session
            async with connected(second.database) as connection:
                await connection.execute(END_OF_ALL, second.database.name)
            await until(world, lambda: second.worker.session is not session)
            await until_shared(world, world.app, second)
            for _ in range(10):
                await world.generate()
            await until(world, lambda: len(world.subscribers.webhooks) >= 10 * len(URLS))
        sent = Counter((w.url, w.headers["webhook-id"]) for w in world.subscribers.webhooks)
        assert len(sent) == 10 * len(URLS)


async def test_a_worker_whose_loop_hung_is_replaced_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, public_url=None) as world:
        await world.subscribe(event_types=["generation.submitted"])
        async with beside(world) as hanging:
            await until_shared(world, hanging)
            worker = hanging.worker

            async def say_nothing() -> None:
                """As a process that is stopped."""

            monkeypatch.setattr(worker.ownership, "beat", say_nothing)
            monkeypatch.setattr(locks, "SILENT_SECONDS", 0.5)
            session = worker.session
            its_right: Any = worker.ownership
            async with its_right._round_lock:  # The last beat is over.
                holding = hanging.database.holding
                valid_until = ownership.seconds_since_boot() + 0.2
                holding.put(holding.shards, valid_until, ownership.seconds_since_boot)
            world.app.worker.start()
            await until(world, lambda: shards(world.app) == [64])
            await until(
                world, lambda: worker.session is not session or not worker.ownership.is_held
            )
            await world.generate()
            await until(world, lambda: world.subscribers.webhooks)
        assert len(world.subscribers.webhooks) == 1


async def test_a_database_without_workers_tells_them_at_once(tmp_path: Path) -> None:
    """The look at the rows every few seconds stands behind it."""
    async with opened(tmp_path, public_url=None) as world, beside(world) as second:
        await world.subscribe(event_types=["generation.submitted"])
        await until_shared(world, second)
        monkey: Any = second.worker.ownership
        monkey._looked_at = float("inf")  # Only a notice makes it look.
        await world.generate()
        await until(world, lambda: world.subscribers.webhooks)
        assert engine.schemas is not None


async def test_a_drive_takes_the_shards_of_its_generation_and_of_its_lanes_only(
    tmp_path: Path,
) -> None:
    """Those of another drive, which waits for a receiver, are not in its way."""
    gate = Gate()
    async with opened(tmp_path, worker="off", drive_seconds=60.0) as world:
        subscriber = await world.subscribe(event_types=["generation.submitted"])
        world.subscribers.answers[SUBSCRIBER_URL].append(gate)
        submitting = asyncio.create_task(world.generate())
        await gate.wait_for(1)
        held = world.app.worker.ownership.shards
        assert shard_of(subscriber["id"]) in held
        other = world.new_app()
        await other.start()
        assert await other.worker.ownership.acquire(ALL)
        assert other.worker.ownership.shards == ALL - held
        await other.worker.ownership.release()
        gate.is_open.set()
        generation = await submitting
        assert held == {shard_of(subscriber["id"]), shard_of(generation["id"])}
        await until(world, lambda: not world.app.worker.ownership.is_held)
        await other.stop()


async def test_a_drive_takes_the_shards_of_what_no_session_took(tmp_path: Path) -> None:
    """While requests outlive a tick, deliveries are handed to nobody."""
    gate = Gate()
    async with opened(tmp_path, worker="off", drive_seconds=60.0) as world:
        worker = world.app.worker
        await world.subscribe(event_types=["generation.submitted"])
        world.subscribers.answers[SUBSCRIBER_URL].append(gate)
        await submit_without_a_drive(world)
        await tick_until_asked(world, gate)
        worker.context.missed_shards.clear()  # Of the first one, committed before the tick.
        await submit_without_a_drive(world)
        gate.is_open.set()
        await until(world, lambda: not worker.ownership.is_held)
        assert len(world.subscribers.webhooks) == 1
        await worker.drive("gen_1")
        assert len(world.subscribers.webhooks) == 2


async def test_a_request_is_not_answered_for_a_tick_that_lacks_its_shard(tmp_path: Path) -> None:
    async with opened(tmp_path, worker="off", drive_seconds=60.0) as world:
        other = world.new_app()
        await other.start(worker=False)
        generation = await world.generate()
        world.upstream.finish("task1")
        gate = Gate()
        while True:
            subscriber = await world.subscribe(event_types=["generation.submitted"])
            if shard_of(subscriber["id"]) != shard_of(generation["id"]):
                break
            await world.client.delete(f"/v1/subscribers/{subscriber['id']}")
        queue_answers(world, gate)
        await submit_without_a_drive(world)
        assert await other.worker.ownership.acquire({shard_of(generation["id"])})
        worker = world.app.worker
        tick = asyncio.create_task(worker.tick(60))
        await gate.wait_for(1)
        assert worker.ownership.shards == ALL - {shard_of(generation["id"])}
        calling = asyncio.create_task(world.call_back(success_report("task1"), 0))
        async with asyncio.timeout(60):
            while not worker.ticks._requested.is_set():
                await world.get("/v1/events")
        for _ in range(3):  # By now the tick has heard of it.
            await world.get("/v1/events")
        await other.worker.ownership.release()
        gate.is_open.set()
        async with asyncio.timeout(60):
            while not calling.done():
                world.clock.now += 10  # A drive ends once the poll rate allows the next poll.
                await world.get("/v1/events")
        assert calling.result().status_code == 200
        assert world.upstream.polls == ["task1"]
        await tick
        await until(world, lambda: not worker.ownership.is_held)
        await other.stop()


async def test_lanes_of_shards_that_are_kept_stay_though_no_shard_is_valid_at_the_moment(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        session = world.app.worker.session
        session._shards = ALL
        lanes = session.dispatcher.lanes
        lanes.update({id_: Lane(id_) for id_ in ("sub_1", "sub_2")})
        assert not any(world.app.database.holds(id_) for id_ in lanes)
        session._forget(frozenset({shard_of("sub_1")}))
        assert list(lanes) == ["sub_2"]


async def test_a_tick_that_lacks_a_shard_says_that_more_may_be_due(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await until_nothing_is_due(world)
        other = world.new_app()
        await other.start(worker=False)
        assert await other.worker.ownership.acquire({7})
        assert (await world.app.worker.tick(60)).more
        await other.worker.ownership.release()
        await other.stop()
        await until_nothing_is_due(world)


@pytest.mark.parametrize("how", ["lapsed", "terminated"])
async def test_a_tick_that_loses_its_shards_says_that_more_may_be_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    async with opened(tmp_path) as world:
        await until_nothing_is_due(world)
        gate = Gate()
        queue_answers(world, gate)
        await world.subscribe(event_types=["generation.submitted"])
        await world.generate()
        worker = world.app.worker
        tick = asyncio.create_task(worker.tick(60))
        await gate.wait_for(1)
        if how == "lapsed":  # As after beats that were late.
            monkeypatch.setattr(ShardLocks, "shards", NONE)
        else:
            async with connected(world.app.database) as connection:
                await connection.execute(END_OF_ALL, world.app.database.name)
            await until(world, lambda: not worker.ownership.is_held)
        gate.is_open.set()
        done = await tick
        assert (done.attempted, done.more) == (1, True)


async def test_who_takes_the_first_shard_reseals_what_older_keys_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker with newer keys may have had no chance when it began."""
    resealed: list[Vault] = []

    async def run(_database: Database, vault: Vault) -> None:
        resealed.append(vault)

    async with opened(tmp_path) as world:
        worker = world.app.worker
        monkeypatch.setattr(ShardLocks, "shards", frozenset({1}))
        monkeypatch.setattr(reseal, "run", run)
        assert await worker._take_over()
        await worker.session._clean(world.clock())
        assert resealed == []
        monkeypatch.setattr(ShardLocks, "shards", frozenset({0, 1}))
        for _ in range(2):
            await worker.session._clean(world.clock())
        assert resealed == [world.app.context.vault]
        await worker.end_session()
