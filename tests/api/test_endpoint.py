"""Requests that no HTTP client can send, straight to the ASGI application."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from service.api import asgi
from service.api.problem import Problem
from service.telemetry import metrics
from tests.harness import ADMIN_KEY, Harness, opened

EMPTY = {"type": "http.request", "body": b""}


async def request(world: Harness, *messages: dict[str, Any], **scope: Any) -> tuple[int, Any]:
    """Send a request; the status and the JSON of the answer."""
    waiting, answer = list(messages), list[Any]()

    async def receive() -> Any:
        return waiting.pop(0)

    async def send(message: Any) -> None:
        answer.append(message)

    headers = [(b"authorization", f"Bearer {ADMIN_KEY}".encode())]
    common = {"type": "http", "query_string": b"", "headers": headers}
    await world.app({**common, **scope}, receive, send)
    body = answer[1]["body"]
    return answer[0]["status"], msgspec.json.decode(body) if body else None


async def test_a_client_that_disconnects_within_its_body_creates_nothing(tmp_path: Path) -> None:
    before = metrics.requests.values.get(("499",), 0)
    begun = {"type": "http.request", "body": b'{"model": "imagen4"', "more_body": True}
    gone = {"type": "http.disconnect"}
    async with opened(tmp_path) as world:
        answer = await request(world, begun, gone, method="POST", path="/v1/generations")
        assert answer == (499, None)
        assert metrics.requests.values[("499",)] == before + 1
        assert world.upstream.creates == []
        assert (await world.get("/v1/generations"))["data"] == []


async def test_a_query_that_is_not_ascii_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        options = {"method": "GET", "path": "/v1/events", "query_string": b"limit=\x80"}
        status, problem = await request(world, EMPTY, **options)
        assert (status, problem["code"]) == (400, "invalid_query")
        status, problem = await request(world, EMPTY, **{**options, "path": "/v1/nowhere"})
        assert (status, problem["code"]) == (404, "not_found")


async def test_a_callback_that_does_not_end_is_refused_and_so_is_its_silent_beginning(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, body_seconds=0.0) as world:
        await world.generate()
        path = urlsplit(world.upstream.callback_url()).path
        for parts in ([], [b'{"code": 200, ']):

            async def body(parts: list[bytes] = parts) -> AsyncIterator[bytes]:
                for part in parts:
                    yield part
                await asyncio.Event().wait()

            answer = await world.anonymous.post(f"http://genhook{path}", content=body())
            assert (answer.status_code, answer.json()["code"]) == (408, "request_timeout")
            assert answer.headers["connection"] == "close"


async def test_a_body_that_comes_in_pieces_and_in_time_is_read_whole(tmp_path: Path) -> None:
    async def body() -> AsyncIterator[bytes]:
        for part in (b'{"name": ', b'"n", "scopes": ', b'["read"]}'):
            later = asyncio.Event()
            asyncio.get_running_loop().call_soon(later.set)
            await later.wait()
            yield part

    async with opened(tmp_path) as world:
        answer = await world.client.post("/v1/keys", content=body())
        assert answer.json()["name"] == "n"


async def test_a_body_that_is_there_already_needs_no_timer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as world:
        with monkeypatch.context() as patched:
            patched.setattr(asgi, "_go_on", None)
            await world.generate()
            assert (await world.call_back()).status_code == 200


async def test_a_body_whose_length_is_too_large_is_not_asked_for() -> None:
    async def receive() -> Any:
        raise AssertionError  # A client that expects 100 (Continue) would send it.

    scope = {"type": "http", "headers": [(b"content-length", b"11")]}
    with pytest.raises(Problem) as refused:
        await asgi.read_body(scope, receive, 10, 30)
    assert refused.value.status == 413


async def test_a_server_that_cancels_a_waiting_request_ends_it(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def receive() -> Any:
        begun.set()
        await asyncio.Event().wait()

    scope = {"type": "http", "headers": []}
    reading = asyncio.create_task(asgi.read_body(scope, receive, 10, 30))
    await begun.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
