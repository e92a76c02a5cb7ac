"""Several processes of genhook on one database, of which some are killed and started again."""

import asyncio
import itertools
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from bench.machine import ROOT
from bench.world import ADMIN_KEY, SERVE
from chaos.world import END_SECONDS, HOST, LISTEN_SECONDS, TICK_SECONDS, World, ask, find_port
from tests import engine

GENHOOK = SERVE[0]
AWAY_SECONDS = 5.0
LOOK_SECONDS = 0.2  # Between two looks at the log.
WORK, TICK = ("work",), ("tick", "--every", "2")  # What the processes that only work run.
DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"


class Balanced(httpx.AsyncBaseTransport):
    """Sends what is for one port to several in turn, as a proxy in front of processes does.

    A port that did not answer has no turn for AWAY_SECONDS, unless no other is left.
    """

    def __init__(self, ports: Sequence[int]) -> None:
        self._ports = itertools.cycle(ports)
        self._count = len(ports)
        self._away_until: dict[int, float] = {}
        self._below = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request to the next port."""
        now = time.monotonic()
        ports = [next(self._ports) for _ in range(self._count)]
        port = next((p for p in ports if self._away_until.get(p, now) <= now), ports[0])
        while next(self._ports) != port:
            pass  # The next request goes to the port after this one.
        request.url = request.url.copy_with(port=port)
        try:
            return await self._below.handle_async_request(request)
        except httpx.TransportError:
            self._away_until[port] = time.monotonic() + AWAY_SECONDS
            raise

    async def aclose(self) -> None:
        """Close every connection."""
        await self._below.aclose()


# While one starts or stops. The package has a file lock for it that two threads must not share.
_SERVERS = threading.Lock()


class Server:
    """A PostgreSQL server, whose deadlocks are counted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running = self._start()
        self.url: str = self._running.get_uri()
        self._schemas = 0
        self._deadlocks = 0  # Of those before a restart, after which the server may count anew.

    def count_deadlocks(self) -> int:
        """Return how many there were."""
        [row] = ask(self.url, DEADLOCKS)
        return self._deadlocks + int(row["deadlocks"])

    def new_schema(self) -> str:
        """Return the URL of a new schema."""
        self._schemas += 1
        ask(self.url, f"CREATE SCHEMA schema_{self._schemas}")
        return f"{self.url}&search_path=schema_{self._schemas}"

    def end_connections(self) -> int:
        """End every connection of a process; return how many there were."""
        return len(ask(self.url, engine.TERMINATE))

    async def restart(self) -> None:
        """Stop the server, whatever is under way, and start it again."""
        before, self._deadlocks = self.count_deadlocks(), 0
        await asyncio.to_thread(self.stop)
        self._running = await asyncio.to_thread(self._start)
        self._deadlocks = before - self.count_deadlocks()

    def stop(self) -> None:
        """Stop the server."""
        with _SERVERS:
            self._running.cleanup()

    def _start(self) -> Any:
        with _SERVERS:
            return engine.serve(self._folder, "stop")


@asynccontextmanager
async def running_server() -> AsyncIterator[Server]:
    """Run a PostgreSQL server; its user, which is not root, must reach its folder.

    It is started and stopped in a thread: upstream and subscribers are served by this loop.
    """
    with tempfile.TemporaryDirectory(prefix="genhook-chaos-") as folder:
        Path(folder).chmod(0o755)
        server = await asyncio.to_thread(Server, Path(folder) / "postgres")
        try:
            yield server
        finally:
            await asyncio.to_thread(server.stop)


