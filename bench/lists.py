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
STATUSES = {
    "generations": ("queued", "processing", "succeeded", "timed_out"),
    "deliveries": ("pending", "delivered", "dead", "canceled"),
    "replays": ("running",),
}
FILTERS: dict[str, tuple[str, ...]] = {  # words that every row, some and none have
    "limit": ("250",),
    "order": ("asc",),
    "model": ("imagen4-fast", "imagen4"),
    "metadata.": ("3", "nobody"),
    "created_after": ("2020-01-01T00:00:00Z", "2099-01-01T00:00:00Z"),
    "created_before": ("2020-01-01T00:00:00Z", "2099-01-01T00:00:00Z"),
    "generation_id": ("{generations}",),
    "verdict": ("accepted", "unreadable", "rejected"),
    "subscriber_id": ("{subscribers}",),
    "event_id": ("{events}",),
    "type": ("generation.succeeded", "generation.failed"),
    "since": ("{month_ago}",),
    "until": ("{today}",),
}


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
    """The parameter with each of its words."""
    words = FILTERS.get(name, ())
    if name == "status":
        words = STATUSES.get(noun, ())
    elif name == "after" and noun in ids:
        words = (f"{{{noun}}}",)
    name = "metadata.order" if name == "metadata." else name
    now = now_ms()
    times = {"today": rfc3339(now)[:10], "month_ago": rfc3339(now - 30 * DAY)[:10]}
    for word in words:
        yield f"{name}={word.format(**ids, **times)}"


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
