"""Turns of tenants: one of each at a time, with limits of the wait and of the bytes that wait."""

import asyncio

import pytest

from service.model.errors import StorageBusyError
from service.store import turns as turns_module
from service.store.turns import Turns


async def let_run() -> None:
    for _ in range(10):
        await asyncio.sleep(0)  # noqa: TID251  the others' turn


async def test_a_tenant_that_asks_often_waits_for_itself() -> None:
    turns, order, first = Turns(1), list[str](), asyncio.Event()

    async def take(tenant: str) -> None:
        async with turns.turn(tenant):
            await first.wait()
            order.append(tenant)

    tasks = []
    for tenant in ("busy", "busy", "busy", "other"):
        tasks.append(asyncio.create_task(take(tenant)))
        await let_run()
    first.set()
    await asyncio.gather(*tasks)
    assert order == ["busy", "other", "busy", "busy"]


@pytest.mark.parametrize("tenant", ["busy", "other"])
async def test_a_wait_for_a_turn_ends(monkeypatch: pytest.MonkeyPatch, tenant: str) -> None:
    turns = Turns(1)
    monkeypatch.setattr(turns_module, "TURN_SECONDS", 0)
    async with turns.turn("busy"):
        with pytest.raises(StorageBusyError, match="too many others"):
            async with turns.turn(tenant, 1):
                pass
    async with turns.turn(tenant, turns_module.HELD_BYTES_MAX):  # Nothing is left of the wait.
        pass


async def test_bodies_that_wait_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "HELD_BYTES_MAX", 100)
    turns, done = Turns(1), list[int]()

    async def take(held_bytes: int) -> None:
        async with turns.turn("a", held_bytes):
            done.append(held_bytes)

    async with turns.turn("a", 150):  # A single one may be larger.
        with pytest.raises(StorageBusyError, match="too many bodies"):
            await take(1)
        without_a_body = asyncio.create_task(take(0))
        await let_run()
    await without_a_body
    async with turns.turn("a", 30):
        waiting = asyncio.create_task(take(40))
        await let_run()
        with pytest.raises(StorageBusyError, match="too many bodies"):
            await take(1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        last = asyncio.create_task(take(39))
        await let_run()
    await last
    assert done == [0, 39]


@pytest.mark.parametrize("sizes", [[1] * 200, [100], [33] * 3], ids=["many", "all", "large"])
async def test_the_bodies_of_a_tenant_leave_room_for_those_of_others(
    monkeypatch: pytest.MonkeyPatch, sizes: list[int]
) -> None:
    monkeypatch.setattr(turns_module, "HELD_BYTES_MAX", 100)
    turns, first, done = Turns(1), asyncio.Event(), list[str]()

    async def take(tenant: str, held_bytes: int) -> None:
        async with turns.turn(tenant, held_bytes):
            await first.wait()
            done.append(tenant)

    tasks = [asyncio.create_task(take("busy", size)) for size in sizes]
    tasks += [asyncio.create_task(take("other", 33))]
    await let_run()
    first.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert done.count("busy") == {1: 50, 100: 1, 33: 2}[sizes[0]]
    assert done.count("other") == 1
    assert not turns._held_bytes


async def test_the_bodies_of_all_tenants_are_bounded_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns_module, "HELD_BYTES_MAX", 100)
    turns = Turns(1)
    async with turns.turn("0"):
        waits = [asyncio.create_task(turns.turn(f"{n}", 40).__aenter__()) for n in range(1, 4)]
        await let_run()
        with pytest.raises(StorageBusyError, match="too many bodies"):
            await turns.turn("4", 1).__aenter__()
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
