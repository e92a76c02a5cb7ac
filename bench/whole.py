"""Whole events: a callback that is believed, its outcome, one delivery, and the record of it."""

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import callbacks, deliveries, load, world
from bench.machine import CORES, Running, find_free_port, start_process
from bench.plan import Figures, Plan
from bench.postgres import Server, new_database, serve_postgres
from service.model.generation import Generation

MAX_IN_FLIGHT = 100
PER_SECOND = 2_500  # More events than any run stores in a second.
WARM = 500  # Events before the measurement, which have met every statement.
BELIEVED = {"GENHOOK_CALLBACK_TRUST": "body"}
WEB = {**BELIEVED, "GENHOOK_WORKER": "off", "GENHOOK_DRIVE_SECONDS": "0"}
_RECORDED = "SELECT count(*) FROM attempts"


@dataclass
class Place:
    """A database with open generations and one subscriber, and how to look into it."""

    address: Path | str  # A path, or the URL of a schema.
    generations: list[Generation]
    server: Server | None = None
    schema: str = ""
    sent: int = 0  # So many of the generations had their callback.

    async def value(self, sql: str) -> Any:
        """Return the only value of a statement."""
        if self.server is not None:
            return await self.server.value(sql, self.schema)
        with contextlib.closing(sqlite3.connect(self.address)) as connection:
            return connection.execute(sql).fetchone()[0]

    async def size_bytes(self) -> int:
        """Return the bytes of all tables and indexes, without the log."""
        if self.server is None:
            return Path(self.address).stat().st_size
        sizes = (
            "SELECT sum(pg_total_relation_size(oid)) FROM pg_class"
            f" WHERE relnamespace = '{self.schema}'::regnamespace AND relkind = 'r'"
        )
        return int(await self.value(sizes))

    def take(self, count: int) -> list[tuple[Generation, bytes]]:
        """Return so many generations, each with its callback; none is returned again."""
        first, self.sent = self.sent, self.sent + count
        taken = self.generations[first : self.sent]
        assert len(taken) == count, "there are too few generations"
        return [(each, _request(each)) for each in taken]


def _request(generation: Generation) -> bytes:
    """Return the callback that ends a generation: it names its task."""
    number = int((generation.task_id or "").rpartition("_")[2])
    path = world.callback_path(generation)
    return load.build_post(path, callbacks.JSON, callbacks.build_body(number))


async def _fill(database: Any, receiver_port: int, count: int) -> list[Generation]:
    generations = await world.add_generations(database, count)
    urls = deliveries.inbox_urls(receiver_port, 1)
    await world.add_subscribers(database, urls, max_in_flight=MAX_IN_FLIGHT)
    return generations


async def new_file(path: Path, receiver_port: int, count: int) -> Place:
    """Make a file of SQLite with so many open generations."""
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    async with world.open_database(path) as database:
        return Place(path, await _fill(database, receiver_port, count))


async def new_schema(server: Server, schema: str, receiver_port: int, count: int) -> Place:
    """Make a schema of PostgreSQL with so many open generations."""
    async with new_database(server, schema) as database:
        generations = await _fill(database, receiver_port, count)
    await server.execute("ANALYZE; CHECKPOINT")
    return Place(server.url(schema), generations, server, schema)


@dataclass(frozen=True)
class Run:
    """Events until all were recorded: how many a second, their CPU, and the longest answer."""

    count: int
    seconds: float
    cpu_us: float  # Of the service's processes and of the database's.
    server_cpu_us: float
    longest_ms: float

    @property
    def per_second(self) -> float:
        """Events per second, from the first callback to the last record."""
        return self.count / self.seconds


