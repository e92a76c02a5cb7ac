"""Where things run: cores, processes, what they cost, and the versions that were measured."""

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
    """A process that was started here, and what it has cost so far."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self.pid = process.pid

    def cpu_seconds(self) -> float:
        """CPU seconds of every thread that lives."""
        return sum(map(_schedstat, Path(f"/proc/{self.pid}/task").iterdir()))

    def main_thread_seconds(self) -> float:
        """CPU seconds of the first thread: the event loop's."""
        return _schedstat(Path(f"/proc/{self.pid}/task/{self.pid}"))

    def switches(self) -> int:
        """How often its threads gave up the core, to wait or for each other."""
        found = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            for line in (task / "status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches"):
                    found += int(line.split()[1])
        return found

    def memory_mb(self) -> float:
        """Resident memory in units of 2**20 bytes."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024

    async def answers(self, port: int, seconds: float = 20.0) -> None:
        """Wait until something listens; AssertionError if the process ends or time is up."""
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
        """End it: politely, then not."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _schedstat(task: Path) -> float:
    try:
        return int((task / "schedstat").read_text().split()[0]) / 1e9
    except (FileNotFoundError, ProcessLookupError):
        return 0.0  # The thread has ended since it was listed.


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Run on `core`; what is started meanwhile stays there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def started(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """A process on the subject's core, ended by its id on the way out. Its output goes nowhere."""
    own = ("PORT", "GENHOOK_", "PYTHON")  # bytecode is kept, as wherever it is installed
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


def python(*arguments: str) -> list[str]:
    """A command that runs this Python."""
    return [sys.executable, *arguments]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def sync_ms(folder: Path, times: int = 100) -> float:
    """What it takes this disk to keep four kilobytes for good: the median of `times`."""
    path, taken = folder / "sync", []
    with path.open("wb", buffering=0) as file:
        for _ in range(times):
            began = time.perf_counter()
            file.write(b"x" * 4_096)
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - began)
    path.unlink()
    return statistics.median(taken) * 1e3


async def busy(seconds: float = 0.5) -> float:
    """Which part of a core the busiest of ours spends on something else, while we wait."""
    before = _jiffies()
    await asyncio.sleep(seconds)
    after = _jiffies()
    shares = []
    for core in {SUBJECT_CORE, LOAD_CORE}:
        idle, total = (after[core][part] - before[core][part] for part in (0, 1))
        shares.append(1 - idle / total if total else 0.0)
    return max(shares)


def _jiffies() -> dict[int, tuple[int, int]]:
    """Idle and all ticks of each core."""
    found = {}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name != "cpu":
            numbers = [int(tick) for tick in ticks]
            found[int(name[3:])] = (numbers[3] + numbers[4], sum(numbers[:8]))
    return found


def versions() -> dict[str, str]:
    """What was measured with."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version, **found}


def processor() -> str:
    """What the cores call themselves, and how many may be used."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, {len(CORES)} cores"
    return f"{platform.machine()}, {len(CORES)} cores"
