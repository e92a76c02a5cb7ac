"""Every kind of hostile subscriber at once, beside healthy ones, under load."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.machine import Running
from chaos import load, plan, promises
from chaos.outcome import Outcome
from chaos.world import World, opened
from tests.wire import receivers
from tests.wire.receivers import Peer, Script

GENERATIONS, QUICK_GENERATIONS, LOAD_SECONDS = 120, 12, 12.0
SCHEDULE_SECONDS = [0, 1, 2]
EARLY_MS = 60  # The clock that a schedule is held against is read a little after the attempt ends.
SETTLE_SECONDS = 150.0
RATIO_MIN, GROWTH_MB_MAX = 0.8, 100.0
HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"


async def never_reads(peer: Peer) -> None:
    """The connection is taken, and nothing is read from it."""
    await asyncio.sleep(60)
    await peer.gone()


async def closes_kept(peer: Peer) -> None:
    """Answers once, keeps the connection, and closes it when the next request is on its way."""
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
TAKES = ("huge-body", "drip-body", "closes-kept", "bad-chunks", "two-lengths")
HEALTHY = ("well", "ordered")


@dataclass
class Went:
    """What one world came to."""

    events_per_second: float
    slowest_seconds: float
    growth_mb: float
    peak_mb: float


async def run(of: plan.Plan) -> Outcome:
    """The same load without hostile subscribers and with them."""
    count = QUICK_GENERATIONS if of.quick else GENERATIONS
    went: dict[str, Went] = {}

    def a_try(name: str, *, hostile: bool) -> plan.Try:
        async def attempt(folder: Path, seed: str, again: str) -> Outcome:
            judged, went[name] = await among(folder, seed, again, count, hostile=hostile)
            return judged

        return plan.Try(name, attempt)

    tries = [a_try("beside hostile ones", hostile=True)]
    if not of.quick:
        tries.append(a_try("alone", hostile=False))
    total = await plan.run(of, tries, side_by_side=1)
    for name, one in went.items():
        total.notes[f"events a second for each healthy subscriber, {name}"] = one.events_per_second
        total.notes[f"seconds from an event to the slowest healthy subscriber, {name}"] = (
            one.slowest_seconds
        )
        total.notes[f"MB of memory at most, {name}"] = one.peak_mb
    if len(went) > 1:
        alone, beside = went["alone"], went["beside hostile ones"]
        ratio = beside.events_per_second / alone.events_per_second
        total.notes["throughput beside hostile ones, of that alone"] = ratio
        seen = f"throughput falls to {ratio:.2f}"
        total.check("6 isolation", holds=ratio >= RATIO_MIN, seen=seen)
    return total


async def among(
    folder: Path, seed: str, again: str, count: int, *, hostile: bool
) -> tuple[Outcome, Went]:
    """One world. Without hostile subscribers there are as many that answer at once."""
    judged = Outcome()
    async with opened(folder, seed) as world, _receiving(hostile=hostile) as urls:
        world.settings["GENHOOK_ATTEMPT_TIMEOUT_SECONDS"] = "1"
        world.provider.weights = {"taken": 1}
        world.audience.is_moody = False
        await world.start()
        for url in urls.values():
            await _subscribe(world, url)
        assert world.process is not None
        process = Running(world.process)
        before_mb, peak = process.memory_mb(), [0.0]
        watch = world.at_once(_watch(process, peak))
        began = time.monotonic()
        await world.at_once(load.run(world, count, LOAD_SECONDS * count / GENERATIONS))
        healthy_seconds = await _until_told(world) - began
        await world.provider.settle()
        await promises.settle(world, SETTLE_SECONDS)
        watch.cancel()
        growth = process.memory_mb() - before_mb
        status = await world.stop()
        judged.check("it ends when asked to", holds=status == 0, seen=f"{status}", again=again)
        promises.judge(world, judged, again)
        if hostile:
            judged.faults.update({f"attempt at {n}": c for n, c in _attempts(world, urls).items()})
            _schedules(world, urls, judged, again)
        judged.check(
            "8 memory is bounded", holds=growth < GROWTH_MB_MAX, seen=f"{growth}", again=again
        )
        told = sum(one.name == "well" for one in world.audience.receipts)
        slowest = max(
            (one.skew for one in world.audience.receipts if one.name in HEALTHY), default=0
        )
        return judged, Went(told / healthy_seconds, slowest, growth, peak[0])


@asynccontextmanager
async def _receiving(*, hostile: bool) -> AsyncIterator[dict[str, str]]:
    async with AsyncExitStack() as stack:
        urls = {}
        for name, script in HOSTILE.items():
            used = script if hostile else receivers.always(receivers.OK)
            receiver = await stack.enter_async_context(receivers.receiving(used))
            urls[name] = receiver.url.replace("/webhooks", f"/{name}")
        yield urls


async def _subscribe(world: World, url: str) -> None:
    body = {"url": url, "retry_schedule_seconds": SCHEDULE_SECONDS}
    said = await world.api.post("/v1/subscribers", json=body)
    assert said.status_code == 201, said.text


async def _watch(process: Running, peak: list[float]) -> None:
    while True:
        peak[0] = max(peak[0], process.memory_mb())
        await asyncio.sleep(0.2)


async def _until_told(world: World) -> float:
    """When the healthy subscribers have every event of every generation, once all have ended."""
    while True:
        ended = world.rows("SELECT count(*) AS n FROM generations WHERE completed_at IS NULL")
        owed = world.rows(
            "SELECT count(*) AS n FROM deliveries d JOIN subscribers s ON s.id = d.subscriber_id "
            "WHERE d.status = 'pending' AND (s.url LIKE '%/well' OR s.url LIKE '%/ordered')"
        )
        if not ended[0]["n"] and not owed[0]["n"]:
            return time.monotonic()
        await asyncio.sleep(0.05)


def _attempts(world: World, urls: dict[str, str]) -> dict[str, int]:
    rows = world.rows(
        "SELECT s.url, sum(d.attempt_count) AS n FROM deliveries d "
        "JOIN subscribers s ON s.id = d.subscriber_id GROUP BY 1"
    )
    names = {url: name for name, url in urls.items()}
    return {names[row["url"]]: row["n"] for row in rows if row["url"] in names}


def _schedules(world: World, urls: dict[str, str], judged: Outcome, again: str) -> None:
    """Hostile ones are tried again by their schedule: never early, never more often."""
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
    judged.check("6 by schedule, never early", holds=not early, seen=f"{early[:3]}", again=again)
    spent = [
        names[row["url"]]
        for row in before.values()
        if row["url"] in names and names[row["url"]] not in TAKES
        if row["status"] != "dead" or row["number"] != len(SCHEDULE_SECONDS)
    ]
    judged.check(
        "3 hostile ones end as dead letters", holds=not spent, seen=f"{set(spent)}", again=again
    )
