"""Deliveries of the real process, signed, sent and recorded: backlogs and slow subscribers."""

import asyncio
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import outgoing, world
from bench.callbacks import copy_database
from bench.history import multiply
from bench.machine import find_free_port
from bench.plan import Figures, Plan
from bench.receivers import Counting, serve_protocol
from service.model.clock import now_ms

SUBSCRIBERS = 20
SLOW_SECONDS = 2.0
TIMEOUT_SECONDS = 60.0
HOUR_MS = 3_600_000
FEW = 10_000
STEP = 618_033  # Coprime with every count here, so that ranks times this are a permutation.


class Arrivals:
    """Counts the deliveries that arrived at the receivers, by address."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """All deliveries that arrived."""
        return sum(self.counts.values())

    async def wait_for(self, number: int) -> float:
        """Wait until `number` have arrived; return the time. AssertionError after a minute."""
        ends_at = time.perf_counter() + TIMEOUT_SECONDS
        while self.total < number:
            assert time.perf_counter() < ends_at, f"only {self.total} of {number} arrived"
            await asyncio.sleep(0.002)
        return time.perf_counter()


def count_recorded(path: Path) -> int:
    """Return the number of deliveries stored as delivered, each with an attempt."""
    connection = sqlite3.connect(path)
    try:
        statement = (
            "SELECT count(*) FROM deliveries d JOIN attempts a ON a.delivery_id = d.id "
            "WHERE d.status = 'delivered' AND a.status_code = 204"
        )
        return int(connection.execute(statement).fetchone()[0])
    finally:
        connection.close()


async def make_backlog(
    path: Path, urls: list[str], count: int, due_at: Callable[[int], int], **fields: object
) -> None:
    """Make a database with `count` pending deliveries for subscribers at `urls`."""
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    async with world.open_database(path) as database:
        ids = await world.add_subscribers(database, urls, **fields)
        await world.add_backlog(database, ids, count, due_at)


@asynccontextmanager
async def serve_receiver(arrivals: Arrivals) -> AsyncIterator[int]:
    """Serve a counting receiver in this process; yields its port."""
    async with serve_protocol(lambda: Counting(arrivals.counts)) as port:
        yield port


def inbox_urls(port: int, count: int) -> list[str]:
    """Return the URLs of `count` subscribers behind one receiver."""
    return [f"http://127.0.0.1:{port}/inbox/{index:04d}" for index in range(count)]


@dataclass(frozen=True)
class Throughput:
    """Deliveries per second, and what each cost: in the whole process, and on its event loop."""

    per_second: float
    cpu_us: float
    loop_us: float
    switches: float


async def drain(path: Path, arrivals: Arrivals, first: int, last: int) -> Throughput:
    """Serve the database until `last` deliveries arrived; measure from the `first` one on."""
    arrivals.counts.clear()
    async with world.serve(path) as (running, _):
        began = await arrivals.wait_for(first)
        before = (running.cpu_seconds(), running.main_thread_seconds(), running.switches())
        unmeasured = arrivals.total
        ended = await arrivals.wait_for(last)
        after = (running.cpu_seconds(), running.main_thread_seconds(), running.switches())
        count = arrivals.total - unmeasured
        cpu, loop, switches = ((b - a) / count for a, b in zip(before, after, strict=True))
        return Throughput(count / (ended - began), cpu * 1e6, loop * 1e6, switches)


async def measure(plan: Plan, figures: Figures) -> None:
    """Measure how fast `genhook serve` drains a backlog for 20 subscribers.

    The bare protocol of `sender` runs against the same receiver for comparison.
    """
    count = plan.size(20_000) + 10_000
    arrivals, path = Arrivals(), plan.folder / "deliveries.db"
    async with serve_receiver(arrivals) as port:
        for _ in range(plan.rounds):
            bare = await outgoing.run_client("bare", port, plan.seconds)
            await make_backlog(path, inbox_urls(port, SUBSCRIBERS), count, lambda _: now_ms())
            genhook = await drain(path, arrivals, 2_000, count)
            assert count_recorded(path) == count, "an answered delivery is not recorded"
            figures.add(
                per_second=genhook.per_second,
                cpu_us=genhook.cpu_us,
                loop_cpu_us=genhook.loop_us,
                switches=genhook.switches,
                bare_per_second=bare["per_second"],
                bare_cpu_us=bare["cpu_us"],
            )
            figures.ratio("of_bare", "per_second", "bare_per_second")
            figures.ratio("cpu_of_bare", "bare_cpu_us", "cpu_us")


async def measure_backlog(plan: Plan, figures: Figures) -> None:
    """Measure the cost of a delivery while 20,000 wait, and while a million wait.

    Half of them are due. In `ordered`, due times rise with the ids; in `scattered`, they do not.
    """
    arrivals, many = Arrivals(), plan.size(1_000_000)
    async with serve_receiver(arrivals) as port:
        urls = inbox_urls(port, SUBSCRIBERS)
        for kind in ("ordered", "scattered"):
            path = plan.folder / f"{kind}.db"
            await make_spread_backlog(path, urls, many, is_scattered=kind == "scattered")
        for _ in range(plan.rounds):
            path = plan.folder / "few.db"
            await make_spread_backlog(path, urls, 2 * FEW, is_scattered=False)
            for kind in ("few", "ordered", "scattered"):
                path = plan.folder / f"{kind}.db"
                genhook = await drain(path, arrivals, 1_000, FEW - 1_000)
                wall_us = 1e6 / genhook.per_second
                figures.add(**{f"{kind}_us": wall_us, f"{kind}_cpu_us": genhook.cpu_us})
            figures.ratio("ordered_ratio", "ordered_us", "few_us")
            figures.ratio("scattered_ratio", "scattered_us", "few_us")


async def make_spread_backlog(
    path: Path, urls: list[str], count: int, *, is_scattered: bool
) -> None:
    """Make a backlog with due times from an hour ago to an hour from now.

    FEW rows are inserted with ranks as due times; then rows are copied and ranks become times.
    """
    times = count // FEW
    await make_backlog(path, urls, FEW, lambda index: index * times)
    rank = f"(due_at + {{k}}) * {STEP} % {count}" if is_scattered else "due_at + {k}"
    due_at = f"{now_ms() - HOUR_MS} + ({rank}) * {2 * HOUR_MS} / {count}"
    multiply(path, ("events", "deliveries"), times, {"due_at": due_at.format(k="k")})
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(
            f"UPDATE deliveries SET due_at = {due_at.format(k=0)} WHERE due_at < {count}"
        )
    connection.close()


async def measure_isolation(plan: Plan, figures: Figures) -> None:
    """Measure the throughput of healthy subscribers, without slow ones and with one in ten slow."""
    count = plan.size(20_000) + 10_000
    path = plan.folder / "isolation.db"
    hosts = [f"127.0.0.{number}" for number in range(1, SUBSCRIBERS + 1)]
    slow, fast = hosts[9::10], [host for host in hosts if host not in hosts[9::10]]
    port = find_free_port()
    await make_backlog(path, [f"http://{host}:{port}/inbox" for host in hosts], count, lambda _: 0)
    part = count * len(fast) // len(hosts)
    for _ in range(plan.rounds):
        for name, delay_seconds in (("healthy", 0.0), ("one_in_ten_slow", SLOW_SECONDS)):
            healthy, others = Arrivals(), Arrivals()
            async with (
                serve_protocol(partial(Counting, healthy.counts), fast, port),
                serve_protocol(partial(Counting, others.counts, delay_seconds), slow, port),
            ):
                genhook = await drain(copy_database(path), healthy, 2_000, part - 2_000)
            figures.add(**{f"{name}_per_second": genhook.per_second})
        # In the first run all subscribers share the throughput, but only `fast` was counted.
        figures.rounds["healthy_per_second"][-1] *= len(hosts) / len(fast)
        figures.ratio("ratio", "one_in_ten_slow_per_second", "healthy_per_second")
