"""One world: a genhook process on files of its own, with upstream, subscribers and clients."""

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
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import httpx

from bench import world as measured
from bench.machine import ROOT, SAME_PATH, python_command
from bench.world import ADMIN_KEY, environment
from chaos import wire
from chaos.audience import Audience
from chaos.provider import Provider

LISTEN_SECONDS = 30
END_SECONDS = 30
TICK_SECONDS = 0.02
SERVE = measured.SERVE
SUBJECT = python_command("-m", "chaos.subject")
SETTINGS = {
    "GENHOOK_DEADLINE_SECONDS": "8",
    "GENHOOK_SAFETY_POLL_SECONDS": "1",
    "GENHOOK_UPSTREAM_TIMEOUT_SECONDS": "3",
    "GENHOOK_ATTEMPT_TIMEOUT_SECONDS": "3",
    "GENHOOK_POLL_RATE_PER_SECOND": "200",
    "GENHOOK_SHUTDOWN_SECONDS": "5",
}

# An address that no other run of this has: a service that is dead just now still owns its port.
HOST = f"127.{1 + os.getpid() // 256 % 254}.{os.getpid() % 256}.1"
PORTS = itertools.cycle(range(20_000, 31_000))


def own_port() -> int:
    """A free port that the kernel gives nobody else between two starts of a service."""
    for port in PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise AssertionError("no port is free")


class World:
    """What a try has: made by `opened`."""

    def __init__(self, folder: Path, seed: str, trust: str, provider: Provider | None) -> None:
        self.folder = folder
        self.seed = seed
        self.lots = random.Random(seed)
        self.path = folder.resolve() / "genhook.db"
        self.reached = folder / "reached"
        self.port = own_port()
        self.settings = {**SETTINGS, "GENHOOK_CALLBACK_TRUST": trust}
        self.process: subprocess.Popen[bytes] | None = None
        self.provider = provider or Provider(random.Random(f"{seed} provider"))
        self.audience = Audience(random.Random(f"{seed} audience"))
        self.hooks = ""
        self.connections: set[asyncio.Task[Any]] = set()
        self.accepted: dict[str, str] = {}  # Prompt to id, as far as clients were told.
        self.answered: dict[str, int] = {}  # Prompt to the last status of its submission.
        self.strange: list[str] = []  # What no client should be told.
        self.restarts = 0
        self._beside: list[asyncio.Task[None]] = []
        self.api = httpx.AsyncClient(
            base_url=f"http://{HOST}:{self.port}",
            headers={"authorization": f"Bearer {ADMIN_KEY}"},
            trust_env=False,
            timeout=8,
        )

    def environment(self) -> dict[str, str]:
        """The service's settings, and nothing of the surroundings that looks like one."""
        own = ("PORT", "GENHOOK_", "CHAOS_", "LD_PRELOAD")
        plain = {name: v for name, v in os.environ.items() if not name.startswith(own)}
        own_address = {"GENHOOK_HOST": HOST, "GENHOOK_PUBLIC_URL": f"http://{HOST}:{self.port}"}
        given = environment(self.path, self.port, **own_address, **self.settings)
        return {**plain, **SAME_PATH, **given, "PYTHONFAULTHANDLER": "1"}

    def at_once(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run something beside everything else, no longer than this world lasts."""
        task = asyncio.create_task(work)
        self._beside.append(task)
        return task

    async def close(self) -> None:
        """End whatever still runs."""
        if self.is_alive:
            self.kill()
        for task in self._beside:
            task.cancel()
        await asyncio.gather(*self._beside, return_exceptions=True)
        await self.provider.close()
        await self.api.aclose()

    def spawn(self, command: Sequence[str] = SERVE, **extra: str) -> None:
        """Start a service; it may die before it listens."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env={**self.environment(), **extra}, stdout=log, stderr=log
            )
        self.restarts += 1

    async def start(self, command: Sequence[str] = SERVE, **extra: str) -> None:
        """Start a service and wait until it answers; AssertionError if it does not."""
        self.spawn(command, **extra)
        assert await self.answers(), f"the service did not start: {self.last_words()}"

    async def answers(self, seconds: float = LISTEN_SECONDS) -> bool:
        """Wait for the service; False if it ended or time is up."""
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at and self.is_alive:
            with suppress(httpx.TransportError):
                if (await self.api.get("/healthz")).status_code == 200:
                    return True
            await asyncio.sleep(TICK_SECONDS)
        return False

    @property
    def is_alive(self) -> bool:
        """True while the process runs."""
        return self.process is not None and self.process.poll() is None

    def last_words(self) -> str:
        """The end of the log."""
        return (self.folder / "log").read_text("utf-8", "replace")[-600:]

    def kill(self) -> None:
        """`kill -9`, by its id."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    async def abort(self) -> None:
        """Have a service that still runs say in its log what every thread does, and end it."""
        if self.is_alive:
            assert self.process is not None
            self.process.send_signal(signal.SIGABRT)
            await self.ended(5)

    async def buried(self) -> None:
        """Wait until subscribers have read what a dead service had sent; a new phase begins."""
        await asyncio.sleep(5 * TICK_SECONDS)
        if self.connections:
            await asyncio.wait(list(self.connections), timeout=END_SECONDS)
        self.audience.phase += 1

    async def ended(self, seconds: float = END_SECONDS) -> int | None:
        """Wait for the process's end: its status, or None if it still runs."""
        assert self.process is not None
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            if (status := self.process.poll()) is not None:
                return status
            await asyncio.sleep(TICK_SECONDS)
        return None

    async def stop(self) -> int | None:
        """End it politely; its status, or None if it had to be killed."""
        if not self.is_alive:
            return self.process.returncode if self.process else None
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        status = await self.ended()
        if status is None:
            self.kill()
        return status

    def rows(self, sql: str, path: Path | None = None) -> list[dict[str, Any]]:
        """What is on disk; beside a running service, or in a copy of a dead one's files.

        A service that died before its first migration has left no tables, and so no rows.
        """
        with closing(sqlite3.connect(path or self.path, timeout=10)) as file:
            file.row_factory = sqlite3.Row
            tables = file.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
            if not tables and not sql.startswith("PRAGMA"):
                return []
            return [dict(row) for row in file.execute(sql)]

    def change(self, sql: str) -> None:
        """Change the files of a service that does not run, as far as it ever made any."""
        with closing(sqlite3.connect(self.path)) as file, suppress(sqlite3.OperationalError), file:
            file.execute(sql)

    def copy(self, name: str) -> Path:
        """The files of a dead service, copied: looking at them would change them."""
        folder = self.folder / name
        folder.mkdir()
        for suffix in ("", "-wal"):
            source = Path(f"{self.path}{suffix}")
            if source.exists():
                shutil.copyfile(source, folder / source.name)
        return folder / self.path.name


@asynccontextmanager
async def opened(
    folder: Path, seed: str, trust: str = "confirm", provider: Provider | None = None
) -> AsyncIterator[World]:
    """A world with upstream and subscribers, and no service yet."""
    folder.mkdir(parents=True)
    world = World(folder, seed, trust, provider)
    try:
        async with wire.serving(world.provider) as upstream, wire.serving(world.audience) as hooks:
            world.settings["GENHOOK_UPSTREAM_URL"] = f"http://{wire.HOST}:{upstream.port}/api/v1"
            world.connections = hooks.running
            world.hooks = f"http://{wire.HOST}:{hooks.port}"
            try:
                yield world
            except BaseException:
                await world.abort()
                raise
    finally:
        await world.close()
