"""What clients do to a service that may die at any moment: they ask, and ask again."""

import asyncio
import re
import time
from contextlib import suppress
from typing import Any

import httpx

from chaos.world import World
from service.model.clock import rfc3339

MODELS = ("imagen4-fast", "imagen4", "nobody-knows-this", "ideogram-v3-turbo")
PATIENCE_SECONDS = 40.0
PAUSE_SECONDS = 0.1
IN_USE_MAX = 15
FINAL = (202, 402, 409, 422, 502)
RETRIES_SECONDS = {"well": [0, *[1] * 15], "ordered": [0, *[1] * 15], "moody": [0, 0, 1, 1]}


class GaveUpError(Exception):
    """The service did not answer for longer than any restart takes."""


async def ask(world: World, method: str, path: str, **options: Any) -> httpx.Response:
    """One request, repeated while nobody answers or the answer is that it may be repeated.

    A key of a request that died with its process is in use for minutes: 409 is an answer then.
    """
    ends_at, in_use = time.monotonic() + PATIENCE_SECONDS, 0
    while time.monotonic() < ends_at:
        with suppress(httpx.TransportError):
            said = await world.api.request(method, path, **options)
            in_use += said.status_code == 409
            if said.status_code not in (409, 429, 500, 503) or in_use > IN_USE_MAX:
                return said
            if said.status_code == 500:
                world.strange.append(f"{method} {path}: {said.text[:200]}")
        await asyncio.sleep(PAUSE_SECONDS)
    raise GaveUpError(f"{method} {path}")


async def subscribe(world: World, name: str) -> None:
    """One subscriber of this name, though the answer that says so may be lost."""
    url = f"{world.hooks}/{name}"
    while True:
        listed = (await ask(world, "GET", "/v1/subscribers")).json()["data"]
        found = [one["id"] for one in listed if one["url"] == url]
        if found:
            break
        body = {
            "url": url,
            "ordered": name == "ordered",
            "retry_schedule_seconds": RETRIES_SECONDS[name],
        }
        with suppress(httpx.TransportError):
            await world.api.post("/v1/subscribers", json=body)
    secret = await ask(world, "GET", f"/v1/subscribers/{found[0]}/secret")
    world.audience.secrets[name] = secret.json()["secret"]


async def submit(world: World, number: int) -> None:
    """Ask for one generation, with one key, until there is an answer."""
    prompt = re.sub(r"[^A-Za-z0-9]+", "-", f"{world.seed} {number}")
    model = MODELS[number % len(MODELS)]
    said = await ask(
        world,
        "POST",
        "/v1/generations",
        json={"model": model, "input": {"prompt": prompt}},
        headers={"idempotency-key": prompt},
    )
    world.answered[prompt] = said.status_code
    if said.status_code == 202:
        world.accepted[prompt] = said.json()["id"]
    elif said.status_code not in FINAL:
        world.strange.append(f"submission of {prompt}: {said.status_code} {said.text[:200]}")


async def replay(world: World, since: int, name: str, only: str) -> None:
    """Have stored events sent to a subscriber again."""
    listed = (await ask(world, "GET", "/v1/subscribers")).json()["data"]
    [subscriber] = [one["id"] for one in listed if one["url"].endswith(name)]
    body = {
        "subscriber_id": subscriber,
        "since": rfc3339(since),
        "until": rfc3339(since + 3_600_000),
        "only": only,
    }
    key = f"replay-{name}-{only}-{world.restarts}-{world.lots.random()}"
    await ask(world, "POST", "/v1/replays", json=body, headers={"idempotency-key": key})


async def ping(world: World) -> None:
    """Try the subscribers, and have dead deliveries tried once more."""
    listed = (await ask(world, "GET", "/v1/subscribers")).json()["data"]
    for one in listed:
        with suppress(httpx.TransportError):
            await world.api.post(f"/v1/subscribers/{one['id']}/test")
    dead = (await ask(world, "GET", "/v1/deliveries?status=dead")).json()["data"]
    for one in dead[:3]:
        with suppress(httpx.TransportError):
            await world.api.post(f"/v1/deliveries/{one['id']}/retry")


async def run(world: World, count: int, seconds: float, first: int = 0) -> None:
    """`count` generations over `seconds`, two replays and some tries, to their answers."""
    since = time.time_ns() // 1_000_000 - 60_000
    for name in RETRIES_SECONDS:
        await subscribe(world, name)
    tasks = []
    for number in range(first, first + count):
        tasks.append(asyncio.create_task(submit(world, number)))
        if number == first + count // 2:
            tasks.append(asyncio.create_task(replay(world, since, "well", "all")))
        if number == first + count * 3 // 4:
            tasks.append(asyncio.create_task(ping(world)))
        await asyncio.sleep(seconds / count)
    tasks.append(asyncio.create_task(replay(world, since, "moody", "dead")))
    await asyncio.gather(*tasks)
