"""A PostgreSQL server that restarts: 503 meanwhile, and then everything goes on by itself."""

import asyncio
from pathlib import Path

import httpx
import pytest

from tests import engine
from tests.conftest import TEMP_ROOT
from tests.harness import Harness, opened


async def until_stored(world: Harness) -> httpx.Response:
    """Repeat a callback, as upstream does, until it is stored."""
    async with asyncio.timeout(60):
        while not (answer := await world.call_back()).is_success:
            assert answer.status_code == 503
    return answer


async def until_delivered(world: Harness, count: int) -> None:
    """Wait for as many deliveries, recorded: one that is not is sent again after a restart."""
    async with asyncio.timeout(60):
        while True:
            answer = await world.client.get("/v1/deliveries", params={"status": "delivered"})
            if answer.is_success and len(answer.json()["data"]) >= count:
                return


async def test_work_goes_on_by_itself_after_the_server_was_away(
    tmp_path: Path, testrun_uid: str, worker_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.worker.STANDBY_SECONDS", 0.01)
    folder = Path(TEMP_ROOT) / f"genhook-restart-{testrun_uid}-{worker_id}"
    server = engine.serve(folder, "stop")
    try:
        monkeypatch.setattr(engine, "database_of", lambda _path: server.get_uri())
        async with opened(tmp_path, callback_trust="body") as world:
            world.app.worker.start()
            await world.subscribe()
            await world.generate()
            await until_delivered(world, 1)
            await asyncio.to_thread(server.cleanup)
            assert (await world.call_back()).status_code == 503
            assert (await world.client.get("/readyz")).status_code == 503
            server = await asyncio.to_thread(engine.serve, folder, "delete")
            await until_stored(world)
            await until_delivered(world, 2)
            assert world.subscribers.event_types() == [
                "generation.submitted",
                "generation.succeeded",
            ]
    finally:
        server.cleanup()
