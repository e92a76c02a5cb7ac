"""The time from a start to the first answer, and the memory of an idle process."""

import asyncio
import socket
import subprocess
import time
from typing import NamedTuple

from bench import baselines, world
from bench.machine import (
    HOST,
    SUBJECT_CORE,
    find_free_port,
    on_core,
    python_command,
    start_process,
)
from bench.plan import Figures, Plan

REQUEST = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
REPEATS = 5  # Starts are short and noisy: the quickest of so many counts.


def time_bare_python() -> float:
    """Measure how many seconds Python alone takes to start and end."""
    began = time.perf_counter()
    with on_core(SUBJECT_CORE):
        subprocess.run(python_command("-c", "pass"), check=True)
    return time.perf_counter() - began


def wait_for_answer(port: int, began: float) -> float:
    """Request until the port answers; return the seconds since `began`."""
    while time.perf_counter() - began < 20:
        try:
            with socket.create_connection((HOST, port), 1) as connection:
                connection.sendall(REQUEST)
                if connection.recv(100):
                    return time.perf_counter() - began
        except OSError:
            time.sleep(0.001)
    raise AssertionError("nothing answered in time")


async def measure(plan: Plan, figures: Figures) -> None:
    """Measure `genhook serve` with its worker, on a new and on an existing database."""
    path = plan.folder / "start.db"
    for _ in range(plan.rounds):
        for file in plan.folder.glob("start.db*"):
            file.unlink()
        new = await start_genhook(plan)
        again = [await start_genhook(plan) for _ in range(REPEATS)]
        bare = min(time_bare_python() for _ in range(REPEATS))
        figures.add(
            bare_ms=bare * 1e3,
            new_database_ms=new.seconds * 1e3,
            start_ms=min(start.seconds for start in again) * 1e3,
            start_cpu_ms=min(start.cpu_seconds for start in again) * 1e3,
            memory_mb=max(start.memory_mb for start in again),
            new_database_memory_mb=new.memory_mb,
            by_hand_ms=min(time_by_hand(str(path)) for _ in range(2)) * 1e3,
        )
        figures.ratio("bare_starts", "start_ms", "bare_ms")


class Start(NamedTuple):
    """A start up to its first answer, and the memory a second later."""

    seconds: float
    cpu_seconds: float
    memory_mb: float


async def start_genhook(plan: Plan) -> Start:
    """Start `genhook serve` once."""
    port = find_free_port()
    environment = world.environment(plan.folder / "start.db", port)
    began = time.perf_counter()
    with start_process(world.SERVE, environment) as running:
        seconds, cpu_seconds = wait_for_answer(port, began), running.cpu_seconds()
        await asyncio.sleep(1.0)
        return Start(seconds, cpu_seconds, running.memory_mb())


def time_by_hand(path: str) -> float:
    """Measure the seconds to the first answer of the hand-written handler."""
    port = find_free_port()
    began = time.perf_counter()
    command = python_command("-m", baselines.__name__, "by-hand", str(port), path + "-hand")
    with start_process(command):
        return wait_for_answer(port, began)
