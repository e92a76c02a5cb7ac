"""Outgoing requests on one core: genhook's sender, a bare protocol, aiohttp and httpx.

`python -m bench.outgoing NAME PORT IN_FLIGHT SECONDS` measures one of them and prints JSON.
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
from bench.machine import HOST, SUBJECT_CORE, on_core, python_command
from bench.plan import Figures, Plan
from bench.receivers import Counting, serve_protocol

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
    """Writes bytes and parses the status of the answer, and nothing else."""

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


async def open_bare(port: int) -> Post:
    """Open the bare protocol, whose request is built only once."""
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


async def open_genhook(port: int) -> Post:
    """Open genhook's sender."""
    from ipaddress import ip_network  # noqa: PLC0415  only here

    from service.delivery.target import parse_target  # noqa: PLC0415  only here
    from service.delivery.webhook import egress, sender  # noqa: PLC0415  only here

    policy = egress.Policy(allow_http=True, allow_networks=(ip_network("127.0.0.0/8"),))
    genhook = sender.WebhookSender(policy)
    target = parse_target(f"http://{HOST}:{port}/inbox")

    async def post() -> int:
        return (await genhook.send(target, HEADERS, BODY, 15)).status_code

    return post


async def open_aiohttp(port: int) -> Post:
    """Open aiohttp without its cookies, limits and decompression."""
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


async def open_httpx(port: int) -> Post:
    """Open httpx with its defaults."""
    import httpx  # noqa: PLC0415  heavy

    client = httpx.AsyncClient(timeout=15)
    url = httpx.URL(f"http://{HOST}:{port}/inbox")

    async def post() -> int:
        return (await client.post(url, content=BODY, headers=HEADERS)).status_code

    return post


OPEN = {
    "bare": open_bare,
    "genhook": open_genhook,
    "aiohttp": open_aiohttp,
    "httpx": open_httpx,
}


async def _measure_client(name: str, port: int, in_flight: int, seconds: float) -> dict[str, float]:
    post = await OPEN[name](port)
    count, ends_at = 0, time.perf_counter() + WARM_SECONDS + seconds

    async def send_until_end() -> None:
        nonlocal count
        while time.perf_counter() < ends_at:
            assert await post() == 204
            count += 1

    tasks = [asyncio.create_task(send_until_end()) for _ in range(in_flight)]
    await asyncio.sleep(WARM_SECONDS)
    gc.collect()
    before, cpu, began = count, cpu_seconds(), time.perf_counter()
    await asyncio.sleep(seconds)
    answers, elapsed = count - before, time.perf_counter() - began
    cpu_us = (cpu_seconds() - cpu) / max(1, answers) * 1e6
    await asyncio.gather(*tasks)
    # The process ends here without closing anything, which some clients complain about.
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    return {"per_second": answers / elapsed, "cpu_us": cpu_us}


async def run_client(name: str, port: int, seconds: float) -> dict[str, float]:
    """Measure one client in its own process on the subject's core."""
    arguments = (name, str(port), str(IN_FLIGHT), str(seconds))
    with on_core(SUBJECT_CORE):
        process = await asyncio.create_subprocess_exec(
            *python_command("-m", "bench.outgoing", *arguments), stdout=subprocess.PIPE
        )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), seconds + 30)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    result: dict[str, float] = json.loads(output)
    return result


async def measure(plan: Plan, figures: Figures) -> None:
    """Measure the clients in turn against one receiver, 100 in flight over kept connections."""
    counts: Counter[str] = Counter()
    async with serve_protocol(lambda: Counting(counts)) as port:
        for _ in range(plan.rounds):
            for name in CLIENTS:
                before, began = cpu_seconds(), time.perf_counter()
                result = await run_client(name, port, plan.seconds)
                busy = (cpu_seconds() - before) / (time.perf_counter() - began)
                figures.add(
                    **{
                        f"{name}_per_second": result["per_second"],
                        f"{name}_cpu_us": result["cpu_us"],
                        f"{name}_receiver_busy": busy,
                    }
                )
            figures.ratio("of_bare", "genhook_per_second", "bare_per_second")
            figures.ratio("times_aiohttp", "genhook_per_second", "aiohttp_per_second")
            figures.ratio("times_httpx", "genhook_per_second", "httpx_per_second")


def main() -> None:
    """Measure the client named on the command line."""
    name, port, in_flight, seconds = sys.argv[1:]
    result = uvloop.run(_measure_client(name, int(port), int(in_flight), float(seconds)))
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
