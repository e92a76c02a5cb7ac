"""How long a client waits for upstream, and what a stop leaves of a submission."""

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.generations import send, submit
from service.model.errors import StorageError
from service.store import writes
from service.upstream import wire
from tests.faults import DelayedAnswer, rows, status_of, storage_failure
from tests.harness import Harness, create_answer, opened
from tests.journeys.gates import by_hand

BODY = {"model": "imagen4", "input": {"prompt": "a small harbour"}}
TAKEN = httpx.Response(200, json=create_answer("task1"))


async def create(world: Harness, **headers: str) -> httpx.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return await world.client.post("/v1/generations", json=BODY, headers=names)


async def submissions(world: Harness) -> list[str]:
    return [row["submission"] for row in await rows(world, "SELECT submission FROM generations")]


async def test_after_the_wait_the_answer_is_queued_and_the_submission_goes_on(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, submit_wait_seconds=0) as world:
        delayed_answer = DelayedAnswer(TAKEN)
        world.upstream.create_replies.append(delayed_answer.reply)
        answer = await create(world)
        assert (answer.status_code, answer.json()["status"]) == (202, "queued")
        await delayed_answer.requested.wait()
        delayed_answer.release()
        await world.app.worker.submitter.settle()
        stored = await world.get(f"/v1/generations/{answer.json()['id']}")
        assert (stored["status"], stored["task_id"]) == ("processing", "task1")
        assert len(world.upstream.creates) == 1


@pytest.mark.parametrize("prefer", ["respond-async", "wait=9 , Respond-Async; foo=1"])
async def test_who_prefers_an_asynchronous_answer_does_not_wait(
    tmp_path: Path, prefer: str
) -> None:
    async with opened(tmp_path, submit_wait_seconds=600) as world:
        delayed_answer = DelayedAnswer(httpx.Response(402, json={"error": {"code": 402}}))
        world.upstream.create_replies.append(delayed_answer.reply)
        answer = await create(world, prefer=prefer, idempotency_key="once")
        assert (answer.status_code, answer.json()["status"]) == (202, "queued")
        again = await create(world, prefer=prefer, idempotency_key="once")
        assert again.content == answer.content
        await delayed_answer.requested.wait()
        delayed_answer.release()
        await world.app.worker.submitter.settle()
        assert await status_of(world, answer.json()["id"]) == "failed"


async def test_other_preferences_wait_for_upstream(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        answer = await create(world, prefer="return=minimal, x=respond-async")
        assert answer.json()["status"] == "processing"


async def test_the_task_and_the_callback_of_an_early_answer_find_its_generation(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        delayed_answer = DelayedAnswer(TAKEN)
        world.upstream.create_replies.append(delayed_answer.reply)
        answer = await create(world, prefer="respond-async")
        await delayed_answer.requested.wait()
        world.upstream.finish("task1")
        assert (await world.call_back()).status_code == 200
        await by_hand(world, world.app.worker.poller.run_due(world.clock.now))
        await world.app.worker.poller.settle()
        delayed_answer.release()
        await world.app.worker.submitter.settle()
        await world.run()
        stored = await world.get(f"/v1/generations/{answer.json()['id']}")
        assert (stored["status"], stored["task_id"]) == ("succeeded", "task1")


async def test_a_process_that_stops_lets_no_client_wait_for_upstream(tmp_path: Path) -> None:
    async with opened(tmp_path, submit_wait_seconds=600) as world:
        delayed_answer = DelayedAnswer(TAKEN)
        world.upstream.create_replies.append(delayed_answer.reply)
        creating = asyncio.create_task(create(world))
        await delayed_answer.requested.wait()
        world.app.begin_stop()
        answer = await creating
        assert (answer.status_code, answer.json()["status"]) == (202, "queued")
        delayed_answer.release()
        await world.restart()
        assert await status_of(world, answer.json()["id"]) == "processing"


class Unsent:
    """Upstream cannot be reached yet: what is cancelled meanwhile has not left."""

    def __init__(self, world: Harness) -> None:
        self.asked = asyncio.Event()
        world.app.context.client.create = lambda *_: self.create()  # type: ignore[method-assign]

    async def create(self) -> wire.Answer:
        self.asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return wire.NoReport("put_off", message="not sent")
        raise AssertionError


async def test_what_had_not_left_when_the_process_stopped_is_sent_after_it(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, shutdown_seconds=0) as world:
        upstream = Unsent(world)
        creating = asyncio.create_task(create(world))
        await upstream.asked.wait()
        await world.restart()
        # No server waits here for requests: the database may be closed before the answer is made.
        assert (await creating).status_code in {202, 503}
        assert await submissions(world) == ["waiting"]
        await world.run(2)
        assert await submissions(world) == ["taken"]
        assert len(world.upstream.creates) == 1


@pytest.mark.parametrize(("unit", "way"), [("_create", "write"), ("_claim_due", "write_always")])
async def test_a_process_that_stops_while_it_marks_a_submission_puts_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str, way: str
) -> None:
    async with opened(tmp_path, shutdown_seconds=0) as world:
        if unit == "_claim_due":
            world.upstream.create_replies.append(httpx.Response(503))
            await create(world)
            world.clock.advance(5)
        write, marked = getattr(world.app.database, way), asyncio.Event()

        def write_and_hang(do: Any, *args: object, **options: Any) -> Awaitable[Any]:
            writing = write(do, *args, **options)
            return hang(writing) if getattr(do, "__name__", "") == unit else writing

        async def hang(writing: Awaitable[Any]) -> None:
            await writing
            marked.set()
            await asyncio.Event().wait()

        sent = len(world.upstream.creates)
        monkeypatch.setattr(world.app.database, way, write_and_hang)
        if unit == "_create":
            working = asyncio.create_task(create(world))
        else:
            world.app.worker.start()
        await marked.wait()
        assert await submissions(world) == ["sending"]
        await world.restart()
        assert await submissions(world) == ["waiting"]
        if unit == "_create":
            assert (await working).status_code == 503
        await world.run(2)
        assert (await submissions(world), len(world.upstream.creates)) == (["taken"], sent + 1)


class FailOnce:
    """A unit whose first commit fails: it is stored a second later, or as the database closes."""

    def __init__(
        self, world: Harness, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
    ) -> None:
        self._unit, self._keep = getattr(module, name), world.app.database._plan_retries
        self._calls = 0
        self.failed = asyncio.Event()
        monkeypatch.setattr(module, name, self)
        monkeypatch.setattr(world.app.database, "_plan_retries", self._keep_and_tell)
        monkeypatch.setattr(writes, "RETRY_SECONDS", 3_600)

    async def __call__(self, *args: Any) -> Any:
        self._calls += 1
        if self._calls == 1:
            raise storage_failure()
        return await self._unit(*args)

    def _keep_and_tell(self, *args: Any) -> Any:
        self.failed.set()
        return self._keep(*args)


async def test_a_process_that_stops_while_it_cannot_mark_a_submission_marks_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, shutdown_seconds=0) as world:
        world.upstream.create_replies.append(httpx.Response(503))
        await create(world)
        world.clock.advance(5)
        claim = FailOnce(world, monkeypatch, submit, "_claim_due")
        world.app.worker.start()
        await claim.failed.wait()
        await world.restart()
        assert await submissions(world) == ["waiting"]
        await world.run(2)
        assert (await submissions(world), len(world.upstream.creates)) == (["taken"], 2)


