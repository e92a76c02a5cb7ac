"""A world: a genhook process on its own files, with upstream, subscribers and clients."""

import asyncio
import itertools
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from bench import world as bench_world
from bench.machine import ROOT, SAME_PATH, python_command
from bench.world import ADMIN_KEY, environment
from chaos import wire
from chaos.provider import Provider
from chaos.webhooks import Subscribers

# No promise is about these: what is slow is waited for, what never comes is broken all the same.
LISTEN_SECONDS = 60
END_SECONDS = 40
TICK_SECONDS = 0.02
SERVE = bench_world.SERVE
SUBJECT = python_command("-m", "chaos.subject")
MIGRATED = "SELECT number FROM schema_version WHERE number > 0"
SETTINGS = {
    "GENHOOK_DEADLINE_SECONDS": "8",
    "GENHOOK_SAFETY_POLL_SECONDS": "1",
    "GENHOOK_UPSTREAM_TIMEOUT_SECONDS": "3",
    "GENHOOK_ATTEMPT_TIMEOUT_SECONDS": "3",
    "GENHOOK_POLL_RATE_PER_SECOND": "200",
    "GENHOOK_SHUTDOWN_SECONDS": "20",  # A stop that takes longer is forced, and has status 1.
}

# Each run has its own address, so that no other run takes the port of a service that is restarted.
HOST = f"127.{1 + os.getpid() // 256 % 254}.{os.getpid() % 256}.1"
PORTS = itertools.cycle(range(20_000, 31_000))


def find_port(host: str = HOST) -> int:
    """Return a free port below the range from which the kernel assigns ports."""
    for port in PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind((host, port))
            return port
    raise AssertionError("no port is free")


