"""Long polls: they end with the generation, with their time, or with the process."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api import waiting
from service.store import generations
from tests.harness import ADMIN_KEY, Harness, opened


async def start_to_wait(
    world: Harness, id_: str, seconds: int = 60
) -> "asyncio.Task[httpx.Response]":
    path = f"/v1/generations/{id_}?wait={seconds}"
    request = asyncio.create_task(world.client.get(path))
    while id_ not in world.app.context.waiters or world.app.context.watching is None:
        await world.get("/v1/events")
    return request


async def test_a_stop_answers_long_polls_at_once_with_the_generation_as_it_is(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        id_ = (await world.generate())["id"]
        request = await start_to_wait(world, id_)
        world.app.begin_stop()
        async with asyncio.timeout(30):  # Half of what it would wait otherwise.
            answer = await request
        assert (answer.status_code, answer.json()["status"]) == (200, "processing")
        later = await world.client.get(f"/v1/generations/{id_}?wait=60")
        assert later.json()["status"] == "processing"


async def test_a_client_that_hangs_up_holds_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        id_ = (await world.generate())["id"]
        messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        messages.put_nowait({"type": "http.request", "body": b"", "more_body": False})
        answers: list[Any] = []

        async def send(message: Any) -> None:
            answers.append(message)

        scope = {
            "type": "http",
            "method": "GET",
            "path": f"/v1/generations/{id_}",
            "query_string": b"wait=60",
            "headers": [(b"authorization", f"Bearer {ADMIN_KEY}".encode())],
        }
        request = asyncio.create_task(world.app(scope, messages.get, send))
        while id_ not in world.app.context.waiters or world.app.context.watching is None:
            await world.get("/v1/events")
        assert not request.done()
        messages.put_nowait({"type": "http.disconnect"})
        async with asyncio.timeout(10):
            await request
        assert answers[0]["status"] == 200  # It may have closed only its sending half.
        assert not world.app.context.waiters


async def test_one_look_finds_what_another_process_recorded_for_all_who_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "LOOK_SECONDS", 3_600)
    async with opened(tmp_path) as world:
        ids = [(await world.generate())["id"] for _ in range(3)]
        requests = [await start_to_wait(world, id_) for id_ in ids]
        mine, world.app = world.app, world.new_app()
        await world.app.start(worker=False)
        world.upstream.finish("task1")
        world.upstream.finish("task3")
        await world.run(300)
        await world.app.stop()
        world.app = mine
        reads = []
        read = world.app.database.read

        async def count(unit: object, *args: object) -> object:
            reads.append(unit)
            return await read(unit, *args)

        with monkeypatch.context() as patched:
            patched.setattr(world.app.database, "read", count)
            await waiting.look_once(world.app.context)
            of_the_look = list(reads)
        answers = [await requests[0], await requests[2]]
        still_waits = not requests[1].done()
        world.app.begin_stop()
        answers.append(await requests[1])
        # Asserted at the end: a request left behind would read after the database was closed.
        assert of_the_look == [generations.list_ended]
        assert still_waits
        statuses = [answer.json()["status"] for answer in answers]
        assert statuses == ["succeeded", "succeeded", "processing"]


async def test_nobody_is_looked_for_once_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "LOOK_SECONDS", 0)
    async with opened(tmp_path) as world:
        id_ = (await world.generate())["id"]
        request = await start_to_wait(world, id_)
        world.upstream.finish("task1")
        await world.run(300)
        assert (await request).json()["status"] == "succeeded"
        watching = world.app.context.watching
        assert watching is not None
        await asyncio.wait_for(watching, 60)
