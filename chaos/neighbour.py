"""A tenant that takes what it can get: `python -m chaos.neighbour KIND COUNT URL KEY`.

It prints "ready" once its attack stands, and goes on until it is killed.
"""

import asyncio
import itertools
import resource
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import httpx

from service.model.clock import now_ms, rfc3339

SIDE_BY_SIDE = 16
PAUSE_SECONDS = 0.1  # Before something is sent again.
EVENT_SECONDS = 1.0  # Between two generations, each of which has two events for all subscribers.
LISTENERS_PORT = 19_999  # Below the ports of `chaos.world`.
SLOW_NAME, DEAD_NAME = "slow.chaos.test", "dead.chaos.test"  # See `chaos.subject`.
NAMES = ("shop", "order", "campaign", "region", "channel", "step")  # Of metadata.
LARGE_CHARACTERS = 900_000
HOUR_MS = 3_600_000
OPEN_PROMPT = "[sandbox: delay=3600, lose-callback] for ever"

Attack = Callable[[httpx.AsyncClient, int], Awaitable[None]]


def announce() -> None:
    """Tell the suite that the attack stands."""
    print("ready", flush=True)


async def request(api: httpx.AsyncClient, method: str, path: str, **options: Any) -> int:
    """Send a request, and do not care if it fails."""
    with suppress(httpx.TransportError):
        return (await api.request(method, path, **options)).status_code
    return 0


async def create(api: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Create something, again and again while the service is too busy; else HTTPStatusError."""
    while True:
        with suppress(httpx.TransportError):
            answer = await api.post(path, json=body)
            if answer.is_success:
                created: dict[str, Any] = answer.json()
                return created
            if answer.status_code < 500 and answer.status_code != 429:
                answer.raise_for_status()
        await asyncio.sleep(PAUSE_SECONDS)


async def run_each(works: list[Coroutine[Any, Any, Any]]) -> None:
    """Run all, some at a time."""
    slots = asyncio.Semaphore(SIDE_BY_SIDE)

    async def run_one(work: Coroutine[Any, Any, Any]) -> None:
        async with slots:
            await work

    await asyncio.gather(*map(run_one, works))


async def repeat(send: Callable[[], Coroutine[Any, Any, Any]], side_by_side: int) -> None:
    """Send again and again, so many at a time."""

    async def run_one() -> None:
        while True:
            if not await send():
                await asyncio.sleep(PAUSE_SECONDS)  # It was not answered.

    await asyncio.gather(*(run_one() for _ in range(side_by_side)))


@asynccontextmanager
async def hold_connections(hosts: list[str]) -> AsyncIterator[None]:
    """Listen at every host, accept connections, and never answer."""

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while await reader.read(65_536):
                pass
        writer.close()

    async with AsyncExitStack() as stack:
        for host in hosts:
            await stack.enter_async_context(
                await asyncio.start_server(hang, host, LISTENERS_PORT, backlog=512)
            )
        yield


async def subscribe_and_generate(api: httpx.AsyncClient, urls: list[str]) -> None:
    """Subscribe every URL, then have events for all of them."""
    await run_each([request(api, "POST", "/v1/subscribers", json={"url": url}) for url in urls])
    new = {"model": "imagen4", "input": {"prompt": "a bowl of ramen"}}
    for number in itertools.count():
        await request(api, "POST", "/v1/generations", json=new)
        if number == 1:
            announce()
        await asyncio.sleep(EVENT_SECONDS)


async def hang_receivers(api: httpx.AsyncClient, count: int) -> None:
    """Many receivers that accept connections and never answer."""
    hosts = [f"127.254.{number // 250}.{1 + number % 250}" for number in range(count)]
    async with hold_connections(hosts):
        urls = [f"http://{host}:{LISTENERS_PORT}/webhooks" for host in hosts]
        await subscribe_and_generate(api, urls)


async def use_dead_names(api: httpx.AsyncClient, count: int) -> None:
    """Receivers whose names do not resolve, or only after a long time."""
    names = [f"{n}.{DEAD_NAME if n % 2 else SLOW_NAME}" for n in range(count)]
    await subscribe_and_generate(api, [f"http://{name}/webhooks" for name in names])


async def vary_queries(api: httpx.AsyncClient, count: int) -> None:
    """Every generation has a `notify_url` of its own, all at one receiver that hangs."""
    numbers = itertools.count()

    async def send() -> int:
        url = f"http://127.254.0.1:{LISTENERS_PORT}/webhooks?n={next(numbers)}"
        new = {"model": "nobody-knows-this", "input": {"prompt": "a bowl"}, "notify_url": url}
        return await request(api, "POST", "/v1/generations", json=new)

    async with hold_connections(["127.254.0.1"]):
        await run_each([send() for _ in range(count)])
        announce()
        await repeat(send, 2)


async def refresh_at_once(api: httpx.AsyncClient, count: int) -> None:
    """Many generations are refreshed at once, again and again."""
    new = {"model": "imagen4", "input": {"prompt": OPEN_PROMPT}}
    ids: list[str] = []

    async def submit() -> None:
        ids.append((await create(api, "/v1/generations", new))["id"])

    await run_each([submit() for _ in range(count)])
    turns = itertools.cycle(ids)
    announce()
    await repeat(lambda: request(api, "POST", f"/v1/generations/{next(turns)}/refresh"), count)


async def count_replays(api: httpx.AsyncClient, count: int) -> None:
    """Some dry runs of replays at a time, each of which counts many events."""
    subscriber = await create(api, "/v1/subscribers", {"url": "http://127.254.0.1:9/"})
    now = now_ms()
    new = {
        "subscriber_id": subscriber["id"],
        "since": rfc3339(now - 24 * HOUR_MS),
        "until": rfc3339(now + 24 * HOUR_MS),
        "only": "all",
        "dry_run": True,
    }
    announce()
    await repeat(lambda: request(api, "POST", "/v1/replays", json=new), count)


async def search_metadata(api: httpx.AsyncClient, count: int) -> None:
    """Some searches at a time, by six names that many rows have, and a value that none has."""
    query = {f"metadata.{name}": "same" for name in NAMES} | {f"metadata.{NAMES[-1]}": "none"}
    announce()
    await repeat(lambda: request(api, "GET", "/v1/generations", params=query), count)


async def list_large_rows(api: httpx.AsyncClient, count: int) -> None:
    """Large rows are stored and listed, as many on a page as there can be."""
    large = {"model": "imagen4", "input": {"prompt": "x" * LARGE_CHARACTERS}}
    calls = itertools.cycle(
        [
            ("GET", "/v1/generations?limit=250", None),
            ("GET", "/v1/events?limit=250", None),
            ("POST", "/v1/generations", large),
        ]
    )

    async def send() -> int:
        method, path, body = next(calls)
        return await request(api, method, path, json=body)

    announce()
    await repeat(send, count)


ATTACKS: dict[str, Attack] = {
    "hanging receivers": hang_receivers,
    "dead names": use_dead_names,
    "queries of notify_urls": vary_queries,
    "refreshes at once": refresh_at_once,
    "replay counts": count_replays,
    "metadata searches": search_metadata,
    "large rows": list_large_rows,
}


async def attack(kind: str, count: int, url: str, key: str) -> None:
    """Attack the service at `url` as the tenant of `key`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 16_384)), hard))
    limits = httpx.Limits(max_connections=None)
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(
        base_url=url, headers=headers, trust_env=False, timeout=60, limits=limits
    ) as api:
        await ATTACKS[kind](api, count)


if __name__ == "__main__":
    asyncio.run(attack(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]))
