"""The latency of every list, timeline and count of the API with a million rows stored."""

import asyncio
import re
import sqlite3
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path
from urllib.parse import urlsplit

from bench import history, load, world
from bench.machine import HOST
from bench.plan import Figures, Plan
from service.api.routes import OPERATIONS
from service.model.clock import DAY, now_ms, rfc3339
from service.model.ids import first_id

REQUESTS = 60  # Of each kind in a round.
ENOUGH_SECONDS = 2.0
TABLES = ("generations", "events", "deliveries", "callbacks", "subscribers")
SHARED = tuple(f"/v1/{noun}" for noun in (*TABLES, "replays", "usage"))  # Open to `manage` keys.
SKIPPED = ("/v1/events/stream",)
WITHOUT_ROWS = re.compile(r"/v1/(models|signing-secret)")
STATUSES = {
    "generations": ("queued", "processing", "succeeded", "failed", "timed_out"),
    "deliveries": ("pending", "delivered", "dead", "canceled"),
}
FILTERS: dict[str, tuple[str, ...]] = {  # Values that all rows, some, few and none have.
    "limit": ("250",),
    "order": ("asc",),
    "after": ("{oldest}", "{middle}"),
    "model": ("imagen4-fast", "imagen4", "imagen4-ultra", "no-such-model"),
    "metadata.": ("order=3", "order=rare", "order=nobody", "customer={customer}"),
    "created_after": ("2020-01-01T00:00:00Z", "{middle_at}", "2099-01-01T00:00:00Z"),
    "created_before": ("2020-01-01T00:00:00Z", "{middle_at}", "2099-01-01T00:00:00Z"),
    "generation_id": ("{generations}",),
    "verdict": ("accepted", "duplicate", "late", "unreadable", "rejected"),
    "subscriber_id": ("{subscribers}", "{down}"),
    "event_id": ("{events}",),
    "type": ("generation.succeeded", "generation.timed_out", "generation.failed"),
    "since": ("{year_ago}",),
    "until": ("{today}",),
}


