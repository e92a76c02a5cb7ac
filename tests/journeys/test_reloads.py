"""What is read again after a change: the lanes that it is about, and none of another tenant."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.delivery.attempt import read_recipient
from service.delivery.dispatch import Dispatcher
from service.store import subscribers
from tests.faults import rows
from tests.harness import SUBSCRIBER_URL, Harness, opened
from tests.journeys.gates import attach_worker, queue_answers
from tests.journeys.test_sessions import another_process, begin

ONE: dict[str, Any] = {"event_types": ["generation.submitted"]}
BESIDE = f"{SUBSCRIBER_URL}/beside"  # The same receiver.


async def client_of(world: Harness, tenant: str) -> httpx.AsyncClient:
    body = {"name": tenant, "scopes": ["submit", "read", "manage"], "tenant": tenant}
    answer = await world.client.post("/v1/keys", json=body)
    assert answer.status_code == 201, answer.text
    return world.new_client(answer.json()["key"])


async def rotate(client: httpx.AsyncClient, **body: Any) -> None:
    answer = await client.post("/v1/signing-secret/rotate", json=body)
    assert answer.status_code == 200, answer.text


async def set_status(world: Harness, subscriber: dict[str, Any], status: str) -> None:
    path = f"/v1/subscribers/{subscriber['id']}"
    assert (await world.client.patch(path, json={"status": status})).status_code == 200


async def test_a_rotated_secret_of_one_tenant_reads_no_lane_of_another_again(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world, attach_worker(world) as dispatcher:
        subscriber = await world.subscribe(**ONE)
        await world.generate()
        await dispatcher.settle()
        lane = dispatcher.lanes[subscriber["id"]]
        async with await client_of(world, "other") as other:
            await rotate(other)
        assert lane.recipient is not None
        await rotate(world.client)
        assert lane.recipient is None


async def test_enabling_a_subscriber_reads_the_lanes_beside_it_only_where_a_rest_ends(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world, attach_worker(world) as dispatcher:
        subscriber, beside = await world.subscribe(**ONE), await world.subscribe(BESIDE, **ONE)
        await world.generate()
        await dispatcher.settle()
        lane = dispatcher.lanes[beside["id"]]
        await set_status(world, subscriber, "disabled")
        await set_status(world, subscriber, "active")
        assert lane.recipient is not None


@asynccontextmanager
async def lanes_of_a_session(world: Harness, count: int) -> AsyncIterator[Dispatcher]:
    """Within, a session works on lanes that each have had a webhook, and have the next one soon."""
    for number in range(count):
        url = f"{SUBSCRIBER_URL}/{number}"
        queue_answers(world, 500, url=url)
        await world.subscribe(url, **ONE, retry_schedule_seconds=[0, 60])
    worker = world.app.worker
    await begin(world)
    await world.generate()
    await worker.dispatcher.settle()
    yield worker.dispatcher
    await worker.end_session()


async def read_again(world: Harness, dispatcher: Dispatcher) -> set[str]:
    """Look at what another process committed; return the subscribers that are read again."""
    world.clock.advance(1)
    before = {id_: lane.recipient for id_, lane in dispatcher.lanes.items()}
    await world.app.worker.session.watch(world.clock())
    await dispatcher.run_due(world.clock())
    await dispatcher.settle()
    return {id_ for id_, known in before.items() if dispatcher.lanes[id_].recipient is not known}


async def test_a_commit_of_another_process_reads_only_the_subscribers_again_that_it_changed(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world, lanes_of_a_session(world, 3) as dispatcher:
        changed, *_ = ids = sorted(dispatcher.lanes)
        assert len(ids) == 3
        async with another_process(world):
            await world.client.patch(f"/v1/subscribers/{changed}", json={"description": "new"})
        assert await read_again(world, dispatcher) == {changed}
        async with another_process(world):
            await world.client.post("/v1/keys", json={"name": "k", "scopes": ["read"]})
        assert await read_again(world, dispatcher) == set()


async def test_a_change_by_another_process_is_seen_though_the_writer_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world, lanes_of_a_session(world, 2) as dispatcher:
        session, lane = world.app.worker.session, next(iter(dispatcher.lanes.values()))
        known: list[Any] = []

        async def ask_the_writer() -> bool:
            known.append(lane.recipient)
            return False

        monkeypatch.setattr(session.ownership, "other_process_committed", ask_the_writer)
        async with another_process(world):
            path = f"/v1/subscribers/{lane.subscriber_id}"
            await world.client.patch(path, json={"description": "new"})
        assert lane.recipient is not None
        await session.watch(world.clock())
        assert known == [None]


async def test_a_secret_of_another_tenant_that_another_process_changed_reads_no_lane_again(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world, lanes_of_a_session(world, 2) as dispatcher:
        async with another_process(world), await client_of(world, "other") as other:
            await rotate(other)
        assert await read_again(world, dispatcher) == set()
        async with another_process(world):
            await rotate(world.client)
        assert await read_again(world, dispatcher) == set(dispatcher.lanes)


async def test_who_missed_more_changes_than_are_kept_reads_everything_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscribers, "CHANGES_KEPT", 2)
    async with opened(tmp_path) as world, lanes_of_a_session(world, 2) as dispatcher:
        ids = sorted(dispatcher.lanes)
        for count, expected in ((2, {ids[0]}), (3, set(ids))):
            async with another_process(world) as app:
                for _ in range(count):
                    await world.client.patch(f"/v1/subscribers/{ids[0]}", json={"description": "x"})
                kept = await rows(world, "SELECT count(*) AS count FROM subscriber_changes")
                assert kept[0]["count"] <= 2, app
            assert await read_again(world, dispatcher) == expected


async def test_a_lane_that_is_read_while_its_tenant_changes_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world, attach_worker(world) as dispatcher:
        await world.subscribe(**ONE)
        database, reads, old_is_read = world.app.database, 0, asyncio.Event()
        go_on = asyncio.Event()

        async def slow(unit: Any, *args: Any) -> Any:
            nonlocal reads
            found = await type(database).read(database, unit, *args)
            if unit is read_recipient:
                reads += 1
                old_is_read.set()
                await go_on.wait()
            return found

        with monkeypatch.context() as patched:
            patched.setattr(database, "read", slow)
            await world.generate()
            await old_is_read.wait()
            dispatcher.reload_tenant("default")
            go_on.set()
            await dispatcher.settle()
        assert reads == 2
        assert len(world.subscribers.webhooks) == 1
