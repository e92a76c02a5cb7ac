"""A new generation is submitted, even if nobody knew for a while whether it is stored."""

from pathlib import Path
from typing import Any

import asyncpg
import pytest

from service.store import write_queue
from tests import engine
from tests.harness import Harness, opened

NEW: dict[str, Any] = {"model": "imagen4", "input": {"prompt": "a small harbour"}}


async def create(world: Harness) -> Any:
    return await world.client.post("/v1/generations", json=NEW, headers={"idempotency-key": "once"})


async def check_submitted_once(world: Harness) -> None:
    await world.app.worker.submitter.settle()
    await world.run(61)
    answer = await create(world)
    assert (answer.status_code, answer.json()["status"]) == (202, "processing")
    assert len(world.upstream.creates) == 1
    assert world.app.worker.submitter.places.free == 64


async def test_what_is_committed_after_its_client_was_refused_is_submitted(
    postgres: engine.Schemas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several units are committed at once: what puts it back must not overtake it."""
    async with opened(tmp_path) as world:
        other = await asyncpg.connect(world.settings.database_path)
        async with other.transaction():
            await other.execute("LOCK TABLE generations IN SHARE MODE")  # It may be read.
            with monkeypatch.context() as patched:
                patched.setattr(write_queue, "WAIT_SECONDS", 0.05)
                world.app.database._queue.end_waits()  # Its timer was set for a longer wait.
                assert (await create(world)).status_code == 503
            for _ in range(20):  # What puts it back has its time, and must wait.
                await world.get("/v1/generations")
        await other.close()
        await check_submitted_once(world)


async def test_what_was_committed_although_the_connection_was_lost_is_submitted(
    postgres: engine.Schemas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        database: Any = world.app.database
        run_once = database._run_once

        async def lose_the_answer(batch: Any) -> Any:
            monkeypatch.setattr(database, "_run_once", run_once)
            await run_once(batch)
            raise ConnectionResetError("the server is gone")

        monkeypatch.setattr(database, "_run_once", lose_the_answer)
        monkeypatch.setattr("service.store.postgres.database.ASK_SECONDS", 0)  # None is asked.
        assert (await create(world)).status_code == 503
        await check_submitted_once(world)
