"""One tenant takes what it can get; the callbacks, requests and webhooks of another do not wait."""

import asyncio
import itertools
import json
import random
import sqlite3
import subprocess
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import httpx

from bench.machine import ROOT, Running, python_command
from bench.world import HOUR_MS, tokens
from chaos import wire
from chaos.neighbour import LARGE_CHARACTERS, NAMES, OPEN_PROMPT
from chaos.outcome import Outcome
from chaos.plan import Plan, Try, run_tries
from chaos.world import LISTEN_SECONDS, SERVE, SUBJECT, World, find_port, open_world
from service.model.ids import new_id

ATTACKER, VICTIM = "neighbour", "victim"
ALONE_SECONDS, BESIDE_SECONDS, QUICK_SECONDS = 6.0, 12.0, 4.0
LATER_SECONDS_MAX = 1.0  # How much later the slow ones may be beside a neighbour.
ANSWER_SECONDS = 15.0  # What takes longer counts as so long.
REQUEST_PAUSE, CALLBACK_PAUSE, GENERATION_PAUSE = 0.1, 0.2, 0.5  # Seconds.
READY_SECONDS, SLOW_NAME_SECONDS = 240.0, "10"
SPEED = "20"  # Of the sandbox.
QUICK_TRIES = 2
ROUNDS_MAX = 4  # A neighbour who delays others does so in each; a busy machine only in some.
VICTIMS = ("callback", "request", "submission", "webhook")


class Attack(NamedTuple):
    """How many at once, what the neighbour has stored before and how many rows of it.

    The second number of each pair is that of a quick run.
    """

    counts: tuple[int, int]
    fill: Callable[[sqlite3.Connection, int], None] | None = None
    rows: tuple[int, int] = (0, 0)
    command: list[str] = SERVE


@dataclass
class Measured:
    """The seconds that each victim took, by its name, and what was answered wrongly."""

    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    wrong: list[str] = field(default_factory=list)

    def p95(self, name: str) -> float:
        """Return the seconds that 95 of 100 stay below; infinite if there were none."""
        ordered = sorted(self.seconds[name])
        return ordered[int(len(ordered) * 0.95)] if ordered else float("inf")


def fill_generations(file: sqlite3.Connection, count: int) -> None:
    """Store many generations with six entries of metadata."""
    ids = [(new_id("gen"),) for _ in range(count)]
    file.executemany(INSERT_GENERATION, ids)
    file.executemany(
        "INSERT INTO generation_bodies VALUES (?, '{\"prompt\": \"x\"}', '{}', NULL, NULL)", ids
    )
    rows = ((ATTACKER, name, "same", id_) for name in NAMES for [id_] in ids)
    file.executemany("INSERT INTO generation_metadata VALUES (?, ?, ?, ?)", rows)


def fill_events(file: sqlite3.Connection, count: int) -> None:
    """Store many small events."""
    file.executemany(INSERT_EVENT, ((new_id("evt"), b"{}") for _ in range(count)))


def fill_large(file: sqlite3.Connection, count: int) -> None:
    """Store generations and events of about a megabyte."""
    text = json.dumps({"prompt": "x" * LARGE_CHARACTERS})
    ids = [(new_id("gen"),) for _ in range(count)]
    file.executemany(INSERT_GENERATION, ids)
    rows = ((id_, text) for [id_] in ids)
    file.executemany("INSERT INTO generation_bodies VALUES (?, ?, '{}', NULL, NULL)", rows)
    body = json.dumps({"type": "generation.succeeded", "data": text}).encode()
    file.executemany(INSERT_EVENT, ((new_id("evt"), body) for _ in ids))


INSERT_GENERATION = (
    "INSERT INTO generations (id, tenant, model, status, route, deadline_at, nonce, submission) "
    f"VALUES (?, '{ATTACKER}', 'imagen4', 'succeeded', 'callback', 0, 'x', 'taken')"
)
INSERT_EVENT = (
    "INSERT INTO events (id, tenant, type, body) "
    f"VALUES (?, '{ATTACKER}', 'generation.succeeded', ?)"
)
ATTACKS = {
    "hanging receivers": Attack((1_000, 100)),
    "dead names": Attack((400, 60), command=SUBJECT),
    "queries of notify_urls": Attack((1_500, 150)),
    "refreshes at once": Attack((200, 50)),
    "replay counts": Attack((2, 2), fill_events, (200_000, 5_000)),
    "metadata searches": Attack((4, 4), fill_generations, (60_000, 2_000)),
    "large rows": Attack((8, 4), fill_large, (200, 20)),
}


async def run(plan: Plan) -> Outcome:
    """Run a world for each neighbour, or for some in a quick run, one after the other."""
    kinds = list(ATTACKS)
    if plan.quick and plan.only is None:
        kinds = random.Random(plan.seed).sample(kinds, QUICK_TRIES)

    def new_try(kind: str) -> Try:
        async def run_try(folder: Path, seed: str, repeat: str) -> Outcome:
            return await attack(folder, seed, repeat, kind, quick=plan.quick)

        return Try(kind, run_try)

    return await run_tries(plan, [new_try(kind) for kind in kinds], side_by_side=1)


