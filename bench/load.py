"""Load over keep-alive connections that send prebuilt bytes: in a closed loop, or at a rate."""

import asyncio
import random
import resource
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.machine import HOST

NextRequest = Callable[[], bytes]
_now = time.perf_counter


@dataclass
class Load:
    """What was measured. A latency lasts from a request's first byte to its answer's last byte."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[bytes] = field(default_factory=Counter)
    cpu_seconds: float = 0.0  # of the load generator itself

    @property
    def count(self) -> int:
        """The number of answers, of any status."""
        return len(self.latencies)

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.count / self.seconds

    def quantile_ms(self, part: float) -> float:
        """Return the latency that `part` of the requests did not exceed."""
        return quantile(self.latencies, part) * 1e3

    def check(self, status: bytes = b"200") -> None:
        """Raise AssertionError unless every answer had this status."""
        assert set(self.statuses) == {status}, f"answers: {dict(self.statuses)}"


def quantile(values: list[float], part: float) -> float:
    """Return the value that `part` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def build_post(path: str, headers: str, body: bytes) -> bytes:
    """Return a request's bytes; `headers` are lines that end in CRLF."""
    head = f"POST {path} HTTP/1.1\r\nhost: {HOST}\r\n{headers}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


class _Connection(asyncio.Protocol):
    """Sends one request at a time and calls `on_answer(self, status, seconds)` after each."""

    transport: asyncio.Transport

    def __init__(self, on_answer: "Callable[[_Connection, bytes, float], None]") -> None:
        self._on_answer = on_answer
        self._buffer = b""
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a stream

    def send(self, request: bytes) -> None:
        self._sent_at = _now()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        head = data.find(b"\r\n\r\n")
        if head >= 0:
            at = data.find(b"content-length: ", 0, head)
            length = int(data[at + 16 : data.find(b"\r", at)]) if at >= 0 else 0
            if len(data) >= head + 4 + length:
                self._buffer = b""
                self._on_answer(self, data[9:12], _now() - self._sent_at)
                return
        self._buffer = data

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  any end is an error
        if self._sent_at:
            self._on_answer(self, b"gone", _now() - self._sent_at)


class Client(_Connection):
    """A connection whose requests are awaited one by one."""

    def __init__(self) -> None:
        super().__init__(Client._resolve)  # type: ignore[arg-type]  # of this class, not its base
        self._waiter: asyncio.Future[tuple[bytes, float]]

    async def request(self, request: bytes) -> tuple[bytes, float]:
        """Send the request; return the status of the answer and its latency in seconds."""
        self._waiter = asyncio.get_running_loop().create_future()
        self.send(request)
        return await self._waiter

    def _resolve(self, status: bytes, seconds: float) -> None:
        if not self._waiter.done():
            self._waiter.set_result((status, seconds))


class _ClosedLoop:
    """Has each connection send its next request as soon as the last one is answered."""

    def __init__(self, next_request: NextRequest, connections: int) -> None:
        self.load = Load()
        self.next_request = next_request
        self.measuring_from = 0.0
        self.ends_at = 0.0
        self.running = connections
        self.ended = asyncio.Event()

    def on_answer(self, connection: _Connection, status: bytes, seconds: float) -> None:
        now = _now()
        if now - seconds >= self.measuring_from and now < self.ends_at:
            self.load.latencies.append(seconds)
            self.load.statuses[status] += 1
        if now < self.ends_at and status != b"gone":
            connection.send(self.next_request())
            return
        connection._sent_at = 0.0  # noqa: SLF001  the same module
        self.running -= 1
        if not self.running:
            self.ended.set()


async def run_closed_loop(
    port: int,
    next_request: NextRequest,
    *,
    connections: int,
    seconds: float,
    warm_seconds: float = 0.5,
) -> Load:
    """Send requests for `seconds` after a warm-up, one at a time over each connection."""
    loop = asyncio.get_running_loop()
    run = _ClosedLoop(next_request, connections)
    opened = [
        (await loop.create_connection(lambda: _Connection(run.on_answer), HOST, port))[1]
        for _ in range(connections)
    ]
    run.measuring_from = _now() + warm_seconds
    run.ends_at = run.measuring_from + seconds
    for connection in opened:
        connection.send(next_request())
    await asyncio.sleep(warm_seconds)
    before = cpu_seconds()
    await asyncio.sleep(seconds)
    run.load.seconds, run.load.cpu_seconds = seconds, cpu_seconds() - before
    await asyncio.wait_for(run.ended.wait(), 30)
    for connection in opened:
        connection.transport.abort()
    return run.load


async def run_at_rate(
    port: int,
    next_request: NextRequest,
    *,
    rate: float,
    seconds: float,
    connections: int = 32,
    seed: int = 7,
) -> Load:
    """Send `rate` requests per second at random moments, whether or not answers have come."""
    loop = asyncio.get_running_loop()
    load, moments = Load(seconds=seconds), random.Random(seed)
    # In turn, so that none is idle for so long that the server closes it.
    free = deque[_Connection]()

    def on_answer(connection: _Connection, status: bytes, latency: float) -> None:
        load.latencies.append(latency)
        load.statuses[status] += 1
        free.append(connection)

    for _ in range(connections):
        _, connection = await loop.create_connection(lambda: _Connection(on_answer), HOST, port)
        free.append(connection)
    opened = list(free)
    at = _now()
    ends_at = at + seconds
    while (at := at + moments.expovariate(rate)) < ends_at:
        await asyncio.sleep(max(0.0, at - _now()))
        assert free, "every connection waits for an answer: the rate is too high"
        free.popleft().send(next_request())
    for _ in range(200):
        if len(free) == connections:
            break
        await asyncio.sleep(0.05)
    for connection in opened:
        connection._sent_at = 0.0  # noqa: SLF001  the same module
        connection.transport.abort()
    return load


def cpu_seconds() -> float:
    """Return the CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
