"""All kinds of hostile subscribers at once, beside healthy ones, under load."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.machine import Running
from chaos import load, promises
from chaos.outcome import Outcome
from chaos.plan import Plan, Try, run_tries
from chaos.world import World, open_world
from tests.wire import receivers
from tests.wire.receivers import Peer, Script

GENERATIONS, QUICK_GENERATIONS, LOAD_SECONDS = 60, 12, 12.0
SCHEDULE_SECONDS = [0, 1, 2]
EARLY_MS = 60  # The schedule begins when the attempt is concluded, shortly after it ended.
# A lane whose receiver hangs makes one retry at a time, of a second: two for each of 120 webhooks.
SETTLE_SECONDS = 400.0
ROUNDS_MAX = 3  # Hostile ones slow others down in each; a busy machine does in some.
RATIO_MIN, GROWTH_MB_MAX = 0.8, 100.0
HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"


async def never_reads(peer: Peer) -> None:
    """Accept the connection and read nothing from it."""
    await asyncio.sleep(60)
    await peer.gone()


async def closes_kept(peer: Peer) -> None:
    """Answer once, keep the connection, and reset it when the next request arrives."""
    await peer.request()
    await peer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    await peer.request()
    peer.reset()


HOSTILE: dict[str, Script] = {
    "hang": receivers.hang,
    "never-reads": never_reads,
    "close": receivers.close_silently,
    "reset": receivers.reset_silently,
    "drip-head": receivers.drip(HEAD, b"x: y\r\n"),
    "drip-body": receivers.drip(HEAD + b"content-length: 100000\r\n\r\n", b"x"),
    "endless-headers": receivers.flood(HEAD, b"x: y\r\n" * 1_000),
    "huge-body": receivers.flood(HEAD + b"content-length: 9999999999\r\n\r\n", b"x" * 65_536),
    "bad-chunks": receivers.always(CHUNKED + b"zz\r\nno\r\n"),
    "interim-flood": receivers.flood(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "redirect": receivers.always(
        b"HTTP/1.1 307 Away\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"
    ),
    "not-http": receivers.once(b"SSH-2.0-OpenSSH_9.0\r\n"),
    "throttles": receivers.always(
        b"HTTP/1.1 429 Slow\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n"
    ),
    "two-lengths": receivers.always(HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\nab"),
    "closes-kept": closes_kept,
}
DELIVERED = ("huge-body", "drip-body", "closes-kept", "bad-chunks", "two-lengths")
HEALTHY = ("healthy", "ordered")
OWED_TO_HEALTHY = """
SELECT (SELECT count(*) FROM generations WHERE completed_at IS NULL)
     + (SELECT count(*) FROM deliveries d JOIN subscribers s ON s.id = d.subscriber_id
        WHERE d.status = 'pending' AND (s.url LIKE '%/healthy' OR s.url LIKE '%/ordered')) AS count
