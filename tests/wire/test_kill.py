"""`kill -9` right after the answers: everything that was acknowledged is there afterwards."""

import asyncio
import json
import os
import random  # noqa: TID251  seeded, to choose the moment
import signal
import sqlite3
import threading
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from service.upstream.callback_url import CallbackTokens
from tests.cli.test_serve import ADMIN_KEY, KEYS, SECRET_KEY, started
from tests.harness import success_report

if TYPE_CHECKING:
    from collections.abc import Iterator

GENERATIONS = 12
CALLBACKS = 400
GRACE_MS = 7 * 86_400_000


@contextmanager
def running(folder: Path, sandbox_url: str, trust: str) -> "Iterator[tuple[Any, str]]":
    """A genhook on the file in `folder`: its process and URL; its output is read and dropped."""
    environ = {
        **KEYS,
        "GENHOOK_DATABASE_URL": "sqlite:///genhook.db",
        "GENHOOK_UPSTREAM_URL": f"{sandbox_url}/api/v1",
        "GENHOOK_UPSTREAM_API_KEY": "aio_sandbox",
        "GENHOOK_PUBLIC_URL": "http://127.0.0.1:9",
        "GENHOOK_CALLBACK_TRUST": trust,
    }
    with started(folder, "serve", "--port", "0", **environ) as found:
        assert found.process.stdout is not None
        drain = threading.Thread(target=found.process.stdout.read)
        drain.start()
        try:
            yield found.process, found.url
        finally:
            found.process.kill()
            drain.join(10)


def client(url: str) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    return httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=40)


async def create(api: httpx.AsyncClient) -> None:
    body = {"model": "imagen4-fast", "input": {"prompt": "A pier [sandbox: lose-callback]"}}
    answer = await api.post("/v1/generations", json=body)
    assert answer.status_code == 202, answer.text


def paths(folder: Path) -> list[str]:
    """The callback paths of every generation, minted with the key that the process has."""
    tokens = CallbackTokens([SECRET_KEY], "apiinone")
    with closing(sqlite3.connect(folder / "genhook.db")) as file:
        found = file.execute(
            "SELECT id, nonce, deadline_at FROM generations ORDER BY id"
        ).fetchall()
    minted = [tokens.mint(id_, nonce, at + GRACE_MS) for id_, nonce, at in found]
    return [f"/callbacks/apiinone/{token}" for token in minted]


async def call_back_until_killed(
    url: str, places: list[str], kill_after: int, pid: int
) -> set[int]:
    """Send callbacks from many connections, kill the process amid them: which were acknowledged."""
    acknowledged: set[int] = set()
    numbers = iter(range(CALLBACKS))

    async def send(sender: httpx.AsyncClient) -> None:
        for number in numbers:
            body = {**success_report(f"task-{number}"), "number": number}
            answer = await sender.post(places[number % len(places)], json=body)
            assert answer.status_code == 200, answer.text
            acknowledged.add(number)
            if len(acknowledged) == kill_after:
                os.kill(pid, signal.SIGKILL)

    async with client(url) as sender:
        results = await asyncio.gather(*(send(sender) for _ in range(16)), return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    assert failures
    assert all(isinstance(failure, httpx.TransportError) for failure in failures), failures
    return acknowledged


def stored(folder: Path) -> set[int]:
    """The numbers in the bodies that are on disk."""
    with closing(sqlite3.connect(folder / "genhook.db")) as file:
        bodies = file.execute("SELECT body FROM callback_bodies").fetchall()
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    return {json.loads(body)["number"] for (body,) in bodies}


@pytest.mark.parametrize("trust", ["confirm", "body"])
async def test_what_was_acknowledged_is_there_after_a_kill(tmp_path: Path, trust: str) -> None:
    kill_after = random.Random(trust).randrange(60, 200)
    with started(tmp_path, "sandbox", "--port", "0", "--speed", "1000", ready=" at ") as sandbox:
        with running(tmp_path, sandbox.url, trust) as (process, url):
            async with client(url) as api:
                await asyncio.gather(*(create(api) for _ in range(GENERATIONS)))
            places = paths(tmp_path)
            acknowledged = await call_back_until_killed(url, places, kill_after, process.pid)
            assert process.wait(10) == -signal.SIGKILL
        assert kill_after <= len(acknowledged) < CALLBACKS
        assert acknowledged <= stored(tmp_path)
        with running(tmp_path, sandbox.url, trust) as (_, url):
            async with client(url) as api:
                await check_outcomes(api)


async def check_outcomes(api: httpx.AsyncClient) -> None:
    """Work resumes by itself, and each generation ends once."""
    generations = (await api.get("/v1/generations")).json()["data"]
    assert len(generations) == GENERATIONS
    for generation in generations:
        path = f"/v1/generations/{generation['id']}"
        assert (await api.get(path, params={"wait": 20})).json()["status"] == "succeeded"
        events = (await api.get("/v1/events", params={"generation_id": generation["id"]})).json()
        types = sorted(event["type"] for event in events["data"])
        assert types == ["generation.submitted", "generation.succeeded"]
    listed = (await api.get("/v1/callbacks", params={"limit": 250})).json()["data"]
    assert {one["verdict"] for one in listed} <= {"accepted", "late"}
