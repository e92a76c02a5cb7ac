"""Many subscribers and many lanes: what they cost when they have nothing to do."""

from pathlib import Path
from typing import Any

import pytest

from service import session
from service.delivery import dispatch
from service.delivery.target import Answer
from service.model.clock import SECOND
from service.store import rows as stored_rows
from service.store.subscribers import Changes
from tests.harness import SUBSCRIBER_URL, Harness, opened
from tests.journeys.gates import attach_worker, deliveries, queue_answers
from tests.journeys.test_sessions import another_process, begin

ONE: dict[str, Any] = {"event_types": ["generation.submitted"]}


def url_of(number: int) -> str:
    return f"http://127.0.0.{number + 1}/inbox"  # Each is a receiver of its own.


async def subscribe_to_failures(world: Harness, count: int, delay_seconds: int) -> list[str]:
    """Create subscribers that fail once each, and are tried again after the delay."""
    for number in range(count):
        queue_answers(world, 500, url=url_of(number))
        await world.subscribe(url_of(number), **ONE, retry_schedule_seconds=[0, delay_seconds])
    await world.generate()
    await world.run()
    return [url_of(number) for number in range(count)]


@pytest.mark.parametrize(("delay_seconds", "lanes"), [(60, 5), (3_600, 0)])
async def test_only_lanes_with_work_soon_come_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delay_seconds: int, lanes: int
) -> None:
    monkeypatch.setattr(dispatch, "SCAN_LANES", 2)
    async with opened(tmp_path) as world:
        urls = await subscribe_to_failures(world, 5, delay_seconds)
        worker = world.app.worker
        await begin(world)
        assert await worker.dispatcher.scan() == 5
        assert len(worker.dispatcher.lanes) == lanes
        world.clock.advance(delay_seconds)
        await worker.session.watch(world.clock())
        await worker.dispatcher.run_due(world.clock())
        await worker.dispatcher.settle()
        assert [len(world.subscribers.webhooks_to(url)) for url in urls] == [2] * 5
        await worker.end_session()


async def test_lanes_that_wait_for_long_are_dropped_when_there_are_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "LANES_MAX", 3)
    async with opened(tmp_path) as world:
        async with attach_worker(world) as dispatcher:
            await subscribe_to_failures(world, 3, 3_600)
            await world.generate()
            await dispatcher.settle()
            dispatcher._lanes_max = 3
            dispatcher._lane("sub_more")
            assert list(dispatcher.lanes) == ["sub_more"]
        await world.run(3_600)
        assert {each["status"] for each in await deliveries(world)} == {"delivered"}


@pytest.mark.sqlite_only("it looks at once; the notice of PostgreSQL takes a moment")
async def test_what_a_paused_subscriber_is_owed_holds_no_lane(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE)
        path = f"/v1/subscribers/{subscriber['id']}"
        await world.client.patch(path, json={"status": "paused"})
        await world.generate()
        worker = world.app.worker
        await begin(world)
        assert not worker.dispatcher.lanes
        async with another_process(world):
            await world.client.patch(path, json={"status": "active"})
        await worker.session.watch(world.clock())
        await worker.dispatcher.run_due(world.clock())
        await worker.dispatcher.settle()
        assert len(world.subscribers.webhooks) == 1
        await worker.end_session()


@pytest.mark.sqlite_only("it looks at once; the notice of PostgreSQL takes a moment")
async def test_a_lane_goes_on_once_another_process_has_resumed_its_subscriber(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE)
        path = f"/v1/subscribers/{subscriber['id']}"
        worker = world.app.worker
        await begin(world)
        await world.client.patch(path, json={"status": "paused"})
        await world.generate()

        async def follow() -> None:
            """Hear of changes, without a look at all lanes."""
            await worker.session.follow_changes(world.clock())
            await worker.dispatcher.run_due(world.clock())
            await worker.dispatcher.settle()

        await follow()
        lane = worker.dispatcher.lanes[subscriber["id"]]
        assert lane.recipient is not None
        assert not lane.is_open
        async with another_process(world):
            await world.client.patch(path, json={"status": "active"})
        await follow()
        assert len(world.subscribers.webhooks) == 1
        await worker.end_session()


