"""Servers for the measurements: receivers of webhooks, and an upstream.

`python -m bench.receivers PORT` runs the counting receiver alone.
"""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import uvloop

from bench.machine import find_free_port

OK = b"HTTP/1.1 204 No Content\r\n\r\n"
_BUSY = b'{"code":200,"message":"success","data":{"task_id":"t","status":"IN_PROGRESS"}}'
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
BUSY = _HEAD + b"content-length: %d\r\n\r\n" % len(_BUSY) + _BUSY


class Counting(asyncio.Protocol):
    """Counts requests; all requests of a connection must be as long as its first one."""

    transport: asyncio.Transport

    def __init__(self, counts: Counter[str], delay_seconds: float = 0.0) -> None:
        self._counts = counts
        self._delay_seconds = delay_seconds
        self._size = self._pending = 0
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the local address, under which requests are counted."""
        self.transport = transport  # type: ignore[assignment]  # a stream
        self._host = transport.get_extra_info("sockname")[0]

    def data_received(self, data: bytes) -> None:
        """Count complete requests by their number of bytes."""
        if not self._size:
            self._head += data
            self._size = _size(self._head)
        self._pending += len(data)
        while self._size and self._pending >= self._size:
            self._pending -= self._size
            if self._delay_seconds:
                asyncio.get_running_loop().call_later(self._delay_seconds, self._answer)
            else:
                self._answer()

    def _answer(self) -> None:
        self._counts[self._host] += 1
        if not self.transport.is_closing():
            self.transport.write(OK)


def _size(data: bytes) -> int:
    """Return the length of the first request in `data`; 0 while its head is incomplete."""
    head = data.find(b"\r\n\r\n")
    if head < 0:
        return 0
    at = data.lower().find(b"content-length: ", 0, head)
    return head + 4 + (int(data[at + 16 : data.find(b"\r", at)]) if at >= 0 else 0)


class Reading(asyncio.Protocol):
    """Reads requests of any length and calls `on_body(body, time)` for each."""

    transport: asyncio.Transport

    def __init__(self, on_body: Callable[[bytes, float], None]) -> None:
        self._on_body = on_body
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport for answers."""
        self.transport = transport  # type: ignore[assignment]  # a stream

    def data_received(self, data: bytes) -> None:
        """Handle every complete request."""
        now = time.perf_counter()
        self._buffer += data
        while (size := _size(self._buffer)) and len(self._buffer) >= size:
            request, self._buffer = self._buffer[:size], self._buffer[size:]
            self._on_body(request.partition(b"\r\n\r\n")[2], now)
            self.transport.write(OK)


class Upstream(asyncio.Protocol):
    """An API in One whose tasks never end; it notes the time of every poll."""

    transport: asyncio.Transport

    def __init__(self, polled_at: list[float]) -> None:
        self._polled_at = polled_at
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport for answers."""
        self.transport = transport  # type: ignore[assignment]  # a stream

    def data_received(self, data: bytes) -> None:
        """Answer every complete request."""
        self._buffer += data
        while (size := _size(self._buffer)) and len(self._buffer) >= size:
            self._buffer = self._buffer[size:]
            self._polled_at.append(time.perf_counter())
            self.transport.write(BUSY)


@asynccontextmanager
async def serve_protocol(
    protocol: Callable[[], asyncio.Protocol], hosts: list[str] | None = None, port: int = 0
) -> AsyncIterator[int]:
    """Serve the protocol on one port of every host; yields the port."""
    loop = asyncio.get_running_loop()
    port = port or find_free_port()
    servers = [
        await loop.create_server(protocol, host, port, backlog=2_048)
        for host in hosts or ["127.0.0.1"]
    ]
    try:
        yield port
    finally:
        for server in servers:
            server.close()


async def _serve_alone(port: int) -> None:
    async with serve_protocol(lambda: Counting(Counter()), port=port):
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve_alone(int(sys.argv[1])))
