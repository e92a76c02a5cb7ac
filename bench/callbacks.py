"""Callbacks, verified and committed before their answer: from many clients, and from one."""

import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import itsdangerous

from bench import baselines, load, world
from bench.machine import (
    LOAD_CORE,
    SUBJECT_CORE,
    Running,
    find_free_port,
    measure_sync_ms,
    python_command,
    start_process,
)
from bench.plan import Figures, Plan

CONNECTIONS = 64
BODY_BYTES = 1_024
JSON = "content-type: application/json\r\n"
CACHED = 1_000  # Generations in the run with cached tokens: fewer than the cache holds.

Subject = tuple[Running, int]  # A process, and the port that it listens on.


def build_body(number: int) -> bytes:
    """Return a callback of one kilobyte; every number gives another body."""
    head = (
        b'{"code":200,"message":"success","data":{"task_id":"task_%012d","status":"completed",'
        b'"output":{"image_urls":["https://cdn.example/%012d.png"]},"log":"' % (number, number)
    )
    return head + b"x" * (BODY_BYTES - len(head) - 3) + b'"}}'


def cycle_requests(paths: list[str]) -> load.NextRequest:
    """Return a function that builds a request to each path in turn, each with another body."""
    heads = [load.build_post(path, JSON, b"x" * BODY_BYTES)[:-BODY_BYTES] for path in paths]
    numbers = count()

    def next_request() -> bytes:
        number = next(numbers)
        return heads[number % len(heads)] + build_body(number)

    return next_request


@asynccontextmanager
async def serve_baseline(name: str, database: Path | str) -> AsyncIterator[Subject]:
    """Serve a baseline on the subject's core, with a new file or with a URL as its database."""
    port = find_free_port()
    if isinstance(database, Path):
        database.unlink(missing_ok=True)
    command = python_command("-m", "bench.baselines", name, str(port), str(database))
    with start_process(command) as running:
        await running.wait_for_port(port)
        yield running, port


def sign_baseline_paths(number: int) -> list[str]:
    """Return callback paths of the hand-written handler."""
    tokens = itsdangerous.URLSafeTimedSerializer(baselines.SECRET_KEY, salt=baselines.SALT)
    return [f"/callbacks/{tokens.dumps(f'gen_{index:032x}')}" for index in range(number)]


def count_callbacks(path: Path) -> int:
    """Return the number of callbacks in a database."""
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute("SELECT count(*) FROM callbacks").fetchone()[0])
    finally:
        connection.close()


async def make_template(plan: Plan, number: int) -> tuple[Path, list[str]]:
    """Make a database with open generations, to be copied; return it and their callback paths."""
    path = plan.folder / "template.db"
    async with world.open_database(path) as database:
        generations = await world.add_generations(database, number)
    return path, [world.callback_path(generation) for generation in generations]


def copy_database(source: Path) -> Path:
    """Copy a database next to itself, replacing an earlier copy."""
    path = source.with_name("measured.db")
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    shutil.copy(source, path)
    return path


async def load_subject(
    figures: Figures, name: str, subject: Subject, next_request: load.NextRequest, plan: Plan
) -> int:
    """Load a subject, add its rate and costs to the figures, and return the number of answers."""
    running, port = subject
    numbers = count()

    def counted_request() -> bytes:
        next(numbers)
        return next_request()

    cpu_seconds, switches = running.cpu_seconds(), running.switches()
    answers = await load.run_closed_loop(
        port, counted_request, connections=CONNECTIONS, seconds=plan.seconds, warm_seconds=0.7
    )
    answers.check()
    total = next(numbers)
    figures.add(
        **{
            f"{name}_per_second": answers.rate,
            f"{name}_cpu_us": (running.cpu_seconds() - cpu_seconds) / total * 1e6,
            f"{name}_switches": (running.switches() - switches) / total,
            f"{name}_p50_ms": answers.quantile_ms(0.5),
            f"{name}_p99_ms": answers.quantile_ms(0.99),
            f"{name}_generator_busy": answers.cpu_seconds / answers.seconds,
        }
    )
    return total


