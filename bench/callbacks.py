"""Callbacks: verified, deduplicated and committed before the answer; many clients, and one."""

import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import itsdangerous

from bench import baselines, load, world
from bench.machine import LOAD_CORE, SUBJECT_CORE, Running, free_port, python, started, sync_ms
from bench.plan import Figures, Plan

CONNECTIONS = 64
BODY_BYTES = 1_024
JSON = "content-type: application/json\r\n"
FEW = 1_000  # generations that call back again and again: their tokens are in the cache

Subject = Callable[[], "AsyncIterator[tuple[Running, int]]"]


def body(number: int) -> bytes:
    """A callback of one kilobyte, unlike every other."""
    head = (
        b'{"code":200,"message":"success","data":{"task_id":"task_%012d","status":"completed",'
        b'"output":{"image_urls":["https://cdn.example/%d.png"]},"log":"' % (number, number)
    )
    return head + b"x" * (BODY_BYTES - len(head) - 3) + b'"}}'


def sequence(paths: list[str]) -> load.Requests:
    """Requests to each path in turn, each with a body of its own."""
    heads = [load.post(path, JSON, b"x" * BODY_BYTES)[:-BODY_BYTES] for path in paths]
    numbers = count()

    def make() -> bytes:
        number = next(numbers)
        return heads[number % len(heads)] + body(number)

    return make


@asynccontextmanager
async def baseline(name: str, path: Path) -> AsyncIterator[tuple[Running, int]]:
    """A baseline on the subject's core, with a new database."""
    port = free_port()
    path.unlink(missing_ok=True)
    with started(python("-m", "bench.baselines", name, str(port), str(path))) as running:
        await running.answers(port)
        yield running, port


def by_hand_paths(number: int) -> list[str]:
    """Callback URLs of the application that people write by hand."""
    tokens = itsdangerous.URLSafeTimedSerializer(baselines.SECRET_KEY, salt=baselines.SALT)
    return [f"/callbacks/{tokens.dumps(f'gen_{index:032x}')}" for index in range(number)]


def stored(path: Path) -> int:
    """How many callbacks are in a database."""
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute("SELECT count(*) FROM callbacks").fetchone()[0])
    finally:
        connection.close()


async def template(plan: Plan, number: int) -> tuple[Path, list[str]]:
    """A database with many open generations, to be copied, and their callback URLs."""
    path = plan.folder / "template.db"
    async with world.database(path) as opened:
        made = await world.add_generations(opened, number)
    return path, [world.callback_path(one) for one in made]


def fresh(of: Path) -> Path:
    """A copy of a database that nobody has written to."""
    path = of.with_name("measured.db")
    for left in path.parent.glob(f"{path.name}*"):
        left.unlink()
    shutil.copy(of, path)
    return path


async def run(
    figures: Figures, name: str, subject: tuple[Running, int], requests: load.Requests, plan: Plan
) -> int:
    """Load one subject and note its rate, its cost and the generator's own; how many answers."""
    running, port = subject
    sent = count()

    def counted() -> bytes:
        next(sent)
        return requests()

    before, switches = running.cpu_seconds(), running.switches()
    found = await load.closed_loop(
        port, counted, connections=CONNECTIONS, seconds=plan.seconds, warm_seconds=0.7
    )
    found.check()
    total = next(sent)
    figures.add(
        **{
            f"{name}_per_second": found.rate,
            f"{name}_cpu_us": (running.cpu_seconds() - before) / total * 1e6,
            f"{name}_switches": (running.switches() - switches) / total,
            f"{name}_p50_ms": found.quantile_ms(0.5),
            f"{name}_p99_ms": found.quantile_ms(0.99),
            f"{name}_generator_busy": found.cpu_seconds / found.seconds,
        }
    )
    return total


async def measure(plan: Plan, figures: Figures) -> None:
    """64 connections: the ceiling, genhook, and the application that people write by hand.

    genhook runs as `genhook serve` with its worker off, as does the baseline: reception only.
    `first`: each callback is the first one of its generation, so that no token was seen before.
    `again`: a thousand generations that call back again and again.
    """
    of, paths = await template(plan, 24_000 * int(plan.seconds + 2))
    hand_paths = by_hand_paths(FEW)
    for _ in range(plan.rounds):
        async with baseline("ceiling", plan.folder / "none.db") as subject:
            await run(figures, "ceiling", subject, sequence(hand_paths), plan)
        for name, some in (("first", paths), ("again", paths[:FEW])):
            path = fresh(of)
            async with world.served(path, GENHOOK_WORKER="off") as subject:
                total = await run(figures, name, subject, sequence(some), plan)
                note_threads(figures, name, subject[0])
            assert stored(path) == total, "an acknowledged callback is not in the database"
            figures.ratio(f"{name}_of_ceiling", f"{name}_per_second", "ceiling_per_second")
            figures.ratio(f"{name}_cpu_of_ceiling", "ceiling_cpu_us", f"{name}_cpu_us")
        path = plan.folder / "hand.db"
        async with baseline("by-hand", path) as subject:
            total = await run(figures, "by_hand", subject, sequence(hand_paths), plan)
        assert stored(path) == total, "an acknowledged callback is not in the database"
        figures.ratio("times_by_hand", "first_per_second", "by_hand_per_second")


def note_threads(figures: Figures, name: str, running: Running) -> None:
    """Which part of the process's time its event loop took; the rest is the writer's thread."""
    loop = running.main_thread_seconds()
    figures.add(**{f"{name}_loop_share": loop / running.cpu_seconds()})


async def measure_one(plan: Plan, figures: Figures) -> None:
    """One client that waits for each answer: what a lone callback pays for its commit."""
    of, paths = await template(plan, 3_000 * int(plan.seconds + 2))
    for _ in range(plan.rounds):
        async with baseline("ceiling", plan.folder / "none.db") as (_, port):
            bare = await one_client(port, paths, plan.seconds)
        path = fresh(of)
        async with world.served(path, GENHOOK_WORKER="off") as (_, port):
            found = await one_client(port, paths, plan.seconds)
        figures.add(
            sync_ms=sync_ms(plan.folder),
            bare_p50_ms=bare.quantile_ms(0.5),
            p50_ms=found.quantile_ms(0.5),
            p99_ms=found.quantile_ms(0.99),
            p999_ms=found.quantile_ms(0.999),
            per_second=found.rate,
        )


async def one_client(port: int, paths: list[str], seconds: float) -> load.Load:
    """One connection's requests."""
    found = await load.closed_loop(port, sequence(paths), connections=1, seconds=seconds)
    found.check()
    return found


async def measure_generator(plan: Plan, figures: Figures) -> None:
    """The load generator against a server that only counts bytes: its own ceiling."""
    paths = by_hand_paths(1)
    for _ in range(plan.rounds):
        port = free_port()
        with started(python("-m", "bench.receivers", str(port))) as running:
            await running.answers(port)
            found = await load.closed_loop(
                port, sequence(paths), connections=CONNECTIONS, seconds=plan.seconds
            )
        found.check(b"204")
        figures.add(
            per_second=found.rate,
            cpu_us=found.cpu_seconds / found.count * 1e6,
            cores=float(SUBJECT_CORE != LOAD_CORE) + 1,
        )