async def attack(folder: Path, seed: str, repeat: str, kind: str, *, quick: bool) -> Outcome:
    """Measure the victim alone, then beside the neighbour."""
    outcome, chosen = Outcome(), ATTACKS[kind]
    async with open_world(folder, seed) as world, _serve_sandbox() as upstream_url:
        world.settings = {"GENHOOK_UPSTREAM_URL": upstream_url, "GENHOOK_LOG_LEVEL": "warning"}
        await _start(world, chosen, quick=quick)
        async with _open_victim(world) as victim:
            alone = await victim.measure(QUICK_SECONDS if quick else ALONE_SECONDS)
            count = chosen.counts[quick]
            async with _run_neighbour(world, kind, count) as neighbour:
                beside: list[Measured] = []
                while len(beside) < ROUNDS_MAX and (not beside or _list_late(alone, beside)):
                    seconds = QUICK_SECONDS if quick else BESIDE_SECONDS
                    beside.append(await victim.measure(seconds))
                is_on = neighbour.poll() is None
        outcome.check("the neighbour attacks", holds=is_on, repeat=repeat)
        outcome.faults[kind] += count
        _compare(outcome, kind, alone, beside, repeat)
        _check_process(world, outcome, kind, repeat)
        await _stop(world, outcome, repeat)
    return outcome


def _list_late(alone: Measured, beside: Sequence[Measured]) -> list[str]:
    """Return the victims that were much later beside the neighbour in every round."""
    return [
        name
        for name in VICTIMS
        if min(each.p95(name) for each in beside) > alone.p95(name) + LATER_SECONDS_MAX
    ]


def _compare(
    outcome: Outcome, kind: str, alone: Measured, beside: Sequence[Measured], repeat: str
) -> None:
    """Check that no victim is much later beside the neighbour, and that all were answered."""
    late = _list_late(alone, beside)
    for name in VICTIMS:
        figures = " / ".join(f"{each.p95(name):.3f}" for each in (alone, *beside))
        outcome.notes[f"p95 of a {name} in seconds, alone / beside {kind}"] = figures
        outcome.check(
            "6 no tenant delays another",
            holds=name not in late,
            detail=f"{kind}: {name}, p95 in seconds alone / beside: {figures}",
            repeat=repeat,
        )
    wrong = [text for each in (alone, *beside) for text in each.wrong]
    detail = f"{kind}: {len(wrong)}, such as {wrong[:3]}"
    outcome.check("the victim is served", holds=not wrong, detail=detail, repeat=repeat)


def _check_process(world: World, outcome: Outcome, kind: str, repeat: str) -> None:
    outcome.check("the process lives", holds=world.is_alive, detail=world.log_end(), repeat=repeat)
    if world.process is not None and world.is_alive:
        memory = Running(world.process).memory_mb()
        outcome.notes[f"memory in MB beside {kind}"] = memory


async def _stop(world: World, outcome: Outcome, repeat: str) -> None:
    """Stop the service; look-ups that hang may have to be ended by force, with status 1."""
    status = await world.stop()
    outcome.check(
        "the service stops by SIGTERM", holds=status in (0, 1), detail=f"{status}", repeat=repeat
    )


async def _start(world: World, chosen: Attack, *, quick: bool) -> None:
    """Start the service; what the neighbour has stored is put into the tables in between."""
    extra = {"CHAOS_NAMES": SLOW_NAME_SECONDS} if chosen.command is SUBJECT else {}
    if chosen.fill is not None:
        await world.start()
        await world.stop()
        with closing(sqlite3.connect(world.path)) as file, file:
            chosen.fill(file, chosen.rows[quick])
    await world.start(chosen.command, **extra)


async def _make_key(world: World, tenant: str) -> str:
    body = {"name": tenant, "tenant": tenant, "scopes": ["submit", "read", "manage"]}
    answer = await world.api.post("/v1/keys", json=body)
    assert answer.status_code == 201, answer.text
    key: str = answer.json()["key"]
    return key


@asynccontextmanager
async def _serve_sandbox() -> AsyncIterator[str]:
    """Run `genhook sandbox`; yield the URL of its API once it listens."""
    port = find_port(wire.HOST)  # No connection gets it before the sandbox listens.
    command = [SERVE[0], "sandbox", "--port", str(port), "--speed", SPEED]
    process = _spawn(command, subprocess.DEVNULL, subprocess.DEVNULL)
    try:
        await Running(process).wait_for_port(port, LISTEN_SECONDS)
        yield f"http://{wire.HOST}:{port}/api/v1"
    finally:
        process.kill()
        process.wait()


