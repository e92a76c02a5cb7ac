"""The clients of a service that may die at any moment: they repeat their requests."""

import asyncio
import re
import time
from contextlib import suppress
from typing import Any

import httpx

from chaos.world import World
from service.model.clock import rfc3339

MODELS = ("imagen4-fast", "imagen4", "nobody-knows-this", "ideogram-v3-turbo")
ANSWER_SECONDS = 90.0
PAUSE_SECONDS = 0.1
IN_USE_MAX = 15
FINAL = (202, 402, 409, 422, 502)
SCHEDULES_SECONDS = {
    "healthy": [0, *[1] * 15],
    "ordered": [0, *[1] * 15],
    "unreliable": [0, 0, 1, 1],
}


class NoAnswerError(Exception):
    """The service did not answer for longer than a restart takes."""


async def request(world: World, method: str, path: str, **options: Any) -> httpx.Response:
    """Send a request, and repeat it while there is no answer or the answer allows a repeat.

    The idempotency key of a request that died with its process stays in use for minutes, so the
    last of several 409 is returned.
    """
    ends_at, in_use = time.monotonic() + ANSWER_SECONDS, 0
    while time.monotonic() < ends_at:
        with suppress(httpx.TransportError):
            answer = await world.api.request(method, path, **options)
            in_use += answer.status_code == 409
            if answer.status_code not in (409, 429, 500, 503) or in_use > IN_USE_MAX:
                return answer
            if answer.status_code == 500:
                world.wrong_answers.append(f"{method} {path}: {answer.text[:200]}")
        await asyncio.sleep(PAUSE_SECONDS)
    raise NoAnswerError(f"{method} {path}")


async def subscribe(world: World, name: str) -> None:
    """Create one subscriber of this name, even if the answer to its creation is lost."""
    url = f"{world.subscriber_url}/{name}"
    while True:
        subscribers = (await request(world, "GET", "/v1/subscribers")).json()["data"]
        ids = [subscriber["id"] for subscriber in subscribers if subscriber["url"] == url]
        if ids:
            break
        body = {
            "url": url,
            "ordered": name == "ordered",
            "retry_schedule_seconds": SCHEDULES_SECONDS[name],
        }
        # By a key: a busy service may store it after this client has given up.
        headers = {"idempotency-key": url}
        with suppress(httpx.TransportError):
            await world.api.post("/v1/subscribers", json=body, headers=headers)
    secret = await request(world, "GET", f"/v1/subscribers/{ids[0]}/secret")
    world.subscribers.secrets[name] = secret.json()["secret"]


async def submit(world: World, number: int) -> None:
    """Submit a generation under an idempotency key until there is an answer."""
    prompt = re.sub(r"[^A-Za-z0-9]+", "-", f"{world.seed} {number}")
    model = MODELS[number % len(MODELS)]
    answer = await request(
        world,
        "POST",
        "/v1/generations",
        json={"model": model, "input": {"prompt": prompt}},
        headers={"idempotency-key": prompt},
    )
    world.answered[prompt] = answer.status_code
    if answer.status_code == 202:
        world.accepted[prompt] = answer.json()["id"]
    elif answer.status_code not in FINAL:
        text = f"submission of {prompt}: {answer.status_code} {answer.text[:200]}"
        world.wrong_answers.append(text)


async def replay(world: World, since: int, name: str, only: str) -> None:
    """Start a replay of stored events to a subscriber."""
    subscribers = (await request(world, "GET", "/v1/subscribers")).json()["data"]
    [subscriber_id] = [each["id"] for each in subscribers if each["url"].endswith(name)]
    body = {
        "subscriber_id": subscriber_id,
        "since": rfc3339(since),
        "until": rfc3339(since + 3_600_000),
        "only": only,
    }
    key = f"replay-{name}-{only}-{world.restarts}-{world.rng.random()}"
    await request(world, "POST", "/v1/replays", json=body, headers={"idempotency-key": key})


async def test_subscribers(world: World) -> None:
    """Send a test event to every subscriber, and retry some dead deliveries."""
    subscribers = (await request(world, "GET", "/v1/subscribers")).json()["data"]
    for subscriber in subscribers:
        with suppress(httpx.TransportError):
            await world.api.post(f"/v1/subscribers/{subscriber['id']}/test")
    dead = (await request(world, "GET", "/v1/deliveries?status=dead")).json()["data"]
    for delivery in dead[:3]:
        with suppress(httpx.TransportError):
            await world.api.post(f"/v1/deliveries/{delivery['id']}/retry")


async def run(world: World, count: int, seconds: float, first: int = 0) -> None:
    """Submit `count` generations over `seconds`, with two replays and some tests in between."""
    since = time.time_ns() // 1_000_000 - 60_000
    for name in SCHEDULES_SECONDS:
        await subscribe(world, name)
    tasks = []
    for number in range(first, first + count):
        tasks.append(asyncio.create_task(submit(world, number)))
        if number == first + count // 2:
            tasks.append(asyncio.create_task(replay(world, since, "healthy", "all")))
        if number == first + count * 3 // 4:
            tasks.append(asyncio.create_task(test_subscribers(world)))
        await asyncio.sleep(seconds / count)
    tasks.append(asyncio.create_task(replay(world, since, "unreliable", "dead")))
    await asyncio.gather(*tasks)
