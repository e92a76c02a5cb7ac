"""Rotation of GENHOOK_SECRET_KEYS: secrets are resealed, then the old key can be removed."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from service.delivery import signing
from service.store import reseal
from service.store.vault import VaultError
from tests.faults import rows
from tests.harness import Harness, opened
from tests.journeys.gates import attach_worker, deliveries
from tests.logs import Console

OLD, NEW = "s" * 32, "n" * 32


async def restart_with_keys(world: Harness, *keys: str) -> None:
    world.settings = msgspec.structs.replace(world.settings, secret_keys=keys)
    await world.restart()


async def run_reseal(world: Harness) -> int:
    return await reseal.run(world.app.database, world.app.worker.context.vault)


async def test_secrets_under_an_old_key_are_resealed_under_the_newest(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(headers={"x-token": "secret"})
        signing_secret = await world.get("/v1/signing-secret")
        await restart_with_keys(world, OLD, NEW)
        assert await run_reseal(world) == 2
        assert await run_reseal(world) == 0
        await restart_with_keys(world, NEW)
        answer = await world.get(f"/v1/subscribers/{subscriber['id']}/secret")
        assert answer["secret"] == subscriber["secret"]
        assert await world.get("/v1/signing-secret") == signing_secret
        [row] = await rows(world, "SELECT id, sealed_headers FROM subscribers")
        vault = world.app.worker.context.vault
        headers = signing.unseal_headers(vault, row["sealed_headers"], row["id"])
        assert headers == {"x-token": "secret"}


async def test_secrets_that_were_not_resealed_do_not_open_without_the_old_key(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe()
        await restart_with_keys(world, NEW)
        [row] = await rows(world, "SELECT id, sealed_secrets FROM subscribers")
        vault = world.app.worker.context.vault
        with pytest.raises(VaultError):
            signing.unseal(vault, row["sealed_secrets"], subscriber["id"])
        assert await run_reseal(world) == 0, "secrets that do not open are not changed"


@pytest.mark.parametrize("has_worker", [False, True])
async def test_whoever_works_reseals_so_that_the_old_key_can_be_removed(
    tmp_path: Path, *, has_worker: bool
) -> None:
    async with opened(tmp_path, worker="off") as world:
        await world.subscribe()
        await restart_with_keys(world, OLD, NEW)
        if has_worker:
            world.app.worker.start()
            await wait_until_current(world)
        else:
            await world.run()
        await restart_with_keys(world, NEW)
        await world.generate()
        await world.run()
        assert world.subscribers.event_types() == ["generation.submitted"]


async def wait_until_current(world: Harness) -> None:
    is_current, sql = world.app.context.vault.is_current, "SELECT sealed_secrets FROM subscribers"
    async with asyncio.timeout(30):
        while not all(is_current(row["sealed_secrets"]) for row in await rows(world, sql)):
            await world.get("/v1/events")


async def test_ticks_look_for_secrets_of_old_keys_once_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resealed: list[int] = []

    async def run(_database: object, _vault: object) -> None:
        resealed.append(world.clock.now)

    monkeypatch.setattr(reseal, "run", run)
    async with opened(tmp_path, worker="off") as world:
        for _ in range(5):
            await world.run(1_000)
        assert [at - resealed[0] for at in resealed] == [0, 4_000_000]


async def test_what_cannot_be_read_is_tried_each_minute_and_once_it_is_changed(
    tmp_path: Path, console: Console
) -> None:
    console.configure("error")
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe(event_types=["generation.submitted"])
        await restart_with_keys(world, NEW)
        async with attach_worker(world) as dispatcher:
            for _ in range(3):
                await world.generate()
                await dispatcher.settle()
            assert [line["event"] for line in console.lines()] == ["lane.failed"]
            for seconds, count in ((59, 0), (1, 1)):
                world.clock.advance(seconds)
                await dispatcher.run_due(world.clock())
                await dispatcher.settle()
                assert len(console.lines()) == count
            await world.client.post(f"/v1/subscribers/{subscriber['id']}/rotate-secret", json={})
            await dispatcher.run_due(world.clock())
            await dispatcher.settle()
        assert {each["status"] for each in await deliveries(world)} == {"delivered"}
    assert console.lines() == []


async def test_more_subscribers_than_a_page_are_all_resealed(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        for number in range(reseal.PAGE + 1):
            await world.subscribe(f"http://127.0.0.1:7/{number}")
        await restart_with_keys(world, OLD, NEW)
        assert await run_reseal(world) == reseal.PAGE + 2