class World:
    """Everything that a try needs; `open_world` makes it."""

    def __init__(self, folder: Path, seed: str, trust: str, provider: Provider | None) -> None:
        self.folder = folder
        self.seed = seed
        self.rng = random.Random(seed)
        self.path = folder.resolve() / "genhook.db"
        self.reached = folder / "reached"
        self.port = find_port()
        self.settings = {**SETTINGS, "GENHOOK_CALLBACK_TRUST": trust}
        self.process: subprocess.Popen[bytes] | None = None
        self.provider = provider or Provider(random.Random(f"{seed} provider"))
        self.subscribers = Subscribers(random.Random(f"{seed} subscribers"))
        self.subscriber_url = ""
        self.receiver = wire.Server(0, set())  # Which serves `subscribers`.
        self.accepted: dict[str, str] = {}  # Id by prompt, of what was answered with 202.
        self.answered: dict[str, int] = {}  # The last status code by prompt.
        self.wrong_answers: list[str] = []  # Answers that no client should get.
        self.restarts = 0
        self.server_url = ""  # Of a PostgreSQL schema, if that is the service's database.
        self.output: int | None = None  # Where the service logs to, instead of to the file.
        self._tasks: list[asyncio.Task[None]] = []
        self.api = httpx.AsyncClient(
            base_url=f"http://{HOST}:{self.port}",
            headers={"authorization": f"Bearer {ADMIN_KEY}"},
            trust_env=False,
            timeout=8,
        )

    def environment(self) -> dict[str, str]:
        """Return this environment without its own settings, and the service's settings."""
        own = ("PORT", "GENHOOK_", "CHAOS_", "LD_PRELOAD")
        plain = {name: v for name, v in os.environ.items() if not name.startswith(own)}
        own_address = {"GENHOOK_HOST": HOST, "GENHOOK_PUBLIC_URL": f"http://{HOST}:{self.port}"}
        if self.server_url:
            own_address["GENHOOK_DATABASE_URL"] = self.server_url
        settings = environment(self.path, self.port, **own_address, **self.settings)
        return {**plain, **SAME_PATH, **settings, "PYTHONFAULTHANDLER": "1"}

    def run_beside(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run a coroutine in a task that is cancelled with the world."""
        task = asyncio.create_task(work)
        self._tasks.append(task)
        return task

    async def close(self) -> None:
        """Kill the service and cancel every task."""
        if self.is_alive:
            self.kill()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.provider.close()
        await self.api.aclose()

    def spawn(self, command: Sequence[str] = SERVE, **extra: str) -> None:
        """Start the service without waiting for it."""
        with (self.folder / "log").open("ab") as log:
            output = log if self.output is None else self.output
            environment = {**self.environment(), **extra}
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=output
            )
        self.restarts += 1

    async def start(self, command: Sequence[str] = SERVE, **extra: str) -> None:
        """Start the service and wait until it answers; AssertionError if it does not."""
        self.spawn(command, **extra)
        assert await self.wait_for_answer(), f"the service did not start: {self.log_end()}"

    async def wait_for_answer(self, seconds: float = LISTEN_SECONDS) -> bool:
        """Wait until the service is healthy; return False if it ended or time is up."""
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at and self.is_alive:
            with suppress(httpx.TransportError):
                if (await self.api.get("/healthz")).status_code == 200:
                    return True
            await asyncio.sleep(TICK_SECONDS)
        return False

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def log_end(self) -> str:
        """Return the end of the service's log."""
        return (self.folder / "log").read_text("utf-8", "replace")[-600:]

    def kill(self) -> None:
        """Kill the service as `kill -9` does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    async def abort(self) -> None:
        """End a running service by SIGABRT, so that its log shows the stack of every thread."""
        if self.is_alive:
            assert self.process is not None
            self.process.send_signal(signal.SIGABRT)
            await self.wait_for_exit(5)

    async def drain_connections(self) -> None:
        """Wait until subscribers have read what a dead service sent, then begin a new phase."""
        await self.receiver.drain(END_SECONDS)
        self.subscribers.phase += 1

    async def wait_for_exit(self, seconds: float = END_SECONDS) -> int | None:
        """Wait for the end of the process; return its status, or None if it still runs."""
        assert self.process is not None
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            if (status := self.process.poll()) is not None:
                return status
            await asyncio.sleep(TICK_SECONDS)
        return None

    async def stop(self) -> int | None:
        """Stop the service by SIGTERM; return its status, or None if it had to be killed."""
        if not self.is_alive:
            return self.process.returncode if self.process else None
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        status = await self.wait_for_exit()
        if status is None:
            self.kill()
        return status

    def rows(self, sql: str, path: Path | None = None) -> list[dict[str, Any]]:
        """Read rows beside a running service, or from a copy of a dead service's files.

        A service that died before its first migration has left no tables and so no rows.
        """
        if path is None and self.server_url and not self.path.exists():
            return ask(self.server_url, sql)
        with closing(sqlite3.connect(path or self.path, timeout=10)) as file:
            file.row_factory = sqlite3.Row
            tables = file.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
            if not tables and not sql.startswith("PRAGMA"):
                return []
            return [dict(row) for row in file.execute(sql)]

    def execute(self, sql: str) -> None:
        """Execute SQL while the service does not run; nothing happens if it left no tables."""
        if self.server_url:
            ask(self.server_url, sql)
            return
        with closing(sqlite3.connect(self.path)) as file, suppress(sqlite3.OperationalError), file:
            file.execute(sql)

    def copy(self, name: str) -> Path:
        """Copy the files of a dead service, because opening them would change them."""
        folder = self.folder / name
        folder.mkdir()
        if self.server_url:
            problem = self.collect(folder / self.path.name)
            # It may have died before its first migration.
            assert not problem or not ask(self.server_url, MIGRATED), problem
            return folder / self.path.name
        for suffix in ("", "-wal"):
            source = Path(f"{self.path}{suffix}")
            if source.exists():
                shutil.copyfile(source, folder / source.name)
        return folder / self.path.name

    def collect(self, path: Path | None = None) -> str:
        """Bring the rows of a server into a file, by default the world's own, which is read then.

        Return what went wrong, or an empty text. The server may notice late that a process is dead:
        until then its worker counts as one that uses the database, and its last commit may come.
        """
        line = ["--from", self.server_url, "--to", f"sqlite:///{path or self.path}"]
        ends_at = time.monotonic() + END_SECONDS
        while True:
            copied = subprocess.run(
                [SERVE[0], "copy", *line], env=self.environment(), capture_output=True, check=False
            )
            if not copied.returncode:
                return ""
            if time.monotonic() >= ends_at or not ask(self.server_url, MIGRATED):
                return (copied.stdout + copied.stderr).decode()


def ask(url: str, sql: str) -> list[dict[str, Any]]:
    """Return rows of a PostgreSQL server, in a thread: the caller's own loop is running."""

    async def fetch() -> list[dict[str, Any]]:
        connection = await asyncpg.connect(url)
        try:
            return [dict(row) for row in await connection.fetch(sql)]
        except asyncpg.UndefinedTableError:  # It died before its first migration.
            return []
        finally:
            await connection.close()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, fetch()).result()


@asynccontextmanager
async def open_world(
    folder: Path, seed: str, trust: str = "confirm", provider: Provider | None = None
) -> AsyncIterator[World]:
    """Open a world with upstream and subscribers; the service is not started yet."""
    folder.mkdir(parents=True)
    world = World(folder, seed, trust, provider)
    try:
        async with (
            wire.serve(world.provider) as upstream,
            wire.serve(world.subscribers) as subscribers,
        ):
            world.settings["GENHOOK_UPSTREAM_URL"] = f"http://{wire.HOST}:{upstream.port}/api/v1"
            world.receiver = subscribers
            world.subscriber_url = f"http://{wire.HOST}:{subscribers.port}"
            try:
                yield world
            except BaseException:
                await world.abort()
                raise
    finally:
        await world.close()
