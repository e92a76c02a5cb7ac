"""Cores, processes and their costs, ports, the disk, and the versions of everything measured."""

import asyncio
import importlib.metadata
import os
import platform
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORES = sorted(os.sched_getaffinity(0))
SUBJECT_CORE, LOAD_CORE = CORES[0], CORES[-1]
HOST = "127.0.0.1"
SAME_PATH = {n: os.environ[n] for n in ("PYTHONPATH",) if n in os.environ}
PACKAGES = (
    "aiohttp",
    "aiosqlite",
    "fastapi",
    "httptools",
    "httpx",
    "itsdangerous",
    "msgspec",
    "sqlalchemy",
    "starlette",
    "structlog",
    "uvicorn",
    "uvloop",
)


class Running:
    """A process that we started, and what it has cost so far."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self.pid = process.pid

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of all live threads."""
        return sum(map(_cpu_seconds, Path(f"/proc/{self.pid}/task").iterdir()))

    def main_thread_seconds(self) -> float:
        """Return the CPU seconds of the first thread, which runs the event loop."""
        return _cpu_seconds(Path(f"/proc/{self.pid}/task/{self.pid}"))

    def switches(self) -> int:
        """Count how often its threads gave up the core voluntarily."""
        count = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            for line in (task / "status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches"):
                    count += int(line.split()[1])
        return count

    def memory_mb(self) -> float:
        """Return the resident memory in units of 2**20 bytes."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024

    async def wait_for_port(self, port: int, seconds: float = 20.0) -> None:
        """Wait until the port listens; AssertionError if the process ends or the time is up."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + seconds
        while loop.time() < ends_at:
            assert self.process.poll() is None, f"it ended with {self.process.returncode}"
            try:
                socket.create_connection((HOST, port), 1).close()
            except OSError:
                await asyncio.sleep(0.01)
            else:
                return
        raise AssertionError("it did not listen in time")

    def stop(self) -> None:
        """Terminate the process; kill it if that takes more than ten seconds."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _cpu_seconds(task: Path) -> float:
    try:
        return int((task / "schedstat").read_text().split()[0]) / 1e9
    except (FileNotFoundError, ProcessLookupError):
        return 0.0  # The thread has ended since it was listed.


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Pin this process to `core`; a process that is started meanwhile stays pinned."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def start_process(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """Start a process on the subject's core, discard its output, and stop it afterwards."""
    own = ("PORT", "GENHOOK_", "PYTHON")  # Without PYTHON…: bytecode is cached, as in production.
    plain = {name: v for name, v in os.environ.items() if not name.startswith(own)}
    errors = None if "BENCH_ERRORS" in os.environ else subprocess.DEVNULL
    with on_core(SUBJECT_CORE):
        process = subprocess.Popen(
            arguments,
            env={**plain, **SAME_PATH, **(environment or {})},
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
    running = Running(process)
    try:
        yield running
    finally:
        running.stop()


def python_command(*arguments: str) -> list[str]:
    """Return a command that runs this Python interpreter."""
    return [sys.executable, *arguments]


def find_free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def measure_sync_ms(folder: Path, times: int = 100) -> float:
    """Measure how long this disk takes to write and sync four kilobytes: the median of `times`."""
    path, seconds = folder / "sync", []
    with path.open("wb", buffering=0) as file:
        for _ in range(times):
            began = time.perf_counter()
            file.write(b"x" * 4_096)
            os.fdatasync(file.fileno())
            seconds.append(time.perf_counter() - began)
    path.unlink()
    return statistics.median(seconds) * 1e3


async def measure_noise(seconds: float = 0.5) -> float:
    """Wait, and return the share of the busier core that other programs used meanwhile."""
    before = _jiffies()
    await asyncio.sleep(seconds)
    after = _jiffies()
    shares = []
    for core in {SUBJECT_CORE, LOAD_CORE}:
        idle, total = (after[core][part] - before[core][part] for part in (0, 1))
        shares.append(1 - idle / total if total else 0.0)
    return max(shares)


def _jiffies() -> dict[int, tuple[int, int]]:
    """Return the idle ticks and all ticks of each core."""
    ticks_by_core = {}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name != "cpu":
            numbers = [int(tick) for tick in ticks]
            ticks_by_core[int(name[3:])] = (numbers[3] + numbers[4], sum(numbers[:8]))
    return ticks_by_core


def list_versions() -> dict[str, str]:
    """Return the versions of Python, SQLite and the packages that matter."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version, **packages}


def describe_processor() -> str:
    """Return the name of the processor and the number of usable cores."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, {len(CORES)} cores"
    return f"{platform.machine()}, {len(CORES)} cores"
