"""A small HTTP server whose every answer is bytes of its script's own, or a closed connection."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

HOST = "127.0.0.1"
REQUEST_BYTES = 4 * 1024 * 1024


class Request(NamedTuple):
    """One request, whole."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Handler = Callable[[Request], Awaitable[bytes | None]]


def answer(status: int, content: object = None, **headers: str) -> bytes:
    """An answer with a JSON body."""
    body = b"" if content is None else json.dumps(content).encode()
    lines = [f"HTTP/1.1 {status} Said", f"content-length: {len(body)}"]
    lines += ["content-type: application/json"] if body else []
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def read(reader: asyncio.StreamReader) -> Request:
    """The next request; IncompleteReadError where there is none."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    method, path, _ = first.split(" ")
    return Request(method, path, headers, body)


class Served(NamedTuple):
    """Where a handler listens, and a task for each connection that is open."""

    port: int
    running: set[asyncio.Task[Any]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[Served]:
    """The handler behind a free port. None from it closes the connection without an answer."""
    running: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            while (said := await handler(await read(reader))) is not None:
                writer.write(said)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # The service went away: it was killed.
        finally:
            with suppress(ConnectionError):
                writer.close()
            running.discard(task)

    server = await asyncio.start_server(serve, HOST, 0, limit=REQUEST_BYTES, backlog=512)
    try:
        yield Served(server.sockets[0].getsockname()[1], running)
    finally:
        server.close()
        for task in list(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
