"""The worker that cannot begin: it waits for the disk, as it waits for another worker's end."""

import asyncio
from pathlib import Path

import pytest

from service.model.errors import StorageError
from service.store import reseal
from service.store.sqlite.database import Database
from service.store.vault import Vault
from tests.harness import Harness, opened


async def begun(world: Harness) -> None:
    """Wait until the worker works; it fails first if the worker ends."""
    worker = world.app.worker
    assert worker is not None
    assert worker.task is not None
    while not (worker.is_working and worker.dispatcher.is_open):
        assert not worker.task.done(), worker.task.exception()
        await world.get("/v1/events")


async def stopped(world: Harness) -> None:
    worker = world.app.worker
    assert worker is not None
    assert worker.task is not None
    worker.stop()
    await asyncio.wait_for(worker.task, 10)


async def test_a_lock_that_cannot_be_opened_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.worker.STANDBY_SECONDS", 0)
    in_the_way = tmp_path / "genhook.db-worker"
    in_the_way.mkdir()
    async with opened(tmp_path) as world:
        worker = world.app.worker
        assert worker is not None
        worker.start()
        await world.subscribe()
        assert not worker.is_working
        assert worker.is_alive
        in_the_way.rmdir()
        await begun(world)
        await world.generate()
        while not world.subscribers.sent:
            await world.get("/v1/events")
        await stopped(world)


async def test_a_disk_that_fails_while_the_worker_begins_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.worker.STANDBY_SECONDS", 0)
    failures = [StorageError("the database failed: disk I/O error")] * 3
    real = reseal.run

    async def failing(database: Database, vault: Vault) -> None:
        if failures:
            raise failures.pop()
        await real(database, vault)

    monkeypatch.setattr(reseal, "run", failing)
    async with opened(tmp_path) as world:
        worker = world.app.worker
        assert worker is not None
        worker.start()
        await begun(world)
        assert failures == []
        await stopped(world)


async def test_while_one_process_works_another_stands_by_and_then_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.worker.STANDBY_SECONDS", 0)
    async with opened(tmp_path) as working, opened(tmp_path) as waiting:
        assert working.app.worker is not None
        assert waiting.app.worker is not None
        working.app.worker.start()
        await begun(working)
        waiting.app.worker.start()
        for _ in range(20):
            await waiting.get("/v1/events")
        assert not waiting.app.worker.is_working
        assert waiting.app.worker.is_alive
        await waiting.run()
        assert not waiting.app.worker.is_working
        await stopped(working)
        await begun(waiting)
        await stopped(waiting)
