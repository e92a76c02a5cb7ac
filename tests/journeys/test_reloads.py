"""What is read again after a change: the lanes that it is about, and none of another tenant."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.delivery.attempt import read_recipient
from service.store.sqlite.database import Database
from tests.harness import SUBSCRIBER_URL, Harness, opened
from tests.journeys.gates import attach_worker

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


async def test_a_lane_that_is_read_while_its_tenant_changes_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world, attach_worker(world) as dispatcher:
        await world.subscribe(**ONE)
        database, reads, old_is_read = world.app.database, 0, asyncio.Event()
        go_on = asyncio.Event()

        async def slow(unit: Any, *args: Any) -> Any:
            nonlocal reads
            found = await Database.read(database, unit, *args)
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
