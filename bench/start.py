"""Start: from nothing to the first answer, and what an idle process keeps in memory."""

import asyncio
import socket
import subprocess
import time

from bench import baselines, world
from bench.machine import HOST, SUBJECT_CORE, free_port, on_core, python, started
from bench.plan import Figures, Plan

REQUEST = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
REPEATS = 5  # of each kind in a round: starts are short and noisy


def bare_seconds() -> float:
    """What Python alone takes to start and end."""
    began = time.perf_counter()
    with on_core(SUBJECT_CORE):
        subprocess.run(python("-c", "pass"), check=True)
    return time.perf_counter() - began


def first_answer(port: int, began: float) -> float:
    """Seconds until something on the port answers anything."""
    while time.perf_counter() - began < 20:
        try:
            with socket.create_connection((HOST, port), 1) as connection:
                connection.sendall(REQUEST)
                if connection.recv(100):
                    return time.perf_counter() - began
        except OSError:
            time.sleep(0.001)
    raise AssertionError("it never answered")


async def measure(plan: Plan, figures: Figures) -> None:
    """`genhook serve` with its worker, on a new database and on one that is there."""
    path = plan.folder / "start.db"
    for _ in range(plan.rounds):
        for left in plan.folder.glob("start.db*"):
            left.unlink()
        new, _, memory = await served_seconds(plan)
        again = [await served_seconds(plan) for _ in range(REPEATS)]
        bare = min(bare_seconds() for _ in range(REPEATS))
        figures.add(
            bare_ms=bare * 1e3,
            new_database_ms=new * 1e3,
            start_ms=min(seconds for seconds, _, _ in again) * 1e3,
            start_cpu_ms=min(cpu for _, cpu, _ in again) * 1e3,
            memory_mb=max(memory for _, _, memory in again),
            new_database_memory_mb=memory,
            by_hand_ms=min(by_hand_seconds(str(path)) for _ in range(2)) * 1e3,
        )
        figures.ratio("bare_starts", "start_ms", "bare_ms")


async def served_seconds(plan: Plan) -> tuple[float, float, float]:
    """Seconds to the first answer, CPU seconds of it, and the memory a second later."""
    port = free_port()
    environment = world.environment(plan.folder / "start.db", port)
    began = time.perf_counter()
    with started(world.SERVE, environment) as running:
        seconds, cpu = first_answer(port, began), running.cpu_seconds()
        await asyncio.sleep(1.0)
        return seconds, cpu, running.memory_mb()


def by_hand_seconds(path: str) -> float:
    """The same for the application that people write by hand."""
    port = free_port()
    began = time.perf_counter()
    with started(python("-m", baselines.__name__, "by-hand", str(port), path + "-hand")):
        return first_answer(port, began)
