"""SIGTERM while something hangs: the process ends in time, and nothing is lost."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from chaos import load, promises
from chaos.outcome import Outcome
from chaos.plan import Plan, Try, run_tries
from chaos.wire import HOST
from chaos.world import TICK_SECONDS, World, open_world

SHUTDOWN_SECONDS = 10
LATE_SECONDS = 8.0  # For a busy machine; a stop that took its seconds twice would be later.
AGAIN_SECONDS = 1.5  # Until the second signal; one that comes at once counts as the first.
GENERATIONS, LOAD_SECONDS = 12, 2.0
HANG_SECONDS = 1.5  # How long something hangs before the signal.
LONG_POLLS, LONG_POLLED = 21, 3  # So many requests, for so many generations.
KINDS = ("upstream", "receivers", "long polls", "connecting sockets", "the log")
TOGETHER = "everything"
SIGNALS = ("once", "twice")


@contextmanager
def full_pipe() -> Iterator[int]:
    """Open a pipe that is full and that nobody reads; yield the end to write to."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4_096)
    os.set_blocking(writing, True)
    try:
        yield writing
    finally:
        os.close(reading)
        os.close(writing)


@contextmanager
def full_listener() -> Iterator[str]:
    """Listen without accepting until connections only begin; yield a URL."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((HOST, 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)  # noqa: FBT003  the name of the method says it
            waiting.connect_ex(listener.getsockname())
        yield f"http://{HOST}:{listener.getsockname()[1]}/connecting"


async def run(plan: Plan) -> Outcome:
    """Stop a world in which one thing hangs, or everything; a quick run has only the last."""
    kinds = (TOGETHER,) if plan.quick and plan.only is None else (*KINDS, TOGETHER)

    def new_try(kind: str, signals: str) -> Try:
        async def run_try(folder: Path, seed: str, repeat: str) -> Outcome:
            hanging = KINDS if kind == TOGETHER else (kind,)
            return await attack(folder, seed, repeat, hanging, is_twice=signals == "twice")

        return Try(f"{kind}, {signals}", run_try)

    return await run_tries(plan, [new_try(kind, each) for kind in kinds for each in SIGNALS])


async def attack(
    folder: Path, seed: str, repeat: str, hanging: tuple[str, ...], *, is_twice: bool
) -> Outcome:
    """Stop the service while some things hang, start it again, and check that all is done."""
    outcome = Outcome()
    async with open_world(folder, seed) as world:
        world.settings["GENHOOK_SHUTDOWN_SECONDS"] = str(SHUTDOWN_SECONDS)
        with ExitStack() as stack:
            if "the log" in hanging:
                world.output = stack.enter_context(full_pipe())
            await world.start()
            world.output = None
            if "connecting sockets" in hanging:
                url = stack.enter_context(full_listener())
                body = {"url": url, "retry_schedule_seconds": [0, 1]}
                await load.request(world, "POST", "/v1/subscribers", json=body)
            clients = world.run_beside(load.run(world, GENERATIONS, LOAD_SECONDS))
            await asyncio.sleep(LOAD_SECONDS / 2)
            world.provider.hangs = "upstream" in hanging
            world.subscribers.hangs = "receivers" in hanging
            polls = await _poll_long(world, outcome, repeat) if "long polls" in hanging else []
            await asyncio.sleep(HANG_SECONDS)
            outcome.faults.update({f"stop while {kind} hangs": 1 for kind in hanging})
            await _check_end(world, outcome, repeat, is_twice=is_twice)
            await _check_long_polls(polls, outcome, repeat, is_twice=is_twice)
        world.provider.hangs = world.subscribers.hangs = False
        for connection in world.receiver.connections:
            connection.cancel()
        await _check_restart(world, clients, outcome, repeat)
    return outcome


async def _poll_long(
    world: World, outcome: Outcome, repeat: str
) -> list["asyncio.Task[httpx.Response]"]:
    """Wait for generations that have not ended, with requests of their own; all have arrived."""
    ends_at = time.monotonic() + load.ANSWER_SECONDS
    rows: list[dict[str, Any]] = []
    while len(rows) < LONG_POLLED and time.monotonic() < ends_at:
        await asyncio.sleep(TICK_SECONDS)
        rows = world.rows(f"SELECT id FROM generations ORDER BY id DESC LIMIT {LONG_POLLED}")
    sent, are_sent = 0, asyncio.Event()

    async def note(event: str, _info: dict[str, Any]) -> None:
        nonlocal sent
        sent += event == "http11.send_request_body.complete"
        if sent == LONG_POLLS:
            are_sent.set()

    paths = [f"/v1/generations/{row['id']}?wait=60" for row in rows]
    polls = [
        asyncio.create_task(world.api.get(path, timeout=60, extensions={"trace": note}))
        for path in paths * (LONG_POLLS // LONG_POLLED)
    ]
    with suppress(TimeoutError):
        await asyncio.wait_for(are_sent.wait(), load.ANSWER_SECONDS)
    for _ in range(2):  # What is sent after them is answered after them, or in the next turn.
        await load.request(world, "GET", "/healthz")
    detail = f"{sent} of {LONG_POLLS} were sent"
    outcome.check("long polls arrive", holds=sent == LONG_POLLS, detail=detail, repeat=repeat)
    return polls


async def _check_end(world: World, outcome: Outcome, repeat: str, *, is_twice: bool) -> None:
    """Send the signals, and check that the process ends in time."""
    assert world.process is not None
    began = time.monotonic()
    world.process.send_signal(signal.SIGTERM)
    most = SHUTDOWN_SECONDS + LATE_SECONDS
    if is_twice and await world.wait_for_exit(AGAIN_SECONDS) is None:
        world.process.send_signal(signal.SIGTERM)
        most = AGAIN_SECONDS + LATE_SECONDS
    status = await world.wait_for_exit()
    seconds = time.monotonic() - began
    if status is None:
        await world.abort()
    detail = f"{seconds:.1f} s, status {status}: {world.log_end()}"
    outcome.check("8 a stop has an end", holds=seconds <= most, detail=detail, repeat=repeat)
    expected = (0, 1, -signal.SIGTERM) if is_twice else (0, 1)
    outcome.check("it ends by itself", holds=status in expected, detail=detail, repeat=repeat)
    log = (world.folder / "log").read_text("utf-8", "replace").splitlines()
    line = next((line[:600] for line in log if '"exception"' in line or "Traceback" in line), "")
    outcome.check("no traceback", holds=not line, detail=line, repeat=repeat)


async def _check_long_polls(
    polls: list["asyncio.Task[httpx.Response]"], outcome: Outcome, repeat: str, *, is_twice: bool
) -> None:
    """Check that long polls were answered; a second signal may end them without an answer."""
    answers = await asyncio.gather(*polls, return_exceptions=True)
    wrong = [
        answer
        for answer in answers
        if not isinstance(answer, httpx.Response) or answer.status_code != 200
    ]
    outcome.check(
        "long polls are answered at a stop",
        holds=is_twice or not wrong,
        detail=f"{len(wrong)} of {len(answers)}: {wrong[:2]}",
        repeat=repeat,
    )


async def _check_restart(
    world: World, clients: "asyncio.Task[None]", outcome: Outcome, repeat: str
) -> None:
    """Start the service again and check that nothing was lost."""
    await world.drain_connections()
    await world.start()
    await clients
    await world.provider.settle()
    await promises.wait_until_done(world)
    await promises.check_stop(world, outcome, repeat)
    promises.check_world(world, outcome, repeat)
    outcome.faults += world.provider.faults + +world.subscribers.faults