async def test_an_answer_that_could_not_be_stored_is_stored_as_the_process_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, shutdown_seconds=0) as world:
        record = FailOnce(world, monkeypatch, send, "_record")
        creating = asyncio.create_task(create(world))
        await record.failed.wait()
        await world.restart()
        assert (await creating).status_code == 202
        assert await submissions(world) == ["taken"]


async def test_what_could_not_be_put_back_is_put_back_as_the_process_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, shutdown_seconds=0) as world:
        put_back = FailOnce(world, monkeypatch, submit, "_put_back")
        database = world.app.database
        write = database.write

        async def store_and_refuse(*args: Any, **options: Any) -> None:
            await write(*args, **options)
            raise StorageError("the database did not commit in time")

        with monkeypatch.context() as patched:
            patched.setattr(database, "write", store_and_refuse)
            assert (await create(world)).status_code == 503
        await put_back.failed.wait()
        assert await submissions(world) == ["sending"]
        await world.restart()
        assert await submissions(world) == ["waiting"]


@pytest.mark.sqlite_only("its trigger is of SQLite")
async def test_what_finds_no_place_is_stored_as_waiting_from_the_start(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.app.database.apply(
            lambda c: c.executescript(
                "CREATE TABLE seen (submission); CREATE TRIGGER see AFTER INSERT ON generations "
                "BEGIN INSERT INTO seen VALUES (NEW.submission); END"
            )
        )
        submitter = world.app.worker.submitter
        while submitter.places.take("default"):
            pass
        answer = await create(world)
        assert (answer.status_code, answer.json()["status"]) == (202, "queued")
        seen = await rows(world, "SELECT submission FROM seen")
        assert [row["submission"] for row in seen] == ["waiting"]
        assert not submitter.in_flight
        await world.restart()
        await world.run()
        assert await submissions(world) == ["taken"]


async def test_only_what_has_a_place_is_marked_as_sending(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        world.upstream.create_replies.extend([httpx.Response(503)] * 10)
        for _ in range(10):
            await create(world)
        delayed_answer = DelayedAnswer(httpx.Response(503))
        world.upstream.create_replies.extend([delayed_answer.reply] * 10)
        submitter = world.app.worker.submitter
        for _ in range(submit.PLACES // 2 - 3):
            assert submitter.places.take("default")
        world.clock.advance(2)
        assert (await by_hand(world, submitter.run_due(world.clock.now)))[0] == 3
        assert sorted(await submissions(world)) == ["sending"] * 3 + ["waiting"] * 7
        delayed_answer.release()
        await submitter.settle()


@pytest.mark.parametrize("is_repeated", [True, False])
async def test_what_a_submission_needs_is_loaded_before_its_row_says_sending(
    tmp_path: Path, *, is_repeated: bool
) -> None:
    async with opened(tmp_path) as world:
        if is_repeated:
            world.upstream.create_replies.append(httpx.Response(503, json={}))
            await world.generate()
        prepare = world.app.context.client.prepare

        def fail() -> None:
            raise OSError("no such module")

        world.app.context.client.prepare = fail  # type: ignore[method-assign]
        if is_repeated:
            await world.run(5)
        else:
            answer = await world.client.post(
                "/v1/generations", json={"model": "imagen4", "input": {"prompt": "a harbour"}}
            )
            assert answer.status_code == 500
        stored = await rows(world, "SELECT submission FROM generations")
        assert [row["submission"] for row in stored] == ["waiting"] * is_repeated
        world.app.context.client.prepare = prepare  # type: ignore[method-assign]
        await world.run(60)
        assert len(world.upstream.creates) == 2 * is_repeated
