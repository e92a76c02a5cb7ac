"""A small HTTP server whose handler returns the bytes of an answer, or closes the connection."""

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

HOST = "127.0.0.1"
HANG_SECONDS = 600.0
PULSE_SECONDS, PULSE_BEATS = 0.01, 6
REQUEST_BYTES = 4 * 1024 * 1024


class Request(NamedTuple):
    """A complete request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Handler = Callable[[Request], Awaitable[bytes | None]]


def build_answer(status: int, content: object = None, **headers: str) -> bytes:
    """Build an answer with a JSON body."""
    body = b"" if content is None else json.dumps(content).encode()
    lines = [f"HTTP/1.1 {status} Status", f"content-length: {len(body)}"]
    lines += ["content-type: application/json"] if body else []
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def read_request(reader: asyncio.StreamReader) -> Request:
    """Read the next request; IncompleteReadError at the end of the connection."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    method, path, _ = first.split(" ")
    return Request(method, path, headers, body)


async def hang() -> None:
    """Answer nothing for longer than any client waits."""
    await asyncio.sleep(HANG_SECONDS)


class Pulse:
    """Knows since when at the latest what this loop reads now was under way.

    The loop of a busy machine may read late what came long before. `run` notes when it was there;
    a new connection needs some turns of the loop until its request is read.
    """

    def __init__(self) -> None:
        self._beats: deque[float] = deque(maxlen=PULSE_BEATS)

    @property
    def since(self) -> float:
        """Return a time before that of all that is read now; the present one without a pulse."""
        return self._beats[0] if self._beats else time.monotonic()

    async def run(self) -> None:
        """Note the time again and again."""
        while True:
            self._beats.append(time.monotonic())
            await asyncio.sleep(PULSE_SECONDS)


class Server(NamedTuple):
    """The port of a server, and a task for each of its open connections."""

    port: int
    connections: set[asyncio.Task[Any]]

    async def drain(self, seconds: float) -> None:
        """Wait until every connection that was made before has ended, as a dead peer's soon does.

        They are accepted in order: once ours was, each of them is in `connections`.
        """
        reader, writer = await asyncio.open_connection(HOST, self.port)
        writer.write_eof()
        with suppress(ConnectionError):
            await reader.read()
        writer.close()
        if self.connections:
            await asyncio.wait(list(self.connections), timeout=seconds)


@asynccontextmanager
async def serve(handler: Handler) -> AsyncIterator[Server]:
    """Serve the handler on a free port; if it returns None, the connection is closed."""
    connections: set[asyncio.Task[Any]] = set()

    async def serve_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            while (answer := await handler(await read_request(reader))) is not None:
                writer.write(answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # The service was killed or has closed the connection.
        finally:
            with suppress(ConnectionError):
                writer.close()
            connections.discard(task)

    server = await asyncio.start_server(serve_connection, HOST, 0, limit=REQUEST_BYTES, backlog=512)
    try:
        yield Server(server.sockets[0].getsockname()[1], connections)
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
