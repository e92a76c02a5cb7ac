"""The disk: full, failing, read-only, slow, torn by a power failure, locked or damaged."""

import asyncio
import hashlib
import random
import re
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from chaos import load, promises
from chaos.faults import Disk, build
from chaos.outcome import Outcome
from chaos.plan import Plan, Try, run_tries
from chaos.world import END_SECONDS, LISTEN_SECONDS, SERVE, TICK_SECONDS, World, open_world
from service.store.sqlite import schema

GENERATIONS, LOAD_SECONDS = 14, 2.0
FAULTS = ("enospc", "eio", "erofs", "eiosync")
SLOW_US = (2_000, 50_000, 1_000_000)
SLOW_SETTLE_SECONDS = 90.0
TORN_TRIES, QUICK_TORN = 8, 1
DIE_SECONDS = 8.0
LOCKED_SECONDS = 7.0  # Longer than SQLite waits for a lock.
SENTENCE = re.compile(r"genhook: [^\n]+\.\n")

Run = Callable[[Path, str, str], Awaitable[Outcome]]


async def run(plan: Plan) -> Outcome:
    """Try every fault of the disk, or some of them in a quick run."""
    library = await asyncio.to_thread(build, plan.folder)
    if library is None:
        return Outcome(not_run="no C compiler: install one, or the package ziglang")
    rng = random.Random(plan.seed)
    tries = [Try(f"{fault} for a while", _failing(library, fault)) for fault in FAULTS]
    tries += [Try(f"syncs of {us / 1_000:g} ms", _slow(library, us)) for us in SLOW_US]
    tries += [Try("locked by another process", _locked)]
    torn = [Try(f"torn {number}", _torn(library)) for number in range(TORN_TRIES)]
    damaged = [Try(f"damaged: {name}", _damaged(name)) for name in DAMAGES]
    damaged += [
        Try(f"{fault} at the start", _failing_start(library, fault)) for fault in FAULTS[1:3]
    ]
    if plan.quick and plan.only is None:
        tries, torn = rng.sample(tries[:-2], 2), torn[:QUICK_TORN]
    return await run_tries(plan, [*torn, *tries, *damaged])


def _failing(library: Path, fault: str) -> Run:
    """The disk fails under load and recovers: the service must recover by itself."""

    async def run_try(folder: Path, seed: str, repeat: str) -> Outcome:
        outcome = Outcome()
        rng = random.Random(seed)
        async with open_world(folder, seed, rng.choice(("confirm", "body"))) as world:
            disk = Disk(library, world.path)
            await world.start(SERVE, **disk.variables())
            clients = world.run_beside(load.run(world, GENERATIONS, LOAD_SECONDS))
            for _ in range(2):
                await asyncio.sleep(rng.uniform(0.4, 1.2))
                disk.set_fault(fault)
                outcome.faults[f"disk: {fault}"] += 1
                await _wait_for_failure(world)
                await asyncio.sleep(rng.uniform(0.5, 1.5))
                if rng.random() < 0.5:
                    await _kill(world, outcome, repeat)
                    disk.set_fault("none")
                    # It must have started before the disk fails again: a start on such a disk ends.
                    await world.start(SERVE, **disk.variables())
                disk.set_fault("none")
            await _check_recovery(world, clients, outcome, repeat)
            is_logged = _has_failed(world)
            outcome.check("the fault was logged", holds=is_logged, detail=fault, repeat=repeat)
        return outcome

    return run_try


async def _wait_for_failure(world: World) -> None:
    """Wait until a write has failed: clients send writes all the time, but may be slow."""
    ends_at = time.monotonic() + END_SECONDS
    while not _has_failed(world) and time.monotonic() < ends_at:  # noqa: ASYNC110  it looks on
        await asyncio.sleep(TICK_SECONDS)


def _has_failed(world: World) -> bool:
    return "database failed" in (world.folder / "log").read_text("utf-8", "replace")


async def _kill(world: World, outcome: Outcome, repeat: str) -> None:
    """Kill the service while the disk fails: what it acknowledged must be stored."""
    world.kill()
    outcome.faults["kill while the disk fails"] += 1
    promises.check_files(world, world.copy(f"failing{world.restarts}"), outcome, repeat)
    await world.drain_connections()


def _slow(library: Path, microseconds: int) -> Run:
    async def run_try(folder: Path, seed: str, repeat: str) -> Outcome:
        outcome = Outcome()
        async with open_world(folder, seed) as world:
            disk = Disk(library, world.path)
            disk.set_fault(f"slow {microseconds}")
            outcome.faults[f"disk: syncs take {microseconds / 1_000:g} ms"] += 1
            await world.start(SERVE, **disk.variables())
            clients = world.run_beside(load.run(world, GENERATIONS, LOAD_SECONDS))
            await _check_recovery(world, clients, outcome, repeat, SLOW_SETTLE_SECONDS)
        return outcome

    return run_try