def _spawn(command: list[str], output: int, errors: int | IO[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=errors)


@asynccontextmanager
async def _run_neighbour(
    world: World, kind: str, count: int
) -> AsyncIterator["subprocess.Popen[bytes]"]:
    """Run the neighbour in a process of its own; yield it once its attack stands."""
    key = await _make_key(world, ATTACKER)
    command = python_command(
        "-m", "chaos.neighbour", kind, str(count), str(world.api.base_url), key
    )
    with (world.folder / "neighbour").open("w") as log:
        process = _spawn(command, subprocess.PIPE, log)
    assert process.stdout is not None
    try:
        reading = asyncio.to_thread(process.stdout.readline)
        line = await asyncio.wait_for(reading, READY_SECONDS)
        assert line == b"ready\n", (world.folder / "neighbour").read_text()[-300:]
        yield process
    finally:
        process.kill()
        process.wait()


class Victim:
    """A tenant with one healthy subscriber, and what it has measured."""

    def __init__(self, world: World, api: httpx.AsyncClient) -> None:
        self.world, self.api = world, api
        self.arrived: dict[str, float] = {}  # When the webhook came, by generation.
        self.webhooks: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.paths: list[str] = []  # Of callbacks.

    async def __call__(self, request: wire.Request) -> bytes | None:
        """Receive a webhook; the handler of a `wire` server."""
        event = json.loads(request.body)
        if event["type"] == "generation.succeeded":
            id_ = event["data"]["id"]
            self.arrived[id_] = time.monotonic()
            self.webhooks[id_].set()
        return wire.build_answer(204)

    async def prepare(self, url: str) -> None:
        """Subscribe, and have two open generations that callbacks can be about."""
        await self._send("POST", "/v1/subscribers", {"url": url})
        for _ in range(2):
            new = {"model": "imagen4", "input": {"prompt": OPEN_PROMPT}}
            answer = await self._send("POST", "/v1/generations", new)
            assert answer.status_code == 202, answer.text
        sql = f"SELECT id, nonce, deadline_at FROM generations WHERE tenant = '{VICTIM}'"
        for row in self.world.rows(sql):
            token = tokens.mint(row["id"], row["nonce"], row["deadline_at"] + HOUR_MS)
            self.paths.append(f"/callbacks/apiinone/{token}")

    async def measure(self, seconds: float) -> Measured:
        """Send for some seconds, whatever is answered meanwhile; return how long all took."""
        measured, ends_at = Measured(), time.monotonic() + seconds
        tasks: list[asyncio.Task[None]] = []

        async def start(act: Callable[[Measured, int], Awaitable[None]], pause: float) -> None:
            for number in itertools.count():
                if time.monotonic() > ends_at:
                    return
                tasks.append(asyncio.ensure_future(act(measured, number)))
                await asyncio.sleep(pause)

        await asyncio.gather(
            start(self._request, REQUEST_PAUSE),
            start(self._call_back, CALLBACK_PAUSE),
            start(self._generate, GENERATION_PAUSE),
        )
        await asyncio.gather(*tasks)
        return measured

    async def _send(self, method: str, path: str, body: Any = None) -> httpx.Response:
        return await self.api.request(method, path, json=body)

    async def _time(self, measured: Measured, name: str, *request: Any) -> httpx.Response | None:
        """Send a request and note how long it took; None if it was not answered well."""
        began, answer = time.monotonic(), None
        try:
            answer = await self._send(*request)
        except httpx.TransportError as error:
            measured.wrong.append(f"{name}: {type(error).__name__}")
        measured.seconds[name].append(time.monotonic() - began)
        if answer is not None and not answer.is_success:
            measured.wrong.append(f"{name}: {answer.status_code} {answer.text[:100]}")
            return None
        return answer

    async def _request(self, measured: Measured, number: int) -> None:
        path = "/v1/generations?limit=10" if number % 2 else "/v1/subscribers"
        await self._time(measured, "request", "GET", path)

    async def _call_back(self, measured: Measured, number: int) -> None:
        body = {"code": 200, "data": {"status": "IN_PROGRESS"}, "number": time.monotonic_ns()}
        path = self.paths[number % len(self.paths)]
        await self._time(measured, "callback", "POST", path, body)

    async def _generate(self, measured: Measured, _number: int) -> None:
        new = {"model": "imagen4", "input": {"prompt": "a bowl of rice"}}
        began = time.monotonic()
        answer = await self._time(measured, "submission", "POST", "/v1/generations", new)
        if answer is None:
            return
        id_, ends_at = answer.json()["id"], began + ANSWER_SECONDS
        with suppress(TimeoutError):
            await asyncio.wait_for(self.webhooks[id_].wait(), ANSWER_SECONDS)
        measured.seconds["webhook"].append(self.arrived.get(id_, ends_at) - began)


@asynccontextmanager
async def _open_victim(world: World) -> AsyncIterator[Victim]:
    headers = {"authorization": f"Bearer {await _make_key(world, VICTIM)}"}
    async with httpx.AsyncClient(
        base_url=world.api.base_url, headers=headers, trust_env=False, timeout=ANSWER_SECONDS
    ) as api:
        victim = Victim(world, api)
        async with wire.serve(victim) as server:
            await victim.prepare(f"http://{wire.HOST}:{server.port}/victim")
            yield victim