async def run(place: Place, ports: Sequence[int], running: Sequence[Running], count: int) -> Run:
    """Send callbacks over 64 connections, in turn to each port, and wait for all records."""
    server = place.server.cpu_seconds if place.server else lambda: 0.0
    recorded = await place.value(_RECORDED)
    cpu_seconds, server_seconds = sum(r.cpu_seconds() for r in running), server()
    began = time.perf_counter()
    parts = [[request for _, request in place.take(count // len(ports))] for _ in ports]
    answers = await asyncio.gather(
        *(send_all(port, part, 64 // len(ports)) for port, part in zip(ports, parts, strict=True))
    )
    total = sum(map(len, parts))
    while await place.value(_RECORDED) < recorded + total:
        assert time.perf_counter() - began < 120, "not every delivery was recorded"
        await asyncio.sleep(0.02)
    seconds = time.perf_counter() - began
    server_seconds = server() - server_seconds
    cpu_seconds = sum(r.cpu_seconds() for r in running) - cpu_seconds + server_seconds
    return Run(
        total,
        seconds,
        cpu_seconds / total * 1e6,
        server_seconds / total * 1e6,
        max(each.quantile_ms(1.0) for each in answers),
    )


async def send_all(port: int, requests: Sequence[bytes], connections: int) -> load.Load:
    """Send each request once, one at a time over each connection."""
    answers = load.Load()
    loop = asyncio.get_running_loop()
    left = iter(requests)

    async def send() -> None:
        transport, client = await loop.create_connection(load.Client, "127.0.0.1", port)
        for request in left:
            status, seconds = await client.request(request)
            answers.statuses[status] += 1
            answers.latencies.append(seconds)
        transport.abort()

    await asyncio.gather(*(send() for _ in range(connections)))
    answers.check()
    return answers


async def measure(plan: Plan, figures: Figures) -> None:
    """Measure the CPU of an event with one process, on SQLite and on PostgreSQL in turn.

    The server's processes count. What an event adds to the tables is measured as well.
    """
    count = int(PER_SECOND * plan.seconds / 2)
    arrivals = deliveries.Arrivals()
    with serve_postgres(plan.folder) as server:
        async with deliveries.serve_receiver(arrivals) as port:
            for _ in range(plan.rounds):
                places = {
                    "sqlite": await new_file(plan.folder / "whole.db", port, count + WARM),
                    "postgres": await new_schema(server, "whole", port, count + WARM),
                }
                for name, place in places.items():
                    async with world.serve(place.address, **BELIEVED) as (running, own_port):
                        before = await place.size_bytes()
                        await run(place, [own_port], [running], WARM)
                        result = await run(place, [own_port], [running], count)
                    # Of a file, once its log is in it.
                    size = await place.size_bytes() - before
                    figures.add(
                        **{
                            f"{name}_per_second": result.per_second,
                            f"{name}_cpu_us": result.cpu_us,
                            f"{name}_server_cpu_us": result.server_cpu_us,
                            f"{name}_bytes": size / (count + WARM),
                        }
                    )
                figures.ratio("postgres_cpu_of_sqlite", "postgres_cpu_us", "sqlite_cpu_us")


@contextlib.contextmanager
def all_cores() -> Iterator[None]:
    """Let this process use every core; so do those that `freed` starts meanwhile."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, CORES)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.asynccontextmanager
async def freed(
    command: Sequence[str], place: Place, **variables: str
) -> AsyncIterator[tuple[Running, int]]:
    """Run a process of the service that may use every core; yields it and its port."""
    port = find_free_port()
    environment = world.environment(place.address, port, **variables)
    environment["GENHOOK_WORK_PORT"] = str(port)  # Of `genhook work`; `serve` has its own.
    with start_process(command, environment) as running:
        for task in Path(f"/proc/{running.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), CORES)
        await running.wait_for_port(port)
        yield running, port


async def measure_two(plan: Plan, figures: Figures) -> None:
    """Measure one file of SQLite with one process, and with one that serves and one that works.

    Every process may use every core, the load and the receiver too.
    """
    count = int(PER_SECOND * plan.seconds / 2)
    arrivals, path = deliveries.Arrivals(), plan.folder / "two.db"
    with all_cores():
        async with deliveries.serve_receiver(arrivals) as receiver_port:
            for _ in range(plan.rounds):
                place = await new_file(path, receiver_port, count + WARM)
                async with freed(world.SERVE, place, **BELIEVED) as (one, port):
                    await run(place, [port], [one], WARM)
                    alone = await run(place, [port], [one], count)
                place = await new_file(path, receiver_port, count + WARM)
                async with (
                    freed(world.SERVE, place, **WEB) as (web, port),
                    freed(world.WORK, place, **BELIEVED) as (work, _),
                ):
                    await run(place, [port], [web, work], WARM)
                    both = await run(place, [port], [web, work], count)
                figures.add(
                    one_per_second=alone.per_second,
                    two_per_second=both.per_second,
                    one_cpu_us=alone.cpu_us,
                    two_cpu_us=both.cpu_us,
                    one_longest_ms=alone.longest_ms,
                    longest_ms=both.longest_ms,
                )
                figures.ratio("of_one", "two_per_second", "one_per_second")
