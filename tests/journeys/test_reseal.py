"""Rotating GENHOOK_SECRET_KEYS: what is stored is sealed anew, then the old key may go."""

from pathlib import Path

import msgspec
import pytest

from service.delivery import signing_keys
from service.store import reseal
from service.store.vault import VaultError
from tests.disaster import rows
from tests.harness import Harness, opened

OLD, NEW = "s" * 32, "n" * 32


async def _with_keys(world: Harness, *keys: str) -> None:
    world.settings = msgspec.structs.replace(world.settings, secret_keys=keys)
    await world.restart()


async def test_secrets_sealed_under_an_old_key_are_sealed_under_the_newest(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        made = await world.subscribe(headers={"x-token": "of-theirs"})
        secret = await world.get("/v1/signing-secret")
        await _with_keys(world, OLD, NEW)
        assert await reseal.run(world.app.database, world.app.parts.context.vault) == 2
        assert await reseal.run(world.app.database, world.app.parts.context.vault) == 0
        await _with_keys(world, NEW)
        kept = await world.get(f"/v1/subscribers/{made['id']}/secret")
        assert kept["secret"] == made["secret"]
        assert await world.get("/v1/signing-secret") == secret
        [row] = await rows(world, "SELECT id, sealed_headers FROM subscribers")
        vault = world.app.parts.context.vault
        found = signing_keys.unseal_headers(vault, row["sealed_headers"], row["id"])
        assert found == {"x-token": "of-theirs"}


async def test_without_sealing_anew_the_old_key_cannot_go(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        made = await world.subscribe()
        await _with_keys(world, NEW)
        [row] = await rows(world, "SELECT id, sealed_secrets FROM subscribers")
        with pytest.raises(VaultError):
            signing_keys.unseal(world.app.parts.context.vault, row["sealed_secrets"], made["id"])
        assert await reseal.run(world.app.database, world.app.parts.context.vault) == 0, (
            "what cannot be read stays"
        )


async def test_more_subscribers_than_a_page_are_all_sealed_anew(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        for number in range(reseal.PAGE + 1):
            await world.subscribe(f"http://127.0.0.1:7/{number}")
        await _with_keys(world, OLD, NEW)
        assert (
            await reseal.run(world.app.database, world.app.parts.context.vault) == reseal.PAGE + 2
        )