"""


@dataclass
class Measured:
    """The throughput, delay and memory of one world."""

    events_per_second: float
    slowest_seconds: float
    growth_mb: float
    peak_mb: float


async def run(plan: Plan) -> Outcome:
    """Run the same load with hostile subscribers and without them."""
    count = QUICK_GENERATIONS if plan.quick else GENERATIONS
    worlds: dict[str, Measured] = {}

    def new_try(name: str, *, hostile: bool) -> Try:
        async def run_try(folder: Path, seed: str, repeat: str) -> Outcome:
            outcome, worlds[name] = await run_world(folder, seed, repeat, count, hostile=hostile)
            return outcome

        return Try(name, run_try)

    tries = [new_try("beside hostile ones", hostile=True)]
    if not plan.quick:
        tries.append(new_try("alone", hostile=False))
    total, best, ratio = Outcome(), dict[str, float](), 0.0
    for number in range(ROUNDS_MAX):
        each = replace(plan, folder=plan.folder / f"round {number}")
        total.add(await run_tries(each, tries, side_by_side=1))
        if len(worlds) > 1:
            for name, world in worlds.items():
                best[name] = max(best.get(name, 0.0), world.events_per_second)
            ratio = best["beside hostile ones"] / best["alone"]
        if len(worlds) < 2 or ratio >= RATIO_MIN:
            break
    for name, world in worlds.items():
        total.notes[f"events/s of each healthy subscriber, {name}"] = world.events_per_second
        total.notes[f"seconds to the slowest healthy subscriber, {name}"] = world.slowest_seconds
        total.notes[f"peak memory in MB, {name}"] = world.peak_mb
    if len(worlds) > 1:
        total.notes["throughput beside hostile ones / alone"] = ratio
        detail = f"throughput falls to {ratio:.2f}"
        total.check("6 isolation", holds=ratio >= RATIO_MIN, detail=detail)
    return total


async def run_world(
    folder: Path, seed: str, repeat: str, count: int, *, hostile: bool
) -> tuple[Outcome, Measured]:
    """Run one world; without `hostile`, the hostile subscribers are replaced by quick ones."""
    outcome = Outcome()
    async with open_world(folder, seed) as world, _serve_receivers(hostile=hostile) as urls:
        world.settings["GENHOOK_ATTEMPT_TIMEOUT_SECONDS"] = "1"
        world.provider.weights = {"taken": 1}
        world.subscribers.has_faults = False
        await world.start()
        for url in urls.values():
            await _subscribe(world, url)
        assert world.process is not None
        process = Running(world.process)
        start_mb, peak = process.memory_mb(), [0.0]
        watch = world.run_beside(_watch_memory(process, peak))
        began = time.monotonic()
        await world.run_beside(load.run(world, count, LOAD_SECONDS * count / GENERATIONS))
        await promises.wait_until_done(world, open_work=OWED_TO_HEALTHY)
        healthy_seconds = time.monotonic() - began
        await world.provider.settle()
        await promises.wait_until_done(world, SETTLE_SECONDS)
        watch.cancel()
        growth = process.memory_mb() - start_mb
        await promises.check_stop(world, outcome, repeat)
        promises.check_world(world, outcome, repeat)
        if hostile:
            outcome.faults.update(
                {f"attempt at {n}": c for n, c in _count_attempts(world, urls).items()}
            )
            _check_schedules(world, urls, outcome, repeat)
        outcome.check(
            "8 memory is bounded", holds=growth < GROWTH_MB_MAX, detail=f"{growth}", repeat=repeat
        )
        receipts = [each for each in world.subscribers.receipts if each.name in HEALTHY]
        count = sum(receipt.name == "healthy" for receipt in receipts)
        slowest = max((receipt.age_seconds for receipt in receipts), default=0)
        return outcome, Measured(count / healthy_seconds, slowest, growth, peak[0])


@asynccontextmanager
async def _serve_receivers(*, hostile: bool) -> AsyncIterator[dict[str, str]]:
    async with AsyncExitStack() as stack:
        urls = {}
        for name, script in HOSTILE.items():
            actual = script if hostile else receivers.always(receivers.OK)
            receiver = await stack.enter_async_context(receivers.receiving(actual))
            urls[name] = receiver.url.replace("/webhooks", f"/{name}")
        yield urls


async def _subscribe(world: World, url: str) -> None:
    body = {"url": url, "retry_schedule_seconds": SCHEDULE_SECONDS}
    headers = {"idempotency-key": url}
    answer = await load.request(world, "POST", "/v1/subscribers", json=body, headers=headers)
    assert answer.status_code == 201, answer.text


async def _watch_memory(process: Running, peak: list[float]) -> None:
    while True:
        peak[0] = max(peak[0], process.memory_mb())
        await asyncio.sleep(0.2)


def _count_attempts(world: World, urls: dict[str, str]) -> dict[str, int]:
    rows = world.rows(
        "SELECT s.url, sum(d.attempt_count) AS n FROM deliveries d "
        "JOIN subscribers s ON s.id = d.subscriber_id GROUP BY 1"
    )
    names = {url: name for name, url in urls.items()}
    return {names[row["url"]]: row["n"] for row in rows if row["url"] in names}


def _check_schedules(world: World, urls: dict[str, str], outcome: Outcome, repeat: str) -> None:
    """Check that hostile subscribers get retries by their schedule, neither early nor too many."""
    rows = world.rows(
        "SELECT s.url, d.id, d.status, a.number, a.started_at, a.duration_ms FROM attempts a "
        "JOIN deliveries d ON d.id = a.delivery_id JOIN subscribers s ON s.id = d.subscriber_id "
        "WHERE a.trigger = 'scheduled' ORDER BY d.id, a.number"
    )
    names = {url: name for name, url in urls.items()}
    early: list[tuple[str, int, int]] = []
    before: dict[str, dict[str, Any]] = {}
    for row in rows:
        earlier = before.get(row["id"])
        before[row["id"]] = row
        if earlier is None or row["url"] not in names:
            continue
        due = earlier["started_at"] + earlier["duration_ms"]
        due += SCHEDULE_SECONDS[earlier["number"]] * 1_000
        if row["started_at"] < due - EARLY_MS:
            early.append((names[row["url"]], row["number"], due - row["started_at"]))
    outcome.check(
        "6 by schedule, never early", holds=not early, detail=f"{early[:3]}", repeat=repeat
    )
    spent = [
        names[row["url"]]
        for row in before.values()
        if row["url"] in names and names[row["url"]] not in DELIVERED
        if row["status"] != "dead" or row["number"] != len(SCHEDULE_SECONDS)
    ]
    outcome.check(
        "3 hostile ones end as dead letters", holds=not spent, detail=f"{set(spent)}", repeat=repeat
    )