async def test_a_change_of_all_subscribers_reads_no_lane_without_work(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(**ONE)
        async with attach_worker(world) as dispatcher:
            await world.generate()
            await dispatcher.settle()
            [lane] = dispatcher.lanes.values()
            dispatcher.reload_changed(Changes(1, is_all=True))
            await dispatcher.run_due(world.clock())
            await dispatcher.settle()
            assert lane.recipient is None
            await world.generate()
            await dispatcher.settle()
        assert len(world.subscribers.webhooks) == 2


@pytest.mark.parametrize("milliseconds", [4 * SECOND - 1, 4 * SECOND])
async def test_commits_of_another_process_cost_no_more_looks_than_the_lanes_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, milliseconds: int
) -> None:
    monkeypatch.setattr(session, "LANES_PER_SECOND", 1)
    async with opened(tmp_path) as world:
        await subscribe_to_failures(world, 4, 3_600)
        worker = world.app.worker
        await begin(world)  # It looks at four lanes.
        await world.subscribe()
        async with another_process(world):
            await world.generate()
        await worker.session.watch(world.clock())
        world.clock.now += milliseconds
        await worker.session.watch(world.clock())
        await worker.dispatcher.run_due(world.clock())
        await worker.dispatcher.settle()
        sent = len(world.subscribers.webhooks_to(SUBSCRIBER_URL))
        assert sent == (milliseconds == 4 * SECOND)
        await worker.end_session()


async def test_a_429_rests_every_subscriber_of_the_receiver_in_later_ticks_too(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(f"{SUBSCRIBER_URL}/first", **ONE)
        answer = Answer(429, (("retry-after", "60"),), b"")
        queue_answers(world, answer, url=f"{SUBSCRIBER_URL}/first")
        await world.generate()
        await world.run()
        await world.subscribe(f"{SUBSCRIBER_URL}/second", **ONE)
        await world.subscribe(url_of(7), **ONE)
        await world.generate()
        await world.run(59)
        sent = [webhook.url for webhook in world.subscribers.webhooks]
        assert sent == [f"{SUBSCRIBER_URL}/first", url_of(7)]
        await world.run(1)
        assert len(world.subscribers.webhooks_to(f"{SUBSCRIBER_URL}/second")) == 1


async def test_a_receiver_rests_no_longer_than_is_stored(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(**ONE)
        queue_answers(world, Answer(429, (("retry-after", "60"),), b""))
        worker = world.app.worker
        await begin(world)
        await world.generate()
        await worker.dispatcher.settle()
        await world.subscribe(f"{SUBSCRIBER_URL}/second", **ONE)
        await world.generate()
        await worker.dispatcher.settle()
        assert not world.subscribers.webhooks_to(f"{SUBSCRIBER_URL}/second")  # It rests, too.
        path = f"/v1/subscribers/{subscriber['id']}"
        async with another_process(world):  # A person says that the receiver is well again.
            for status in ("disabled", "active"):
                await world.client.patch(path, json={"status": status})
            await world.generate()
        await worker.session.watch(world.clock())
        await worker.dispatcher.run_due(world.clock())
        await worker.dispatcher.settle()
        assert len(world.subscribers.webhooks_to(f"{SUBSCRIBER_URL}/second")) == 2
        await worker.end_session()


async def test_an_event_decodes_no_subscriber_that_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        subscribers = [await world.subscribe(url_of(number), **ONE) for number in range(3)]
        await world.generate()
        decoded: list[str] = []
        decode = stored_rows.decode_row

        def note(struct: type[Any], row: Any) -> Any:
            decoded.append(struct.__name__)
            return decode(struct, row)

        monkeypatch.setattr(stored_rows, "decode_row", note)
        await world.generate()
        assert "Subscriber" not in decoded
        assert len(await deliveries(world)) == 6
        path = f"/v1/subscribers/{subscribers[0]['id']}"
        await world.client.patch(path, json={"event_types": ["generation.failed"]})
        await world.generate()
        assert len(await deliveries(world)) == 8  # The change counts at once.


async def test_a_start_reseals_no_subscriber_that_has_no_secret_of_its_own(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        for number in range(4):
            await world.generate(notify_url=f"{SUBSCRIBER_URL}/{number}")
        await world.subscribe()
        read = world.app.database.read
        page = await read(lambda tx: tx.all("subscribers_sealed", after="", limit=10))
        assert len(page) == 1
