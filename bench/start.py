"""The time from a start to the first answer, and the memory of an idle process."""

import asyncio
import json
import socket
import subprocess
import time
from pathlib import Path
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
from bench.postgres import new_database, serve_postgres

REQUEST = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
# As Lambda's runtime does it: the handler is imported, and called for an event of a function URL.
FUNCTION = """
import json, os, sys
from service.serverless import handler

class Context:
    def get_remaining_time_in_millis(self):
        return 60_000

answer = handler(json.loads(sys.argv[1]), Context())
os._exit(answer["statusCode"] != 200)
"""
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
        new = await start_genhook(path)
        again = [await start_genhook(path) for _ in range(REPEATS)]
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


async def start_genhook(database: Path | str) -> Start:
    """Start `genhook serve` once."""
    port = find_free_port()
    environment = world.environment(database, port)
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


async def measure_postgres(plan: Plan, figures: Figures) -> None:
    """Measure starts on PostgreSQL, and cold starts of the function for Lambda on both databases.

    A cold start ends with the answer to a callback, which is stored by then.
    """
    path = plan.folder / "function.db"
    with serve_postgres(plan.folder) as server:
        async with new_database(server, "start") as database:
            [generation] = await world.add_generations(database, 1)
        async with world.open_database(path) as database:
            await database.write(world.insert_generations, [generation])
        event = function_event(world.callback_path(generation))
        url = server.url("start")
        for _ in range(plan.rounds):
            bare = min(time_bare_python() for _ in range(REPEATS))
            starts = [await start_genhook(url) for _ in range(REPEATS)]
            figures.add(
                bare_ms=bare * 1e3,
                start_ms=min(start.seconds for start in starts) * 1e3,
                memory_mb=max(start.memory_mb for start in starts),
                function_sqlite_ms=min(time_function(path, event) for _ in range(REPEATS)) * 1e3,
                function_postgres_ms=min(time_function(url, event) for _ in range(REPEATS)) * 1e3,
            )
            figures.ratio("bare_starts", "start_ms", "bare_ms")
            figures.ratio("function_sqlite_bare_starts", "function_sqlite_ms", "bare_ms")
            figures.ratio("function_postgres_bare_starts", "function_postgres_ms", "bare_ms")


def function_event(path: str) -> str:
    """Return a callback as a function URL hands it over (payload 2.0)."""
    event = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"content-type": "application/json", "host": "function.example"},
        "requestContext": {
            "http": {"method": "POST", "path": path, "protocol": "HTTP/1.1", "sourceIp": HOST},
            "stage": "$default",
        },
        "body": '{"code":200,"data":{"task_id":"task_000000000000","status":"IN_PROGRESS"}}',
        "isBase64Encoded": False,
    }
    return json.dumps(event)


def time_function(database: Path | str, event: str) -> float:
    """Measure the seconds from the start of Python to the end of the first answer."""
    variables = {"GENHOOK_WORKER": "off", "GENHOOK_DRIVE_SECONDS": "0"}
    environment = world.environment(database, find_free_port(), **variables)
    began = time.perf_counter()
    with start_process(python_command("-c", FUNCTION, event), environment) as running:
        status = running.process.wait(20)
    assert status == 0, "the function did not answer 200"
    return time.perf_counter() - began
