"""Every list, timeline and count of the API with a million rows behind it."""

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

REQUESTS = 60  # of each, a round
ENOUGH_SECONDS = 2.0
TABLES = ("generations", "events", "deliveries", "callbacks", "subscribers")
SHARED = tuple(f"/v1/{noun}" for noun in (*TABLES, "replays", "usage"))  # who may manage sees it
SKIPPED = ("/v1/events/stream",)
WITHOUT_ROWS = re.compile(r"/v1/(models|signing-secret)")
STATUSES = {
    "generations": ("queued", "processing", "succeeded", "failed", "timed_out"),
    "deliveries": ("pending", "delivered", "dead", "canceled"),
}
FILTERS: dict[str, tuple[str, ...]] = {  # words that every row, some, a few and none have
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


def words_of(path: Path) -> dict[str, dict[str, str]]:
    """What to ask for by noun: ids of rows in the middle and at the end, times, values."""
    connection = sqlite3.connect(path)
    now = now_ms()
    ours = f"WHERE tenant = '{world.TENANT}' ORDER BY id"
    wanted = {
        "busy": f"SELECT id FROM generations ORDER BY id LIMIT 1 OFFSET {history.BUSY}",
        "customer": "SELECT value FROM generation_metadata WHERE name = 'customer' LIMIT 1",
        "down": f"SELECT id FROM subscribers {ours} DESC LIMIT 1",
        **{table: f"SELECT id FROM {table} {ours} LIMIT 1 OFFSET 5" for table in TABLES},
    }
    try:
        shared = {name: connection.execute(sql).fetchone()[0] for name, sql in wanted.items()}
        shared |= {
            "today": rfc3339(now)[:10],
            "year_ago": rfc3339(now - 365 * DAY)[:10],
            "middle_at": rfc3339(now - history.SPAN_MS // 2),
        }
        return {table: shared | _cursors(connection, table) for table in TABLES}
    finally:
        connection.close()


def _cursors(connection: sqlite3.Connection, table: str) -> dict[str, str]:
    """Before the last few rows of a list, newest first, and in its middle."""
    sql = f"SELECT id FROM {table} WHERE tenant = '{world.TENANT}' AND id >= ? ORDER BY id "
    oldest = connection.execute(f"{sql} LIMIT 1 OFFSET 3", ("",)).fetchone()[0]
    at = first_id(oldest.partition("_")[0], now_ms() - history.SPAN_MS // 2)
    middle = connection.execute(f"{sql} LIMIT 1", (at,)).fetchone()[0]
    return {"oldest": oldest, "middle": middle}


def requests(path: Path) -> dict[str, str]:
    """Every GET that reads rows, by a name: plain, with each filter, and with any two of them."""
    words = words_of(path)
    found = {"/metrics": "/metrics"}
    for operation in OPERATIONS:
        noun = operation.path.split("/")[2] if operation.path.startswith("/v1/") else ""
        if operation.method != "GET" or not noun or operation.path in SKIPPED:
            continue
        if WITHOUT_ROWS.match(operation.path) or ("{id}" in operation.path and noun not in words):
            continue
        known = words.get(noun, words["generations"])
        for name in _asked(operation.path, noun, operation.query):
            found[name] = name.replace("{id}", known.get(noun, "")).format(**known)
    known = words["generations"]
    return found | {"a busy timeline": f"/v1/generations/{known['busy']}/timeline"}


def _asked(path: str, noun: str, names: Iterable[str]) -> Iterator[str]:
    """The route plain, with each parameter, and with any two, words still to be filled in."""
    asked = [list(_queries(name, noun)) for name in sorted(names)]
    yield path
    for queries in asked:
        yield from (f"{path}?{query}" for query in queries)
    for one, other in combinations(asked, 2):
        yield from (f"{path}?{a}&{b}" for a in one for b in other)


def _queries(name: str, noun: str) -> Iterator[str]:
    words = STATUSES.get(noun, ()) if name == "status" else FILTERS.get(name, ())
    if name == "after" and noun not in TABLES:
        words = ()
    for word in words:
        yield f"{name}{word}" if name == "metadata." else f"{name}={word}"


def get(target: str, key: str = world.ADMIN_KEY) -> bytes:
    """A request's bytes."""
    head = f"GET {target} HTTP/1.1\r\nhost: {HOST}\r\nauthorization: Bearer {key}\r\n"
    return f"{head}\r\n".encode()


async def measure(plan: Plan, figures: Figures) -> None:
    """One client that asks for each of them again and again: the 99th percentile, and the worst."""
    path = await history.built(plan)
    targets = requests(path)
    asked = {name: get(target) for name, target in targets.items()}
    asked |= {
        f"a small tenant's {name}": get(target, history.QUIET_KEY)
        for name, target in targets.items()
        if urlsplit(target).path in SHARED and "&" not in target
    }
    assert len(asked) > 200, "the table of routes was not understood"
    async with world.served(path) as (_, port):
        for _ in range(plan.rounds):
            found = await asyncio.wait_for(one_round(port, asked), 480)
            slowest = {name: load.quantile(taken, 0.99) * 1e3 for name, taken in found.items()}
            figures.add(**{name: p99 for name, p99 in slowest.items() if "&" not in name})
            for name in sorted(slowest, key=slowest.__getitem__)[-5:]:
                print(f"    {slowest[name]:6.1f} ms  {name}")
            figures.add(
                worst_p99_ms=max(slowest.values()),
                worst_pair_p99_ms=max(p99 for name, p99 in slowest.items() if "&" in name),
                median_ms=load.quantile([x for taken in found.values() for x in taken], 0.5) * 1e3,
                routes=float(len(found)),
            )


async def one_round(port: int, asked: dict[str, bytes]) -> dict[str, list[float]]:
    """Seconds of each request."""
    connection = load.Client()
    loop = asyncio.get_running_loop()
    await loop.create_connection(lambda: connection, HOST, port)
    await connection.ask(asked["/metrics"])  # Its first answer in a process loads modules.
    found: dict[str, list[float]] = {}
    for name, request in asked.items():
        taken: list[float] = []
        for _ in range(REQUESTS):
            status, seconds = await connection.ask(request)
            assert status == b"200", f"{name}: {status!r}"
            taken.append(seconds)
            if sum(taken) > ENOUGH_SECONDS:
                break
        found[name] = taken
    connection.transport.abort()
    return found