async def _locked(folder: Path, seed: str, repeat: str) -> Outcome:
    """Another process holds the database's lock for longer than the service waits."""
    outcome = Outcome()
    async with open_world(folder, seed) as world:
        await world.start()
        clients = world.run_beside(load.run(world, GENERATIONS, LOAD_SECONDS))
        await asyncio.sleep(0.8)
        with _lock(world.path):
            outcome.faults["database locked by another process"] += 1
            await asyncio.sleep(LOCKED_SECONDS)
        await _check_recovery(world, clients, outcome, repeat)
    return outcome


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=5)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


async def _check_recovery(
    world: World,
    clients: "asyncio.Task[None]",
    outcome: Outcome,
    repeat: str,
    seconds: float = promises.SETTLE_SECONDS,
) -> None:
    """Check that the same process finishes all work, and that every promise holds."""
    await clients
    await world.provider.settle()
    await promises.wait_until_done(world, seconds)
    outcome.check(
        "the service recovers by itself",
        holds=world.is_alive,
        detail=world.log_end(),
        repeat=repeat,
    )
    await promises.check_stop(world, outcome, repeat)
    promises.check_world(world, outcome, repeat)
    outcome.faults += world.provider.faults + +world.subscribers.faults


def _torn(library: Path) -> Run:
    """The power fails just before a sync: bytes that were not synced may be anything."""

    async def run_try(folder: Path, seed: str, repeat: str) -> Outcome:
        outcome, rng = Outcome(), random.Random(seed)
        async with open_world(folder, seed, rng.choice(("confirm", "body"))) as world:
            disk = Disk(library, world.path)
            world.spawn(SERVE, **disk.variables())
            clients = world.run_beside(load.run(world, GENERATIONS, LOAD_SECONDS))
            await asyncio.sleep(rng.uniform(0.8, 2.2))
            disk.set_fault(f"die {rng.randint(1, 6)}")
            if await world.wait_for_exit(DIE_SECONDS) is None:
                world.kill()  # There were fewer syncs than that.
            outcome.faults["bytes torn that were not synced"] += disk.tear(rng)
            outcome.faults["power failure"] += 1
            snapshot = promises.check_files(world, world.copy("torn"), outcome, repeat)
            await world.drain_connections()
            await world.start()
            await _check_recovery(world, clients, outcome, repeat)
            promises.check_not_repeated(world, snapshot, outcome, repeat)
        return outcome

    return run_try


def _no_header(path: Path) -> None:
    with path.open("rb+") as file:
        file.write(b"this is no database at all" * 8)


def _cut_short(path: Path) -> None:
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size // 2 + 100)


def _from_the_future(path: Path) -> None:
    with closing(sqlite3.connect(path)) as file:
        file.execute(f"PRAGMA user_version={schema.latest() + 1}")


def _no_schema(path: Path) -> None:
    with path.open("rb+") as file:
        file.seek(100)
        file.write(bytes(3_996))


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "no header": _no_header,
    "cut short": _cut_short,
    "from the future": _from_the_future,
    "no schema page": _no_schema,
    "a folder": _folder,
}


def _damaged(name: str) -> Run:
    """The service must refuse a damaged file in one sentence, and leave it unchanged."""

    async def run_try(folder: Path, seed: str, repeat: str) -> Outcome:
        outcome = Outcome()
        async with open_world(folder, seed) as world:
            await world.start()
            await world.stop()
            for suffix in ("-wal", "-shm"):
                Path(f"{world.path}{suffix}").unlink(missing_ok=True)
            DAMAGES[name](world.path)
            outcome.faults[f"database damaged: {name}"] += 1
            digest = _sha(world.path)
            await _check_refusal(world, outcome, repeat)
            is_equal = _sha(world.path) == digest
            outcome.check("the file is unchanged", holds=is_equal, detail=name, repeat=repeat)
        return outcome

    return run_try


def _failing_start(library: Path, fault: str) -> Run:
    """The service must refuse to start on a failing disk, too."""

    async def run_try(folder: Path, seed: str, repeat: str) -> Outcome:
        outcome = Outcome()
        async with open_world(folder, seed) as world:
            disk = Disk(library, world.path)
            disk.set_fault(fault)
            outcome.faults[f"disk at the start: {fault}"] += 1
            await _check_refusal(world, outcome, repeat, **disk.variables())
        return outcome

    return run_try


async def _check_refusal(world: World, outcome: Outcome, repeat: str, **extra: str) -> None:
    (world.folder / "log").unlink(missing_ok=True)
    world.spawn(SERVE, **extra)
    status = await world.wait_for_exit(LISTEN_SECONDS)
    if status is None:
        world.kill()
    log = world.log_end()
    is_sentence = bool(SENTENCE.fullmatch(log))
    detail = f"status {status}"
    outcome.check("the service refuses to start", holds=status == 1, detail=detail, repeat=repeat)
    outcome.check("it says why in one sentence", holds=is_sentence, detail=log, repeat=repeat)


def _sha(path: Path) -> str:
    with suppress(IsADirectoryError):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return "a folder"
