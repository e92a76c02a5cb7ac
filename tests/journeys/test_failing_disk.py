"""A disk that fails: callbacks are refused and counted, /readyz says so, and all resumes."""

from pathlib import Path

import pytest

from service.store.sqlite import database as database_module
from service.telemetry import metrics
from tests.harness import opened


async def test_a_failing_disk_is_seen_from_outside_and_recovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        database = world.app.database
        assert (await world.client.get("/readyz")).status_code == 200
        refused = metrics.callbacks.values["not_stored",]
        await database.apply(lambda c: c.execute("PRAGMA query_only=ON"))
        assert (await world.call_back()).status_code == 503
        assert metrics.callbacks.values["not_stored",] == refused + 1
        ready = await world.client.get("/readyz")
        assert ready.status_code == 503
        assert "cannot store" in ready.json()["checks"]["database"]

        await database.apply(lambda c: c.execute("PRAGMA query_only=OFF"))
        monkeypatch.setattr(database_module, "FAILING_SECONDS", 0)
        monkeypatch.setattr(database_module, "PROBE_SECONDS", 0)
        assert (await world.client.get("/readyz")).status_code == 200
        world.upstream.finish("task1")
        assert (await world.call_back()).status_code == 200
        await world.run()
        assert (await world.get(f"/v1/generations/{generation['id']}"))["status"] == "succeeded"


async def test_bodies_that_wait_for_the_disk_are_bounded(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate()
        queue = world.app.database._queue
        queue.bytes_max, queue._held_bytes = 1_000, 990
        assert (await world.call_back(content=b"[" + b"1" * 20 + b"]")).status_code == 503
        answer = await world.client.post("/v1/subscribers", json={"url": "https://example.com"})
        assert answer.status_code == 503
        queue._held_bytes = 0
        assert (await world.call_back(content=b"[" + b"1" * 20 + b"]")).status_code == 200
