"""A disk that fails: callbacks are refused and counted, /readyz says so, and all resumes."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from service.model.errors import StorageBusyError, StorageError, UnstoredError
from service.store import subscribers, write_queue, writes
from service.telemetry import metrics
from tests.faults import rows
from tests.harness import Harness, opened

pytestmark = pytest.mark.sqlite_only("the tests make its thread or its connection fail")

NEW: dict[str, Any] = {"model": "imagen4", "input": {"prompt": "a small harbour"}}


@asynccontextmanager
async def stalled_disk(world: Harness, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Let the disk hang during the block: nobody waits for the commit that is in it by its end."""
    disk, database = threading.Event(), world.app.database
    hang = asyncio.ensure_future(database.apply(lambda _: disk.wait()))
    try:
        with monkeypatch.context() as patched:
            patched.setattr(write_queue, "WAIT_SECONDS", 0)
            database._queue.end_waits()  # Its timer was set for a longer wait.
            yield
            while not database._queue._committing:
                await world.get("/v1/events")
            with pytest.raises(StorageBusyError, match="in time"):
                await database.write(subscribers.bump_revision)
    finally:
        disk.set()
        await hang
        while database._queue.is_stalled:  # Until the commit that was in it ends.
            await world.get("/v1/events")


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
        assert (ready.status_code, ready.headers["retry-after"]) == (503, "1")
        assert "cannot store" in ready.json()["checks"]["database"]

        await database.apply(lambda c: c.execute("PRAGMA query_only=OFF"))
        monkeypatch.setattr(writes, "FAILING_SECONDS", 0)
        monkeypatch.setattr(writes, "PROBE_SECONDS", 0)
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
        assert answer.json()["detail"] == (
            "Nothing was stored: the queue in front of the database is full. Try again."
        )
        queue._held_bytes = 0
        assert (await world.call_back(content=b"[" + b"1" * 20 + b"]")).status_code == 200


async def test_a_claim_whose_commit_takes_long_is_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        world.upstream.create_replies.append(httpx.Response(503))
        await world.generate()
        world.clock.advance(2)
        submitter = world.app.worker.submitter
        async with stalled_disk(world, monkeypatch):
            claiming = asyncio.create_task(submitter.run_due(world.clock.now))
        assert (await claiming)[0] == 1
        await submitter.settle()
        assert [row["submission"] for row in await submissions(world)] == ["taken"]


async def test_who_is_refused_for_a_hanging_disk_is_not_told_of_other_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        async with stalled_disk(world, monkeypatch):
            refused = asyncio.create_task(world.client.post("/v1/generations", json=NEW))
        answer = await refused
        assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
        assert answer.json()["detail"] == (
            "The request may have been stored: the database did not commit in time. "
            "Look whether it was before you repeat it. "
            "A repeat is safe only with the Idempotency-Key of the first try; this had none."
        )


async def test_a_generation_whose_commit_takes_long_is_submitted_by_a_later_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        headers, submitter = {"idempotency-key": "order-7"}, world.app.worker.submitter
        async with stalled_disk(world, monkeypatch):
            creating = world.client.post("/v1/generations", json=NEW, headers=headers)
            refused = asyncio.create_task(creating)
        answer = await refused
        assert answer.status_code == 503
        assert answer.json()["detail"] == (
            "The request may have been stored: the database did not commit in time. "
            "Repeat it with the same Idempotency-Key."
        )
        await submitter.settle()
        assert submitter.places.taken == 0
        again = await world.client.post("/v1/generations", json=NEW, headers=headers)
        assert (again.status_code, again.headers["idempotency-replayed"]) == (202, "true")
        await world.run(2)
        assert [row["submission"] for row in await submissions(world)] == ["taken"]
        assert len(world.upstream.creates) == 1


