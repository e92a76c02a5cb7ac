"""Clients that send too much, too slowly or never read; beside them a sane client is served."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx

from bench.machine import Running
from bench.world import ADMIN_KEY
from chaos import promises
from chaos.outcome import Outcome
from chaos.plan import Plan, Try, run_tries
from chaos.world import HOST, World, open_world

COUNT, QUICK_COUNT = 200, 30
CONNECTIONS_MAX = 600
SECONDS = 10  # For a head and for a body.
LATE_SECONDS = (
    30.0  # After these, what was to be ended in SECONDS has ended, on a busy machine too.
)
SANE_MIN = 3  # Requests of the client beside an attack.
# Soon enough if it does not wait until the others are ended.
SANE_PAUSE_SECONDS, SANE_SECONDS_MAX = 0.05, 8.0
HEAD_BYTES = 64 * 1024
GROWTH_MB_MAX = 100.0
PIPELINED = 1_000
OFFER = "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAA\r\n"

Attack = Callable[[World, int], Awaitable[str]]  # It returns what was wrong, or an empty text.
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connect(world: World, count: int, sent: bytes = b"") -> AsyncIterator[list[Connection]]:
    """Open connections and send the same on each; close them afterwards."""
    connections: list[Connection] = []

    async def open_one() -> None:
        reader, writer = await asyncio.open_connection(HOST, world.port)
        connections.append((reader, writer))
        writer.write(sent)

    try:
        await asyncio.gather(*(open_one() for _ in range(count)))
        yield connections
    finally:
        for _, writer in connections:
            writer.transport.abort()


def build_head(method: str, path: str, *lines: str) -> bytes:
    """Build the head of a request; lines end in CR LF."""
    key = f"authorization: Bearer {ADMIN_KEY}\r\n"
    return f"{method} {path} HTTP/1.1\r\nhost: x\r\n{key}{''.join(lines)}\r\n".encode()


async def read_status(reader: asyncio.StreamReader) -> int:
    """Return the status of the next answer; 0 if the connection ends or nothing comes in time."""
    with suppress(OSError, asyncio.IncompleteReadError, TimeoutError, ValueError):
        async with asyncio.timeout(LATE_SECONDS):
            return int((await reader.readuntil(b"\r\n")).split()[1])
    return 0


async def expect(connections: list[Connection], *statuses: int) -> str:
    """Return what is wrong unless every connection is answered with one of the statuses."""
    got = await asyncio.gather(*(read_status(reader) for reader, _ in connections))
    wrong = [status for status in got if status not in statuses]
    return f"{len(wrong)} of {len(got)} were answered {sorted(set(wrong))}" if wrong else ""


async def send_large_heads(world: World, count: int) -> str:
    """Heads over the limit, as one value, one target, or many lines, are 431."""
    line = "x: " + "a" * HEAD_BYTES + "\r\n"
    heads = (
        build_head("GET", "/healthz", line),
        build_head("GET", "/" + "a" * HEAD_BYTES),
        build_head("GET", "/healthz", "a: b\r\n" * (HEAD_BYTES // 4)),
    )
    wrong = ""
    for head in heads:
        async with connect(world, count // 3, head) as connections:
            wrong = wrong or await expect(connections, 431)
    return wrong


async def send_half_heads(world: World, count: int) -> str:
    """Heads that never end are 408."""
    async with connect(world, count, build_head("GET", "/healthz")[:-4]) as connections:
        return await expect(connections, 408)


async def say_nothing(world: World, count: int) -> str:
    """Connections on which nothing is sent are closed."""
    async with connect(world, count) as connections:
        return await expect(connections, 408)


async def send_half_bodies(world: World, count: int) -> str:
    """Bodies that never end are 408, whether their length is known or not."""
    known = build_head("POST", "/v1/generations", "content-length: 100\r\n") + b'{"model"'
    chunked = build_head("POST", "/callbacks/apiinone/x", "transfer-encoding: chunked\r\n")
    async with (
        connect(world, count // 2, known) as some,
        connect(world, count // 2, chunked + b"5\r\nab") as others,
    ):
        wrong = await asyncio.gather(expect(some, 408), expect(others, 404, 408))
    return "".join(wrong)


async def send_ahead(world: World, count: int) -> str:
    """Many requests on a connection, sent before any answer, are answered in order."""
    paths = ["/healthz", "/nothing"]
    requests = b"".join(build_head("GET", paths[n % 2]) for n in range(PIPELINED))

    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        writer.write(requests)
        for number in range(PIPELINED):
            status = int((await reader.readuntil(b"\r\n")).split()[1])
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
            if status != (200, 404)[number % 2]:
                return f"request {number} was answered {status}"
        return ""

    async with connect(world, max(count // 20, 2)) as connections:
        wrong = await asyncio.gather(*(send(*each) for each in connections))
    return "".join(wrong)


async def offer_upgrades(world: World, count: int) -> str:
    """An offer of HTTP/2 is ignored, and the body of its request is kept."""
    body = json.dumps({"name": "offer", "scopes": ["read"]}).encode()
    head = build_head(
        *("POST", "/v1/keys", OFFER, "content-type: application/json\r\n"),
        f"content-length: {len(body)}\r\n",
    )
    async with connect(world, count, head + body) as connections:
        got = Counter(await asyncio.gather(*(read_status(reader) for reader, _ in connections)))
    wrong = got.keys() - {201, 503}  # Read well, but a busy disk may be too slow.
    return "" if got[201] and not wrong else f"they were answered {got}"


async def connect_too_often(world: World, count: int) -> str:
    """Connections over the limit are 503; once the idle ones are closed, others are served."""
    wrong = ""
    async with connect(world, CONNECTIONS_MAX), connect(world, count) as more:
        got = await asyncio.gather(*(read_status(reader) for reader, _ in more))
        if 503 not in got or set(got) - {503, 408, 0}:
            wrong = f"connections over the limit were answered {sorted(set(got))}"
    async with connect(world, 1, build_head("GET", "/healthz")) as connections:
        return wrong or await expect(connections, 200)


async def read_nothing(world: World, count: int) -> str:
    """Clients that ask for much and read nothing cost no memory for their answers."""
    assert world.process is not None
    process = Running(world.process)
    before = process.memory_mb()
    requests = build_head("GET", "/openapi.yaml") * PIPELINED
    async with connect(world, count // 4, requests):
        await asyncio.sleep(SECONDS)
        growth = process.memory_mb() - before
    return f"memory grew by {growth:.0f} MB" if growth > GROWTH_MB_MAX else ""


ATTACKS: dict[str, Attack] = {
    "large heads": send_large_heads,
    "half heads": send_half_heads,
    "silence": say_nothing,
    "half bodies": send_half_bodies,
    "requests sent ahead": send_ahead,
    "offers to upgrade": offer_upgrades,
    "too many connections": connect_too_often,
    "answers unread": read_nothing,
}


TOGETHER = "all at once"


async def run(plan: Plan) -> Outcome:
    """Run a world for each attack, and one for all of them at once; a quick run only has that."""
    count = QUICK_COUNT if plan.quick else COUNT
    labels = [TOGETHER, *([] if plan.quick and plan.only is None else ATTACKS)]

    def new_try(label: str) -> Try:
        async def run_try(folder: Path, seed: str, repeat: str) -> Outcome:
            return await attack(folder, seed, repeat, label, count)

        return Try(label, run_try)

    return await run_tries(plan, [new_try(label) for label in labels])


async def attack(folder: Path, seed: str, repeat: str, label: str, count: int) -> Outcome:
    """Run an attack, or all together, beside a client that has a connection and sends requests."""
    outcome, names = Outcome(), [label]
    if label == TOGETHER:  # Without the one whose limit would refuse what the others do.
        names = [name for name in ATTACKS if name != "too many connections"]
    async with open_world(folder, seed) as world:
        for name in ("HEAD_SECONDS", "BODY_SECONDS"):
            world.settings[f"GENHOOK_{name}"] = str(SECONDS)
        if label == "too many connections":
            world.settings["GENHOOK_CONNECTIONS_MAX"] = str(CONNECTIONS_MAX)
        await world.start()
        waits: list[float] = []
        sane = asyncio.create_task(_send_sanely(world, waits))
        wrong = await asyncio.gather(*(_run_attack(world, name, count) for name in names))
        # An attack may be over before the first answer.
        while len(waits) < SANE_MIN:  # noqa: ASYNC110  it only looks on
            await asyncio.sleep(SANE_PAUSE_SECONDS)
        sane.cancel()
        for name, text in zip(names, wrong, strict=True):
            outcome.faults[name] += count
            outcome.check(f"8 {name}", holds=not text, detail=text, repeat=repeat)
        outcome.notes[f"slowest request of a sane client in seconds, beside {label}"] = max(
            waits[:-1]
        )
        _check_sane(world, waits, outcome, repeat)
        await promises.check_stop(world, outcome, repeat)
    return outcome


async def _run_attack(world: World, name: str, count: int) -> str:
    try:
        return await ATTACKS[name](world, count)
    except (OSError, asyncio.IncompleteReadError, ValueError) as error:
        return repr(error)


async def _send_sanely(world: World, waits: list[float]) -> None:
    """Send requests one after the other, and note how long each took; infinite if it failed."""
    while True:
        began = time.monotonic()
        waits.append(float("inf"))
        with suppress(httpx.TransportError):
            if (await world.api.get("/v1/subscribers", timeout=SECONDS)).status_code == 200:
                waits[-1] = time.monotonic() - began
        await asyncio.sleep(SANE_PAUSE_SECONDS)


def _check_sane(world: World, waits: list[float], outcome: Outcome, repeat: str) -> None:
    """Check that a client that is connected was always served soon, but for its last request."""
    slow = [seconds for seconds in waits[:-1] if seconds > SANE_SECONDS_MAX]
    detail = f"{len(slow)} of {len(waits)}, up to {max(slow, default=0):.1f} s"
    outcome.check("a sane client is served", holds=not slow, detail=detail, repeat=repeat)
    outcome.check("the process lives", holds=world.is_alive, detail=world.log_end(), repeat=repeat)
    log = (world.folder / "log").read_text("utf-8", "replace").splitlines()
    line = next((line[:600] for line in log if '"exception"' in line or "Traceback" in line), "")
    outcome.check("no traceback", holds=not line, detail=line, repeat=repeat)
