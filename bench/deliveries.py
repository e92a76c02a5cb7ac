"""Deliveries that leave the real process: signed, sent, recorded; backlogs; slow subscribers."""

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
from bench.callbacks import fresh
from bench.history import multiply
from bench.machine import free_port
from bench.plan import Figures, Plan
from bench.receivers import Counting, receiving
from service.model.clock import now_ms

SUBSCRIBERS = 20
SLOW_SECONDS = 2.0
TIMEOUT_SECONDS = 60.0
HOUR_MS = 3_600_000
FEW = 10_000
STEP = 618_033  # coprime with every count that is used: ranks times this are a permutation


class Watch:
    """How many deliveries have come, and when certain numbers were reached."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """Deliveries that were answered."""
        return sum(self.counts.values())

    async def reaches(self, number: int) -> float:
        """The moment by which `number` have come; AssertionError if they do not come in time."""
        ends_at = time.perf_counter() + TIMEOUT_SECONDS
        while self.total < number:
            assert time.perf_counter() < ends_at, f"only {self.total} of {number} came"
            await asyncio.sleep(0.002)
        return time.perf_counter()


def recorded(path: Path) -> int:
    """How many deliveries are stored as delivered, each with an attempt."""
    connection = sqlite3.connect(path)
    try:
        statement = (
            "SELECT count(*) FROM deliveries d JOIN attempts a ON a.delivery_id = d.id "
            "WHERE d.status = 'delivered' AND a.status_code = 204"
        )
        return int(connection.execute(statement).fetchone()[0])
    finally:
        connection.close()


async def backlog(
    path: Path, urls: list[str], count: int, due_at: Callable[[int], int], **fields: object
) -> None:
    """A new database with `count` pending deliveries for subscribers at `urls`."""
    for left in path.parent.glob(f"{path.name}*"):
        left.unlink()
    async with world.database(path) as opened:
        ids = await world.add_subscribers(opened, urls, **fields)
        await world.add_backlog(opened, ids, count, due_at)


@asynccontextmanager
async def receiver(watch: Watch) -> AsyncIterator[int]:
    """A receiver on this side that counts; its port."""
    async with receiving(lambda: Counting(watch.counts)) as port:
        yield port


def inboxes(port: int, count: int) -> list[str]:
    """URLs of as many subscribers, all of one receiver."""
    return [f"http://127.0.0.1:{port}/inbox/{index:04d}" for index in range(count)]


@dataclass(frozen=True)
class Drained:
    """Deliveries a second, and what each cost the whole process, its database's thread included."""

    per_second: float
    cpu_us: float
    loop_us: float
    switches: float


async def drained(path: Path, watch: Watch, first: int, last: int) -> Drained:
    """Serve the database until `last` deliveries have come, counted from the `first`."""
    watch.counts.clear()
    async with world.served(path) as (running, _):
        began = await watch.reaches(first)
        before = (running.cpu_seconds(), running.main_thread_seconds(), running.switches())
        came = watch.total
        ended = await watch.reaches(last)
        after = (running.cpu_seconds(), running.main_thread_seconds(), running.switches())
        done = watch.total - came
        cpu, loop, switches = ((b - a) / done for a, b in zip(before, after, strict=True))
        return Drained(done / (ended - began), cpu * 1e6, loop * 1e6, switches)


async def measure(plan: Plan, figures: Figures) -> None:
    """A backlog that is drained by `genhook serve`, 20 subscribers with 10 in flight each.

    Beside it, the bare protocol of `sender` against the same receiver.
    """
    count = plan.size(20_000) + 10_000
    watch, path = Watch(), plan.folder / "deliveries.db"
    async with receiver(watch) as port:
        for _ in range(plan.rounds):
            bare = await outgoing.client("bare", port, plan.seconds)
            await backlog(path, inboxes(port, SUBSCRIBERS), count, lambda _: now_ms())
            found = await drained(path, watch, 2_000, count)
            assert recorded(path) == count, "a delivery that was answered is not recorded"
            figures.add(
                per_second=found.per_second,
                cpu_us=found.cpu_us,
                loop_cpu_us=found.loop_us,
                switches=found.switches,
                bare_per_second=bare["per_second"],
                bare_cpu_us=bare["cpu_us"],
            )
            figures.ratio("of_bare", "per_second", "bare_per_second")
            figures.ratio("cpu_of_bare", "bare_cpu_us", "cpu_us")


async def measure_backlog(plan: Plan, figures: Figures) -> None:
    """What a delivery costs with 20,000 waiting and with a million, in and out of order.

    Half of what waits is due; where it is scattered, due times have nothing to do with ids.
    """
    watch, many = Watch(), plan.size(1_000_000)
    async with receiver(watch) as port:
        urls = inboxes(port, SUBSCRIBERS)
        for kind in ("ordered", "scattered"):
            await spread(plan.folder / f"{kind}.db", urls, many, is_scattered=kind == "scattered")
        for _ in range(plan.rounds):
            await spread(plan.folder / "few.db", urls, 2 * FEW, is_scattered=False)
            for kind in ("few", "ordered", "scattered"):
                path = plan.folder / f"{kind}.db"
                found = await drained(path, watch, 1_000, FEW - 1_000)
                wall_us = 1e6 / found.per_second
                figures.add(**{f"{kind}_us": wall_us, f"{kind}_cpu_us": found.cpu_us})
            figures.ratio("ordered_ratio", "ordered_us", "few_us")
            figures.ratio("scattered_ratio", "scattered_us", "few_us")


async def spread(path: Path, urls: list[str], count: int, *, is_scattered: bool) -> None:
    """A backlog with due times from an hour ago to in an hour, in the order of the ids or in none.

    Made of few rows and copies of them: first their due times are ranks, then times.
    """
    times = count // FEW
    await backlog(path, urls, FEW, lambda index: index * times)
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
    """One subscriber in ten answers after two seconds: how the others fare, and without it."""
    count = plan.size(20_000) + 10_000
    path = plan.folder / "isolation.db"
    hosts = [f"127.0.0.{number}" for number in range(1, SUBSCRIBERS + 1)]
    slow, fast = hosts[9::10], [host for host in hosts if host not in hosts[9::10]]
    port = free_port()
    await backlog(path, [f"http://{host}:{port}/inbox" for host in hosts], count, lambda _: 0)
    part = count * len(fast) // len(hosts)
    for _ in range(plan.rounds):
        for name, waiting in (("healthy", 0.0), ("one_in_ten_slow", SLOW_SECONDS)):
            healthy, others = Watch(), Watch()
            async with (
                receiving(partial(Counting, healthy.counts), fast, port),
                receiving(partial(Counting, others.counts, waiting), slow, port),
            ):
                found = await drained(fresh(path), healthy, 2_000, part - 2_000)
            figures.add(**{f"{name}_per_second": found.per_second})
        # Healthy alone is of all: those that are slow in the second run take their share.
        figures.rounds["healthy_per_second"][-1] *= len(hosts) / len(fast)
        figures.ratio("ratio", "one_in_ten_slow_per_second", "healthy_per_second")
