"""Every list, timeline and count of the API with a million rows behind it."""

import asyncio
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from bench import history, load, world
from bench.machine import HOST
from bench.plan import Figures, Plan
from service.api.routes import OPERATIONS
from service.clock import DAY, now_ms, rfc3339

REQUESTS = 60  # of each, a round
SKIPPED = ("/v1/events/stream",)
WITHOUT_ROWS = re.compile(r"/v1/(models|signing-secret)")
FILTERS: dict[str, str] = {
    "status": "{status}",
    "model": "imagen4-fast",
    "metadata.": "3",
    "created_after": "2020-01-01T00:00:00Z",
    "created_before": "2020-01-01T00:00:00Z",
    "generation_id": "{generation}",
    "verdict": "unreadable",
    "subscriber_id": "{subscriber}",
    "event_id": "{event}",
    "type": "generation.failed",
    "since": "{month_ago}",
    "until": "{today}",
}
RARE_STATUS = {"generations": "queued", "deliveries": "canceled", "replays": "running"}


def ids_of(path: Path) -> dict[str, str]:
    """One row of each table, to ask for."""
    tables = ("generations", "events", "deliveries", "callbacks", "subscribers")
    connection = sqlite3.connect(path)
    try:
        return {
            table: connection.execute(f"SELECT id FROM {table} LIMIT 1 OFFSET 5").fetchone()[0]
            for table in tables
        }
    finally:
        connection.close()


def requests(path: Path) -> Iterator[str]:
    """Every GET below /v1 that reads rows: plain, filtered, the longest page, the oldest."""
    ids = ids_of(path)
    for operation in OPERATIONS:
        noun = operation.path.split("/")[2] if operation.path.startswith("/v1/") else ""
        if operation.method != "GET" or not noun or operation.path in SKIPPED:
            continue
        if WITHOUT_ROWS.match(operation.path) or ("{id}" in operation.path and noun not in ids):
            continue
        target = operation.path.replace("{id}", ids.get(noun, ""))
        yield target
        for name in sorted(operation.query):
            yield from (f"{target}?{query}" for query in _queries(name, noun, ids))


def _queries(name: str, noun: str, ids: dict[str, str]) -> Iterator[str]:
    if name == "limit":
        yield "limit=250"
    elif name == "order":
        yield "order=asc"
    elif name == "after" and noun in ids:
        yield f"after={ids[noun]}"
    elif name == "metadata.":
        yield from ("metadata.order=3", "metadata.order=nobody")
    elif name in FILTERS:
        value = FILTERS[name].format(
            status=RARE_STATUS.get(noun, ""),
            generation=ids["generations"],
            subscriber=ids["subscribers"],
            event=ids["events"],
            month_ago=rfc3339(now_ms() - 30 * DAY)[:10],
            today=rfc3339(now_ms())[:10],
        )
        yield f"{name}={value}"


def get(target: str) -> bytes:
    """A request's bytes."""
    head = f"GET {target} HTTP/1.1\r\nhost: {HOST}\r\nauthorization: Bearer {world.ADMIN_KEY}\r\n"
    return f"{head}\r\n".encode()


async def measure(plan: Plan, figures: Figures) -> None:
    """One client that asks for each of them again and again: the 99th percentile, and the worst."""
    path = await history.built(plan)
    targets = list(requests(path))
    assert len(targets) > 20, "the table of routes was not understood"
    async with world.served(path) as (_, port):
        for _ in range(plan.rounds):
            found = await asyncio.wait_for(one_round(port, targets), 240)
            for target, taken in found.items():
                figures.add(**{label(target): load.quantile(taken, 0.99) * 1e3})
            worst = max(found, key=lambda target: load.quantile(found[target], 0.99))
            print(f"    slowest: {label(worst)}")
            figures.add(
                worst_p99_ms=max(load.quantile(taken, 0.99) for taken in found.values()) * 1e3,
                median_ms=load.quantile([x for taken in found.values() for x in taken], 0.5) * 1e3,
                routes=float(len(found)),
            )


async def one_round(port: int, targets: list[str]) -> dict[str, list[float]]:
    """Seconds of each request."""
    connection = load.Client()
    loop = asyncio.get_running_loop()
    await loop.create_connection(lambda: connection, HOST, port)
    found: dict[str, list[float]] = {}
    for target in targets:
        request, taken = get(target), []
        for _ in range(REQUESTS):
            status, seconds = await connection.ask(request)
            assert status == b"200", f"{label(target)}: {status!r}"
            taken.append(seconds)
            if sum(taken) > 2.0:
                break
        found[target] = taken
    connection.transport.abort()
    return found


def label(target: str) -> str:
    """A request's path and query with the ids left out."""
    return re.sub(r"([a-z]+)_[0-9a-f]{32}", r"\1_…", target)
