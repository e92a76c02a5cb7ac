"""Whether a submission was written is known by fact, on real connections."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import msgspec
import pytest

from service.upstream import reading, wire
from service.upstream.client import Client, Progress
from tests.harness import settings
from tests.wire.receivers import need, patiently

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def served(
    path: Path, handler: Handler, scheme: str = "http", upstream_timeout_seconds: float = 0.3
) -> AsyncIterator[Client]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = f"{scheme}://127.0.0.1:{port}"
    seconds = upstream_timeout_seconds
    client = Client(settings(path, upstream_url=url, upstream_timeout_seconds=seconds))
    try:
        yield client
    finally:
        await client.close()
        server.close()


async def outcome_of(client: Client) -> str:
    answer = await client.create("/images/generations", {"prompt": "a small harbour"})
    assert isinstance(answer, wire.NoReport)
    return answer.outcome


async def test_a_timeout_is_judged_by_what_was_written_before_it() -> None:
    progress = Progress(is_known=True)
    await progress.note("connection.connect_tcp.started", {})
    assert progress.never_left(TimeoutError())
    await progress.note("http11.send_request_headers.started", {})
    assert not progress.never_left(TimeoutError())
    assert not progress.never_left(httpx.ConnectTimeout("slow"))


@pytest.mark.parametrize("is_hanging", [True, False])
async def test_a_submission_that_was_written_and_has_no_answer_is_lost(
    tmp_path: Path, *, is_hanging: bool
) -> None:
    ended = asyncio.Event()

    async def attempt(seconds: float) -> None:
        asked = asyncio.Event()

        async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            asked.set()
            if is_hanging:
                await ended.wait()
            writer.close()

        async with served(tmp_path, read, upstream_timeout_seconds=seconds) as client:
            outcome = await outcome_of(client)
            need(reached=asked.is_set())
            assert outcome == "lost"

    await patiently(attempt, 0.3 if is_hanging else 60)
    ended.set()


BROKEN_OFF = {
    "length": b"Content-Length: 500\r\n\r\n" + b'{"data":{"task_id":"t1","status":"IN_PROG',
    "chunk": b"Transfer-Encoding: chunked\r\n\r\n1a\r\n" + b'{"data":{"task_id":"t1"}}\n\r\n',
}


@pytest.mark.parametrize("is_hanging", [True, False])
@pytest.mark.parametrize("kind", BROKEN_OFF)
async def test_a_task_that_is_named_before_the_connection_breaks_is_known(
    tmp_path: Path, kind: str, *, is_hanging: bool
) -> None:
    ended = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n" + BROKEN_OFF[kind])
        await writer.drain()
        if is_hanging:
            await ended.wait()
        writer.close()

    async def attempt(seconds: float) -> wire.Report | wire.NoReport:
        async with served(tmp_path, answer, upstream_timeout_seconds=seconds) as client:
            read = await client.create("/images/generations", {"prompt": "a small harbour"})
            need(reached=isinstance(read, wire.Report))
            return read

    read = await patiently(attempt, 0.3 if is_hanging else 60)
    assert read == wire.Report("processing", "t1", ("t1",))
    ended.set()


async def test_an_answer_that_came_whole_may_wait_to_be_read_and_holds_no_connection(
    tmp_path: Path,
) -> None:
    is_free, closed = threading.Event(), asyncio.Event()
    output = {"image_urls": ["https://cdn.example/1.png"], "log": "x" * reading.READ_ON_LOOP_BYTES}
    data = {"task_id": "t1", "status": "completed", "output": output}
    content = msgspec.json.encode({"code": 200, "data": data})

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content))
        await reader.read()
        closed.set()
        writer.close()

    async with served(tmp_path, answer, upstream_timeout_seconds=30) as client:
        reading._thread.submit(is_free.wait, 60)
        sending = asyncio.create_task(client.create("/images/generations", {"prompt": "a harbour"}))
        await (
            closed.wait()
        )  # At the latest once upstream's time is over, before the thread is free.
        is_free.set()
        read = await sending
    assert isinstance(read, wire.Report)
    assert read.state == "succeeded"


async def test_a_submission_without_a_connection_is_put_off(tmp_path: Path) -> None:
    async def close(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with served(tmp_path, close, "https") as client:
        assert await outcome_of(client) == "put_off"


async def test_a_submission_that_is_cancelled_after_it_was_written_is_not_put_off(
    tmp_path: Path,
) -> None:
    written, ended = asyncio.Event(), asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        written.set()
        await ended.wait()
        writer.close()

    async with served(tmp_path, hang, upstream_timeout_seconds=60) as client:
        sending = asyncio.create_task(outcome_of(client))
        await written.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        ended.set()


class Connecting(httpx.AsyncBaseTransport):
    """A transport that tells that it connects, and never comes to an end of it."""

    def __init__(self) -> None:
        self.connecting = asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.extensions["trace"]("connection.connect_tcp.started", {})
        self.connecting.set()
        await asyncio.Event().wait()
        raise AssertionError


async def test_a_submission_that_is_cancelled_while_it_connects_is_put_off(tmp_path: Path) -> None:
    transport = Connecting()
    client = Client(settings(tmp_path), lambda: transport)
    sending = asyncio.create_task(outcome_of(client))
    await transport.connecting.wait()
    sending.cancel()
    assert await sending == "put_off"
    await client.close()
