"""Who works: every process with its shards, on the page of whichever process answers."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from service.app import App
from service.dashboard.formats import write_spans
from service.store.postgres import ownership
from service.store.shards import ALL
from service.store.sqlite import byte_locks
from service.store.sqlite import ownership as file_lock
from tests import engine
from tests.contract.scenes import client_with
from tests.dashboard.browser import Browser, text_of
from tests.harness import Harness, opened


@asynccontextmanager
async def beside(world: Harness) -> AsyncIterator[App]:
    """Another process of the same database."""
    app = world.new_app()
    await app.start(worker=False)
    try:
        yield app
    finally:
        await app.stop()


async def workers(world: Harness) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await world.get("/v1/workers"))["data"]
    return found


def held_by(app: App) -> Any:
    assert app.worker is not None
    return app.worker.ownership


def test_numbers_in_a_row_are_a_span() -> None:
    assert write_spans([0, 1, 2, 5, 7, 8]) == "0 to 2, 5, 7 to 8"
    assert write_spans(sorted(ALL)) == "0 to 63"
    assert write_spans([]) == ""


async def test_only_operators_see_who_works(world: Harness) -> None:
    async with await client_with(world, "admin") as admin:
        assert (await admin.get("/v1/workers")).status_code == 403
        one = Browser(world)
        await one.sign_in(admin.headers["authorization"].removeprefix("Bearer "))
        page = await one.get("/workers")
    assert "Who works needs a key with the scope operator" in text_of(page)
    assert "/v1/workers" not in page.text


async def test_on_sqlite_one_process_has_all_shards_whoever_answers(
    world: Harness, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = f"process {os.getpid()}"
    assert await workers(world) == []
    assert "Nobody works now" in text_of(await browser.get("/workers"))
    assert await held_by(world.app).acquire()
    [row] = await workers(world)
    assert row == {"name": own, "shards": sorted(ALL), "is_answering": True}
    assert f"{own} (this one) 64 0 to 63" in text_of(await browser.get("/workers"))
    await held_by(world.app).release()
    async with beside(world) as other:
        assert await held_by(other).acquire()
        for name in (own, file_lock.UNSEEN):
            held_by(world.app).name = "process 0"  # Both are of this process, which is no other.
            [row] = await workers(world)
            assert row == {"name": name, "shards": sorted(ALL), "is_answering": False}
            monkeypatch.setattr(byte_locks, "LOCKS", Path("nothing"))
        assert "another process 64" in text_of(await browser.get("/workers"))
        await held_by(other).release()
        assert await workers(world) == []
        assert await held_by(other).acquire(), "the look keeps the lock"


async def test_on_a_server_every_process_is_shown_with_its_shards(
    postgres: engine.Schemas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 3_600)
    url = postgres.database_of(tmp_path)
    async with opened(tmp_path, database_path=url) as world, beside(world) as other:
        names = [held_by(app).name for app in (world.app, other)]
        assert await held_by(other).acquire({3, 4, 9})
        assert await workers(world) == [
            {"name": names[1], "shards": [3, 4, 9], "is_answering": False}
        ]
        assert await held_by(world.app).acquire(ALL)
        rows = {row["name"]: row for row in await workers(world)}
        assert rows[names[0]]["shards"] == sorted(ALL - {3, 4, 9})
        assert rows[names[0]]["is_answering"]
        await held_by(world.app).release()
        browser = Browser(world)
        await browser.sign_in()
        text = text_of(await browser.get("/workers"))
        assert f"{names[1]} 3 3 to 4, 9" in text
        assert "61 are held by nobody" in text
