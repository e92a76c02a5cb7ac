"""Outgoing requests: genhook's sender beside a bare protocol, aiohttp and httpx, on one core.

`python -m bench.outgoing NAME PORT IN_FLIGHT SECONDS` measures one of them.
"""

import asyncio
import gc
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import uvloop

from bench.load import cpu_seconds
from bench.machine import HOST, SUBJECT_CORE, on_core, python
from bench.plan import Figures, Plan
from bench.receivers import Counting, receiving

IN_FLIGHT = 100
WARM_SECONDS = 0.5
BODY = b'{"id":"evt","data":"' + b"x" * 1_002 + b'"}'
HEADERS = {
    "content-type": "application/json",
    "user-agent": "genhook",
    "webhook-id": "evt_" + "a" * 32,
    "webhook-timestamp": "1795000000",
    "webhook-signature": "v1," + "b" * 44,
}
CLIENTS = ("bare", "genhook", "aiohttp", "httpx")
Post = Callable[[], Awaitable[int]]


class _Bare(asyncio.Protocol):
    """As little as there can be: bytes out, a status in."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        import httptools  # noqa: PLC0415  only here

        self._new_parser = httptools.HttpResponseParser
        self._waiter: asyncio.Future[int]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a stream

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._waiter.set_result(self._parser.get_status_code())

    def exchange(self, request: bytes, waiter: "asyncio.Future[int]") -> None:
        self._parser = self._new_parser(self)
        self._waiter = waiter
        self.transport.write(request)


async def bare(port: int) -> Post:
    """The limit: a protocol per connection, the request's bytes made once."""
    loop = asyncio.get_running_loop()
    idle: list[_Bare] = []
    lines = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    head = f"POST /inbox HTTP/1.1\r\nhost: {HOST}:{port}\r\n{lines}content-length: {len(BODY)}"
    request = head.encode() + b"\r\n\r\n" + BODY

    async def post() -> int:
        connection = idle.pop() if idle else (await loop.create_connection(_Bare, HOST, port))[1]
        async with asyncio.timeout(15):
            waiter: asyncio.Future[int] = loop.create_future()
            connection.exchange(request, waiter)
            status = await waiter
        idle.append(connection)
        return status

    return post


async def genhook(port: int) -> Post:
    """The sender as the service makes it."""
    from ipaddress import ip_network  # noqa: PLC0415  only here

    from service.delivery.webhook import egress, request, sender  # noqa: PLC0415  only here

    policy = egress.Policy(allow_http=True, allow_networks=(ip_network("127.0.0.0/8"),))
    made = sender.WebhookSender(policy)
    target = request.parse_target(f"http://{HOST}:{port}/inbox")

    async def post() -> int:
        return (await made.send(target, HEADERS, BODY, 15)).status_code

    return post


async def with_aiohttp(port: int) -> Post:
    """Aiohttp with what costs time switched off."""
    import aiohttp  # noqa: PLC0415  heavy
    from yarl import URL  # noqa: PLC0415  heavy

    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=15),
        auto_decompress=False,
    )
    url = URL(f"http://{HOST}:{port}/inbox")

    async def post() -> int:
        async with session.post(url, data=BODY, headers=HEADERS, allow_redirects=False) as answer:
            await answer.read()
            return answer.status

    return post


async def with_httpx(port: int) -> Post:
    """Httpx as it is."""
    import httpx  # noqa: PLC0415  heavy

    client = httpx.AsyncClient(timeout=15)
    url = httpx.URL(f"http://{HOST}:{port}/inbox")

    async def post() -> int:
        return (await client.post(url, content=BODY, headers=HEADERS)).status_code

    return post


MAKE = {"bare": bare, "genhook": genhook, "aiohttp": with_aiohttp, "httpx": with_httpx}


async def _measure_client(name: str, port: int, in_flight: int, seconds: float) -> dict[str, float]:
    post = await MAKE[name](port)
    count, ends_at = 0, time.perf_counter() + WARM_SECONDS + seconds

    async def send_until_end() -> None:
        nonlocal count
        while time.perf_counter() < ends_at:
            assert await post() == 204
            count += 1

    tasks = [asyncio.create_task(send_until_end()) for _ in range(in_flight)]
    await asyncio.sleep(WARM_SECONDS)
    gc.collect()
    first, cpu, began = count, cpu_seconds(), time.perf_counter()
    await asyncio.sleep(seconds)
    done, took = count - first, time.perf_counter() - began
    cost = (cpu_seconds() - cpu) / max(1, done) * 1e6
    await asyncio.gather(*tasks)
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # the end is the cleaning up
    return {"per_second": done / took, "cpu_us": cost}


async def client(name: str, port: int, seconds: float) -> dict[str, float]:
    """One client in a process of its own, on the subject's core."""
    arguments = python("-m", "bench.outgoing", name, str(port), str(IN_FLIGHT), str(seconds))
    with on_core(SUBJECT_CORE):
        process = await asyncio.create_subprocess_exec(*arguments, stdout=subprocess.PIPE)
    try:
        output, _ = await asyncio.wait_for(process.communicate(), seconds + 30)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    found: dict[str, float] = json.loads(output)
    return found


async def measure(plan: Plan, figures: Figures) -> None:
    """Each client in turn against the same receiver, 100 in flight, connections kept."""
    counts: Counter[str] = Counter()
    async with receiving(lambda: Counting(counts)) as port:
        for _ in range(plan.rounds):
            for name in CLIENTS:
                before, began = cpu_seconds(), time.perf_counter()
                found = await client(name, port, plan.seconds)
                busy = (cpu_seconds() - before) / (time.perf_counter() - began)
                figures.add(
                    **{
                        f"{name}_per_second": found["per_second"],
                        f"{name}_cpu_us": found["cpu_us"],
                        f"{name}_receiver_busy": busy,
                    }
                )
            figures.ratio("of_bare", "genhook_per_second", "bare_per_second")
            figures.ratio("times_aiohttp", "genhook_per_second", "aiohttp_per_second")
            figures.ratio("times_httpx", "genhook_per_second", "httpx_per_second")


def main() -> None:
    """Measure the client that the command line names."""
    name, port, in_flight, seconds = sys.argv[1:]
    found = uvloop.run(_measure_client(name, int(port), int(in_flight), float(seconds)))
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