async def measure(plan: Plan, figures: Figures) -> None:
    """Measure 64 connections: bare server, genhook, and the hand-written handler.

    genhook runs as `genhook serve` with its worker off; the handler has no worker either. In
    `first`, each callback is the first of its generation: no token is in the cache. In `again`, a
    thousand generations call back repeatedly.
    """
    template, paths = await make_template(plan, 24_000 * int(plan.seconds + 2))
    baseline_paths = sign_baseline_paths(CACHED)
    for _ in range(plan.rounds):
        async with serve_baseline("ceiling", plan.folder / "none.db") as subject:
            await load_subject(figures, "ceiling", subject, cycle_requests(baseline_paths), plan)
        for name, some in (("first", paths), ("again", paths[:CACHED])):
            path = copy_database(template)
            async with world.serve(
                path, GENHOOK_WORKER="off", GENHOOK_DRIVE_SECONDS="0"
            ) as subject:
                total = await load_subject(figures, name, subject, cycle_requests(some), plan)
                add_loop_share(figures, name, subject[0])
            assert count_callbacks(path) == total, "an acknowledged callback is not stored"
            figures.ratio(f"{name}_of_ceiling", f"{name}_per_second", "ceiling_per_second")
            figures.ratio(f"{name}_cpu_of_ceiling", "ceiling_cpu_us", f"{name}_cpu_us")
        path = plan.folder / "hand.db"
        async with serve_baseline("by-hand", path) as subject:
            requests = cycle_requests(baseline_paths)
            total = await load_subject(figures, "by_hand", subject, requests, plan)
        assert count_callbacks(path) == total, "an acknowledged callback is not stored"
        figures.ratio("times_by_hand", "first_per_second", "by_hand_per_second")


def add_loop_share(figures: Figures, name: str, running: Running) -> None:
    """Add the event loop's share of the process's CPU time; the rest is the writer's thread."""
    figures.add(**{f"{name}_loop_share": running.main_thread_seconds() / running.cpu_seconds()})


async def measure_one(plan: Plan, figures: Figures) -> None:
    """Measure one client that waits for each answer, and so pays for a whole commit each time."""
    template, paths = await make_template(plan, 3_000 * int(plan.seconds + 2))
    for _ in range(plan.rounds):
        async with serve_baseline("ceiling", plan.folder / "none.db") as (_, port):
            bare = await load_one_client(port, paths, plan.seconds)
        path = copy_database(template)
        async with world.serve(path, GENHOOK_WORKER="off", GENHOOK_DRIVE_SECONDS="0") as (_, port):
            answers = await load_one_client(port, paths, plan.seconds)
        figures.add(
            sync_ms=measure_sync_ms(plan.folder),
            bare_p50_ms=bare.quantile_ms(0.5),
            p50_ms=answers.quantile_ms(0.5),
            p99_ms=answers.quantile_ms(0.99),
            p999_ms=answers.quantile_ms(0.999),
            per_second=answers.rate,
        )


async def load_one_client(port: int, paths: list[str], seconds: float) -> load.Load:
    """Send requests over one connection."""
    answers = await load.run_closed_loop(
        port, cycle_requests(paths), connections=1, seconds=seconds
    )
    answers.check()
    return answers


async def measure_generator(plan: Plan, figures: Figures) -> None:
    """Measure the load generator against a server that only counts bytes."""
    paths = sign_baseline_paths(1)
    for _ in range(plan.rounds):
        port = find_free_port()
        with start_process(python_command("-m", "bench.receivers", str(port))) as running:
            await running.wait_for_port(port)
            answers = await load.run_closed_loop(
                port, cycle_requests(paths), connections=CONNECTIONS, seconds=plan.seconds
            )
        answers.check(b"204")
        figures.add(
            per_second=answers.rate,
            cpu_us=answers.cpu_seconds / answers.count * 1e6,
            cores=float(SUBJECT_CORE != LOAD_CORE) + 1,
        )
