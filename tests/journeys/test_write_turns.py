"""Tenants have turns to write: whatever one is owed, another waits for little."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.store import deliveries, lines
from service.store.item import Item
from tests.faults import DelayedAnswer
from tests.harness import SUBSCRIBER_URL, create_answer, opened, success_report
from tests.journeys.test_reloads import client_of
from tests.store.test_lines import record_groups

pytestmark = pytest.mark.sqlite_only("one writer takes turns")

GENERATION = {"model": "imagen4", "input": {"prompt": "a cat"}}
# Units that are about several tenants, or about none.
OF_NO_TENANT = {
    "ensure",
    "add",
    "_claim_due",
    "write_trial",
    "_delete_old",
    "_delete_unreferenced",
    "fold_usage",
    "_reseal_page",
}


def name_of(item: Item) -> str:
    unit: Any = item.args[1] if name_in(item.unit) == "_create" else item.unit
    return name_in(unit)


def name_in(unit: Any) -> str:
    name: str = getattr(unit, "__name__", "") or unit.func.__name__
    return name


def units_by_tenant(groups: Sequence[Sequence[Item]]) -> dict[str | None, set[str]]:
    found: dict[str | None, set[str]] = {}
    for item in (item for items in groups for item in items):
        found.setdefault(item.tenant, set()).add(name_of(item))
    return found


@pytest.mark.parametrize("trust", ["confirm", "body"])
async def test_what_is_written_for_a_tenant_is_written_in_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trust: str
) -> None:
    groups = record_groups(monkeypatch)
    async with opened(tmp_path, callback_trust=trust) as world:
        await world.subscribe()
        await world.generate()
        await world.call_back(success_report("task1"))
        world.upstream.finish("task1")
        await world.run(5)
        await world.run(5)
        assert len(world.subscribers.webhooks) == 2
    units = units_by_tenant(groups)
    assert units[None] <= OF_NO_TENANT
    callback = {"confirm": {"store_hints", "record"}, "body": {"write_proofs"}}[trust]
    assert units["default"] >= {"store_new", "_record", "record_attempts", *callback}


async def test_generations_that_time_out_together_are_units_of_their_tenants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world, await client_of(world, "other") as other:
        world.upstream.create_replies.extend([httpx.ReadTimeout("slow")] * 3)
        for client in (world.client, world.client, other):
            assert (await client.post("/v1/generations", json=GENERATION)).status_code == 202
        groups = record_groups(monkeypatch)
        await world.run(2 * 3_600)
    expired = [item.tenant for items in groups for item in items if name_of(item) == "expire"]
    assert sorted(map(str, expired)) == ["default", "default", "other"]


async def test_a_webhook_does_not_wait_for_all_that_another_tenants_subscribers_are_owed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "HEAVY_ROWS", 1)
    monkeypatch.setattr(lines, "GROUP_ROWS", 40)
    monkeypatch.setattr("service.store.item.HEAVY_ROWS", 5)
    monkeypatch.setattr(lines, "HEAVY_ROWS", 5)
    async with opened(tmp_path) as world, await client_of(world, "many") as many:
        for number in range(6):
            body = {"url": f"{SUBSCRIBER_URL}/{number}", "event_types": ["generation.submitted"]}
            assert (await many.post("/v1/subscribers", json=body)).status_code == 201
        await many.post("/v1/generations", json=GENERATION)
        answers = [
            DelayedAnswer(httpx.Response(200, json=create_answer(f"t{i}"))) for i in range(21)
        ]
        world.upstream.create_replies.extend(answer.reply for answer in answers)
        clients = [*[many] * 20, world.client]
        posts = [asyncio.ensure_future(c.post("/v1/generations", json=GENERATION)) for c in clients]
        for answer in answers:
            await answer.requested.wait()
        groups = record_groups(monkeypatch)
        for answer in answers:
            answer.release()
        await asyncio.gather(*posts)
    order = [item.tenant for items in groups for item in items if name_of(item) == "_record"]
    first = next(i for i, items in enumerate(groups) for item in items if item.tenant == "default")
    before = sum(item.tenant == "many" for items in groups[: first + 1] for item in items)
    assert sorted(set(map(str, order))) == ["default", "many"]
    assert before <= 8
