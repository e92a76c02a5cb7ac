"""Receivers of webhooks: one that counts, one that says what came.

`python -m bench.receivers PORT` runs the counting one alone.
"""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import uvloop

from bench.machine import free_port

OK = b"HTTP/1.1 204 No Content\r\n\r\n"
_BUSY = b'{"code":200,"message":"success","data":{"task_id":"t","status":"IN_PROGRESS"}}'
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
BUSY = _HEAD + b"content-length: %d\r\n\r\n" % len(_BUSY) + _BUSY


class Counting(asyncio.Protocol):
    """Takes requests that are all as long as the first one of their connection."""

    transport: asyncio.Transport

    def __init__(self, counts: Counter[str], delay_seconds: float = 0.0) -> None:
        self._counts = counts
        self._delay_seconds = delay_seconds
        self._size = self._got = 0
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Told apart by the address that was connected to."""
        self.transport = transport  # type: ignore[assignment]  # a stream
        self._host = transport.get_extra_info("sockname")[0]

    def data_received(self, data: bytes) -> None:
        """Count bytes; the first request says how many make one."""
        if not self._size:
            self._head += data
            self._size = _size(self._head)
        self._got += len(data)
        while self._size and self._got >= self._size:
            self._got -= self._size
            if self._delay_seconds:
                asyncio.get_running_loop().call_later(self._delay_seconds, self._answer)
            else:
                self._answer()

    def _answer(self) -> None:
        self._counts[self._host] += 1
        if not self.transport.is_closing():
            self.transport.write(OK)


def _size(data: bytes) -> int:
    """How many bytes the first request in `data` has; 0 if that cannot be told yet."""
    head = data.find(b"\r\n\r\n")
    if head < 0:
        return 0
    at = data.lower().find(b"content-length: ", 0, head)
    return head + 4 + (int(data[at + 16 : data.find(b"\r", at)]) if at >= 0 else 0)


class Reading(asyncio.Protocol):
    """Takes any requests and says when each body came."""

    transport: asyncio.Transport

    def __init__(self, got: Callable[[bytes, float], None]) -> None:
        self._got = got
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to answer."""
        self.transport = transport  # type: ignore[assignment]  # a stream

    def data_received(self, data: bytes) -> None:
        """Every whole request in what has come."""
        now = time.perf_counter()
        self._buffer += data
        while (size := _size(self._buffer)) and len(self._buffer) >= size:
            request, self._buffer = self._buffer[:size], self._buffer[size:]
            self._got(request.partition(b"\r\n\r\n")[2], now)
            self.transport.write(OK)


class Upstream(asyncio.Protocol):
    """API in One, asked about tasks that never end; when it was asked is noted."""

    transport: asyncio.Transport

    def __init__(self, asked_at: list[float]) -> None:
        self._asked_at = asked_at
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to answer."""
        self.transport = transport  # type: ignore[assignment]  # a stream

    def data_received(self, data: bytes) -> None:
        """Answer every whole question."""
        self._buffer += data
        while (size := _size(self._buffer)) and len(self._buffer) >= size:
            self._buffer = self._buffer[size:]
            self._asked_at.append(time.perf_counter())
            self.transport.write(BUSY)


@asynccontextmanager
async def receiving(
    protocol: Callable[[], asyncio.Protocol], hosts: list[str] | None = None, port: int = 0
) -> AsyncIterator[int]:
    """Servers on the same port of every host; the port."""
    loop = asyncio.get_running_loop()
    port = port or free_port()
    servers = [
        await loop.create_server(protocol, host, port, backlog=2_048)
        for host in hosts or ["127.0.0.1"]
    ]
    try:
        yield port
    finally:
        for server in servers:
            server.close()


async def _alone(port: int) -> None:
    async with receiving(lambda: Counting(Counter()), port=port):
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_alone(int(sys.argv[1])))