async def test_who_is_refused_while_the_disk_hangs_is_told_that_nothing_was_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        async with stalled_disk(world, monkeypatch):
            in_commit = asyncio.create_task(world.client.post("/v1/generations", json=NEW))
            while not world.app.database._queue._committing:
                await world.get("/v1/events")
            late = await world.client.post("/v1/generations", json=NEW)
        assert (await in_commit).json()["detail"].startswith("The request may have been stored: ")
        assert late.json()["detail"] == (
            "Nothing was stored: the database did not commit in time. Try again."
        )
        await world.run(2)
        assert len(await submissions(world)) == 1


async def test_a_try_that_stored_nothing_does_not_say_so_of_an_earlier_try_with_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        world.client.headers["idempotency-key"] = "order-7"
        async with stalled_disk(world, monkeypatch):
            first = await world.client.post("/v1/generations", json=NEW)
            second = await world.client.post("/v1/generations", json=NEW)
        assert first.json()["detail"].startswith("The request may have been stored: ")
        assert (second.status_code, second.json()["code"]) == (503, "storage_unavailable")
        assert second.json()["detail"] == (
            "This try stored nothing: the database did not commit in time. "
            "An earlier try with this key may have: repeat it with the same Idempotency-Key."
        )
        third = await world.client.post("/v1/generations", json=NEW)
        assert third.headers["idempotency-replayed"] == "true"
        await world.run(2)
        assert len(world.upstream.creates) == 1


async def fail(*_args: object, **_options: object) -> Any:
    raise StorageError("disk I/O error")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/events"), ("GET", "/v1/subscribers/sub_1"), ("HEAD", "/v1/keys/key_1")],
)
async def test_a_read_that_fails_is_not_said_to_be_about_storing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    async with opened(tmp_path) as world:
        for name in ("read", "search"):
            monkeypatch.setattr(world.app.database, name, fail)
        with structlog.testing.capture_logs() as lines:
            answer = await world.client.request(method, path)
        assert answer.status_code == 503
        detail = "The answer could not be read: the database failed. Try again."
        assert method == "HEAD" or answer.json()["detail"] == detail
        assert "request.not_read" in [line["event"] for line in lines]


async def test_a_request_whose_key_cannot_be_looked_up_has_stored_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world, world.new_client("ghk_" + "b" * 40) as client:
        monkeypatch.setattr(world.app.database, "read", fail)
        answer = await client.post("/v1/generations", json=NEW)
        assert answer.json()["detail"] == "Nothing was stored: the database failed. Try again."
        keyed = {"idempotency-key": "order-7"}
        answer = await client.post("/v1/generations", json=NEW, headers=keyed)
        assert answer.json()["detail"].startswith("This try stored nothing: the database fail")


async def test_a_deletion_whose_commit_fails_may_have_been_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe()
        monkeypatch.setattr(world.app.database, "write", fail)
        answer = await world.client.delete(f"/v1/subscribers/{subscriber['id']}")
        assert answer.json()["detail"] == (
            "The request may have been stored: the database failed. "
            "Look whether it was before you repeat it."
        )


async def test_a_test_that_was_sent_and_cannot_be_recorded_is_not_said_to_be_nothing(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe()

        def fill_queue(*_: object) -> int:
            world.app.database._queue.items_max = 0
            return 200

        world.subscribers.on_send = fill_queue
        answer = await world.client.post(f"/v1/subscribers/{subscriber['id']}/test")
        assert answer.status_code == 503
        assert answer.json()["detail"].startswith("The request may have been stored: the queue")


async def test_a_tick_with_a_step_that_is_refused_is_not_said_to_have_stored_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stop_after_a_step(_seconds: float) -> None:
        raise UnstoredError("the queue in front of the database is full")

    async with opened(tmp_path) as world:
        monkeypatch.setattr(world.app.worker, "tick", stop_after_a_step)
        answer = await world.client.post("/v1/tick")
        assert answer.json()["detail"] == (
            "The request may have been stored: the queue in front of the database is full. "
            "Look whether it was before you repeat it."
        )


async def submissions(world: Harness) -> Any:
    return await rows(world, "SELECT submission FROM generations")