def read_values(path: Path) -> dict[str, dict[str, str]]:
    """Read, for each table, the ids, times and values that fill the queries."""
    connection = sqlite3.connect(path)
    now = now_ms()
    ours = f"WHERE tenant = '{world.TENANT}' ORDER BY id"
    queries = {
        "busy": f"SELECT id FROM generations ORDER BY id LIMIT 1 OFFSET {history.BUSY}",
        "customer": "SELECT value FROM generation_metadata WHERE name = 'customer' LIMIT 1",
        "down": f"SELECT id FROM subscribers {ours} DESC LIMIT 1",
        **{table: f"SELECT id FROM {table} {ours} LIMIT 1 OFFSET 5" for table in TABLES},
    }
    try:
        shared = {name: connection.execute(sql).fetchone()[0] for name, sql in queries.items()}
        shared |= {
            "today": rfc3339(now)[:10],
            "year_ago": rfc3339(now - 365 * DAY)[:10],
            "middle_at": rfc3339(now - history.SPAN_MS // 2),
        }
        return {table: shared | _cursors(connection, table) for table in TABLES}
    finally:
        connection.close()


def _cursors(connection: sqlite3.Connection, table: str) -> dict[str, str]:
    """Read two cursors: before the last few rows of a list, newest first, and in its middle."""
    sql = f"SELECT id FROM {table} WHERE tenant = '{world.TENANT}' AND id >= ? ORDER BY id "
    oldest = connection.execute(f"{sql} LIMIT 1 OFFSET 3", ("",)).fetchone()[0]
    at = first_id(oldest.partition("_")[0], now_ms() - history.SPAN_MS // 2)
    middle = connection.execute(f"{sql} LIMIT 1", (at,)).fetchone()[0]
    return {"oldest": oldest, "middle": middle}


def list_targets(path: Path) -> dict[str, str]:
    """Return every GET that reads rows: plain, with each filter, and with each pair of filters."""
    values = read_values(path)
    targets = {"/metrics": "/metrics"}
    for operation in OPERATIONS:
        noun = operation.path.split("/")[2] if operation.path.startswith("/v1/") else ""
        if operation.method != "GET" or not noun or operation.path in SKIPPED:
            continue
        if WITHOUT_ROWS.match(operation.path) or ("{id}" in operation.path and noun not in values):
            continue
        known = values.get(noun, values["generations"])
        for name in _templates(operation.path, noun, operation.query):
            targets[name] = name.replace("{id}", known.get(noun, "")).format(**known)
    busy = values["generations"]["busy"]
    return targets | {"a busy timeline": f"/v1/generations/{busy}/timeline"}


def _templates(path: str, noun: str, names: Iterable[str]) -> Iterator[str]:
    """Yield the route plain, with each parameter, and with each pair; `{…}` is filled in later."""
    parameters = [list(_queries(name, noun)) for name in sorted(names)]
    yield path
    for queries in parameters:
        yield from (f"{path}?{query}" for query in queries)
    for one, other in combinations(parameters, 2):
        yield from (f"{path}?{a}&{b}" for a in one for b in other)


def _queries(name: str, noun: str) -> Iterator[str]:
    values = STATUSES.get(noun, ()) if name == "status" else FILTERS.get(name, ())
    if name == "after" and noun not in TABLES:
        values = ()
    for value in values:
        yield f"{name}{value}" if name == "metadata." else f"{name}={value}"


def build_get(target: str, key: str = world.ADMIN_KEY) -> bytes:
    """Return a request's bytes."""
    head = f"GET {target} HTTP/1.1\r\nhost: {HOST}\r\nauthorization: Bearer {key}\r\n"
    return f"{head}\r\n".encode()


async def measure(plan: Plan, figures: Figures) -> None:
    """Measure the 99th percentile of each request from one client, and the slowest of them."""
    path = await history.build(plan)
    targets = list_targets(path)
    requests = {name: build_get(target) for name, target in targets.items()}
    requests |= {
        f"a small tenant's {name}": build_get(target, history.QUIET_KEY)
        for name, target in targets.items()
        if urlsplit(target).path in SHARED and "&" not in target
    }
    assert len(requests) > 200, "the table of routes was misread"
    async with world.serve(path) as (_, port):
        for _ in range(plan.rounds):
            latencies = await asyncio.wait_for(run_round(port, requests), 480)
            p99_ms = {name: load.quantile(each, 0.99) * 1e3 for name, each in latencies.items()}
            figures.add(**{name: p99 for name, p99 in p99_ms.items() if "&" not in name})
            for name in sorted(p99_ms, key=p99_ms.__getitem__)[-5:]:
                print(f"    {p99_ms[name]:6.1f} ms  {name}")
            every = [seconds for each in latencies.values() for seconds in each]
            figures.add(
                worst_p99_ms=max(p99_ms.values()),
                worst_pair_p99_ms=max(p99 for name, p99 in p99_ms.items() if "&" in name),
                median_ms=load.quantile(every, 0.5) * 1e3,
                routes=float(len(latencies)),
            )


async def run_round(port: int, requests: dict[str, bytes]) -> dict[str, list[float]]:
    """Send each request REQUESTS times; return the latencies in seconds."""
    connection = load.Client()
    loop = asyncio.get_running_loop()
    await loop.create_connection(lambda: connection, HOST, port)
    await connection.request(requests["/metrics"])  # The first answer of a process loads modules.
    latencies: dict[str, list[float]] = {}
    for name, request in requests.items():
        latencies[name] = []
        for _ in range(REQUESTS):
            status, seconds = await connection.request(request)
            assert status == b"200", f"{name}: {status!r}"
            latencies[name].append(seconds)
            if sum(latencies[name]) > ENOUGH_SECONDS:
                break
    connection.transport.abort()
    return latencies