class Fleet:
    """The processes of a world, by name; those of the API share the load."""

    def __init__(
        self,
        world: World,
        webs: int,
        workers: int,
        server: Server | None,
        work: tuple[str, ...] = WORK,
    ) -> None:
        self.world = world
        self._work = work
        self.server = server
        world.server_url = server.url if server else ""
        self.ports = [world.port, *(find_port() for _ in range(webs - 1))]
        self.webs = [f"web {number}" for number in range(webs)]
        self.workers = [f"worker {number}" for number in range(workers)]
        # When each process was killed, or had lost what it held, and when it or its successor began
        # to work.
        self.deaths: list[tuple[float, float]] = []
        self._health_ports = dict(zip(self.webs, self.ports, strict=True))
        if work == WORK:
            self._health_ports |= {name: find_port() for name in self.workers}
        self._killed_at: dict[str, float] = {}
        self._starts: list[asyncio.Task[None]] = []
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def engine(self) -> str:
        """The database."""
        return "postgres" if self.server else "sqlite"

    async def open(self) -> None:
        """Start every process, and wait until the API answers."""
        address = f"http://{HOST}:{self.world.port}"
        world, headers = self.world, {"authorization": f"Bearer {ADMIN_KEY}"}
        for client in (world.api, world.provider.outside):
            await client.aclose()
        world.api = self._new_client(base_url=address, headers=headers)
        world.provider.outside = self._new_client()
        for name in (*self.webs, *self.workers):
            self.spawn(name)
        await self.wait_for_starts()

    def _new_client(self, **own: Any) -> httpx.AsyncClient:
        transport = Balanced(self.ports)
        return httpx.AsyncClient(transport=transport, trust_env=False, timeout=8, **own)

    async def wait_for_starts(self) -> None:
        """Wait until every process that runs has answered; AssertionError if one does not."""
        while self._starts:
            await self._starts.pop(0)

    async def _wait_for_start(self, name: str) -> None:
        """Wait until the process answers and works, or was killed, and note when that was.

        One that only serves may have the right to work at first, in turns with this one.
        """
        ends_at, process = time.monotonic() + LISTEN_SECONDS, self._processes[name]
        begun = self._count_begun(name)
        killed_at, port = self._killed_at.pop(name, None), self._health_ports.get(name)
        async with httpx.AsyncClient(trust_env=False) as client:
            while port and process is self._processes[name] and name not in self._killed_at:
                assert time.monotonic() < ends_at, f"no answer: {self.world.log_end()}"
                with suppress(httpx.TransportError):
                    await client.get(f"http://{HOST}:{port}/healthz")
                    break
                await asyncio.sleep(TICK_SECONDS)
        if port and name in self.workers:
            await self._wait_for_work(name, begun)
        if killed_at is not None:
            self.deaths.append((killed_at, time.monotonic()))

    async def _wait_for_work(self, name: str, begun: int) -> None:
        """Wait until a worker has begun to work more often than so, or was killed."""
        ends_at, process = time.monotonic() + LISTEN_SECONDS, self._processes[name]
        while self._count_begun(name) <= begun and process.poll() is None:
            assert time.monotonic() < ends_at, f"{name} does not work: {self.world.log_end()}"
            await asyncio.sleep(LOOK_SECONDS)

    async def restart_server(self) -> None:
        """Restart the server: each worker that lives loses what it holds, and begins anew.

        No process starts meanwhile: without a database it ends with status 1.
        """
        assert self.server is not None
        await self.wait_for_starts()
        live = [name for name in self.workers if self._processes[name].poll() is None]
        begun = {name: self._count_begun(name) for name in live}
        await self.server.restart()
        for name in live:
            self._starts.append(asyncio.create_task(self._begin_anew(name, begun[name])))

    async def _begin_anew(self, name: str, begun: int) -> None:
        lost_at = time.monotonic()
        await self._wait_for_work(name, begun)
        self.deaths.append((lost_at, time.monotonic()))

    def _log(self, name: str) -> Path:
        """Return the file to which a process logs: workers have their own."""
        return self.world.folder / (f"log of {name}" if name in self.workers else "log")

    def _count_begun(self, name: str) -> int:
        """Count how often the worker of this name has begun to work so far."""
        return self._log(name).read_bytes().count(b'"worker.started"')

    def spawn(self, name: str) -> None:
        """Start a process of this name."""
        is_web, port = name in self.webs, self._health_ports.get(name)
        own = {("PORT" if is_web else "GENHOOK_WORK_PORT"): str(port)} if port else {}
        own["GENHOOK_WORKER"] = "off" if is_web or self._work == TICK else "embedded"
        with self._log(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [GENHOOK, *(("serve",) if is_web else self._work)],
                cwd=ROOT,
                env={**self.world.environment(), **own},
                stdout=log,
                stderr=log,
            )
        self._starts.append(asyncio.create_task(self._wait_for_start(name)))

    def kill(self, name: str) -> None:
        """Kill a process as `kill -9` does."""
        self._processes[name].kill()
        self._processes[name].wait()
        self._killed_at[name] = time.monotonic()

    def freeze(self, name: str) -> None:
        """Stop a process where it is, as a platform does that thaws it later."""
        self._processes[name].send_signal(signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """Let a frozen process go on."""
        self._processes[name].send_signal(signal.SIGCONT)

    async def stop(self) -> dict[str, int | None]:
        """Stop every process by SIGTERM; return their statuses, None of those that do not end."""
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        statuses: dict[str, int | None] = {}
        for name, process in self._processes.items():
            with suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(process.wait, END_SECONDS)
            statuses[name] = process.poll()
        return statuses

    async def close(self) -> None:
        """Kill what still runs."""
        for start in self._starts:
            start.cancel()
        await asyncio.gather(*self._starts, return_exceptions=True)
        for process in self._processes.values():
            process.kill()
            process.wait()


@asynccontextmanager
async def open_fleet(
    world: World,
    webs: int,
    workers: int,
    server: Server | None = None,
    work: tuple[str, ...] = WORK,
) -> AsyncIterator[Fleet]:
    """Run processes that only serve and others that only work."""
    fleet = Fleet(world, webs, workers, server, work)
    try:
        await fleet.open()
        yield fleet
    finally:
        await fleet.close()
