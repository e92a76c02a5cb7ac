"""The disk: full, failing, read-only, slow, torn by a power failure, locked, and damaged."""

import asyncio
import hashlib
import random
import re
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from chaos import load, plan, promises
from chaos.faults import Disk, build
from chaos.outcome import Outcome
from chaos.world import SERVE, World, opened
from service.store.sqlite import schema

GENERATIONS, LOAD_SECONDS = 14, 2.0
FAULTS = ("enospc", "eio", "erofs", "eiosync")
SLOW_US = (2_000, 50_000, 1_000_000)
SLOW_SETTLE_SECONDS = 90.0
TORN_TRIES, QUICK_TORN = 8, 1
DIE_SECONDS = 8.0
LOCKED_SECONDS = 7.0  # Longer than SQLite waits for a lock.
SENTENCE = re.compile(r"genhook: [^\n]+\.\n")

Attempt = Callable[[Path, str, str], Awaitable[Outcome]]


async def run(of: plan.Plan) -> Outcome:
    """Every fault of the disk; some of them where it is to be quick."""
    shim = await asyncio.to_thread(build, of.folder)
    if shim is None:
        return Outcome(not_run="no C compiler: install one, or the package ziglang")
    lots = random.Random(of.seed)
    tries = [plan.Try(f"{fault} for a while", _failing(shim, fault)) for fault in FAULTS]
    tries += [plan.Try(f"syncs of {us / 1_000:g} ms", _slow(shim, us)) for us in SLOW_US]
    tries += [plan.Try("locked by another process", _locked)]
    torn = [plan.Try(f"torn {number}", _torn(shim)) for number in range(TORN_TRIES)]
    damaged = [plan.Try(f"damaged: {name}", _damaged(name)) for name in DAMAGES]
    damaged += [plan.Try(f"{fault} at the start", _refused(shim, fault)) for fault in FAULTS[1:3]]
    if of.quick and of.only is None:
        tries, torn = lots.sample(tries[:-2], 2), torn[:QUICK_TORN]
    return await plan.run(of, [*torn, *tries, *damaged])


def _failing(shim: Path, fault: str) -> Attempt:
    """The disk fails under load, and is well again: the service goes on by itself."""

    async def attempt(folder: Path, seed: str, again: str) -> Outcome:
        judged = Outcome()
        lots = random.Random(seed)
        async with opened(folder, seed, lots.choice(("confirm", "body"))) as world:
            disk = Disk(shim, world.path)
            await world.start(SERVE, **disk.variables())
            clients = world.at_once(load.run(world, GENERATIONS, LOAD_SECONDS))
            for _ in range(2):
                await asyncio.sleep(lots.uniform(0.4, 1.2))
                disk.say(fault)
                judged.faults[f"disk: {fault}"] += 1
                await asyncio.sleep(lots.uniform(0.5, 1.5))
                if lots.random() < 0.5:
                    await _die_of_it(world, judged, again)
                    disk.say("none")
                    world.spawn(SERVE, **disk.variables())
                disk.say("none")
            await _rest(world, clients, judged, again)
            felt = "database failed" in (folder / "log").read_text("utf-8", "replace")
            judged.check("the fault was felt", holds=felt, seen=fault, again=again)
        return judged

    return attempt


async def _die_of_it(world: World, judged: Outcome, again: str) -> None:
    """Kill it while the disk fails: what was acknowledged meanwhile must be there."""
    world.kill()
    judged.faults["kill while the disk fails"] += 1
    promises.look(world, world.copy(f"failing{world.restarts}"), judged, again)
    await world.buried()


def _slow(shim: Path, microseconds: int) -> Attempt:
    async def attempt(folder: Path, seed: str, again: str) -> Outcome:
        judged = Outcome()
        async with opened(folder, seed) as world:
            disk = Disk(shim, world.path)
            disk.say(f"slow {microseconds}")
            judged.faults[f"disk: syncs take {microseconds / 1_000:g} ms"] += 1
            await world.start(SERVE, **disk.variables())
            clients = world.at_once(load.run(world, GENERATIONS, LOAD_SECONDS))
            await _rest(world, clients, judged, again, SLOW_SETTLE_SECONDS)
        return judged

    return attempt


async def _locked(folder: Path, seed: str, again: str) -> Outcome:
    """Another process holds the database's lock for longer than anybody waits."""
    judged = Outcome()
    async with opened(folder, seed) as world:
        await world.start()
        clients = world.at_once(load.run(world, GENERATIONS, LOAD_SECONDS))
        await asyncio.sleep(0.8)
        with _holding(world.path):
            judged.faults["database locked by another process"] += 1
            await asyncio.sleep(LOCKED_SECONDS)
        await _rest(world, clients, judged, again)
    return judged


@contextmanager
def _holding(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=5)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


async def _rest(
    world: World,
    clients: "asyncio.Task[None]",
    judged: Outcome,
    again: str,
    seconds: float = promises.SETTLE_SECONDS,
) -> None:
    """Everything ends, in the same process, and every promise holds."""
    await clients
    await world.provider.settle()
    await promises.settle(world, seconds)
    judged.check(
        "it recovers by itself", holds=world.is_alive, seen=world.last_words(), again=again
    )
    status = await world.stop()
    judged.check("it ends when asked to", holds=status == 0, seen=f"status {status}", again=again)
    promises.judge(world, judged, again)
    judged.faults += world.provider.faults + +world.audience.faults


def _torn(shim: Path) -> Attempt:
    """The machine dies just before a sync: what that sync was about may be anything."""

    async def attempt(folder: Path, seed: str, again: str) -> Outcome:
        judged, lots = Outcome(), random.Random(seed)
        async with opened(folder, seed, lots.choice(("confirm", "body"))) as world:
            disk = Disk(shim, world.path)
            world.spawn(SERVE, **disk.variables())
            clients = world.at_once(load.run(world, GENERATIONS, LOAD_SECONDS))
            await asyncio.sleep(lots.uniform(0.8, 2.2))
            disk.say(f"die {lots.randint(1, 6)}")
            if await world.ended(DIE_SECONDS) is None:
                world.kill()  # It did not sync so often.
            judged.faults["bytes torn that were not synced"] += disk.tear(lots)
            judged.faults["power failure"] += 1
            before = promises.look(world, world.copy("torn"), judged, again)
            await world.buried()
            await world.start()
            await _rest(world, clients, judged, again)
            promises.not_again(world, before, judged, again)
        return judged

    return attempt


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


def _damaged(name: str) -> Attempt:
    """A file that is no good is refused in a sentence, and left as it is."""

    async def attempt(folder: Path, seed: str, again: str) -> Outcome:
        judged = Outcome()
        async with opened(folder, seed) as world:
            await world.start()
            await world.stop()
            for suffix in ("-wal", "-shm"):
                Path(f"{world.path}{suffix}").unlink(missing_ok=True)
            DAMAGES[name](world.path)
            judged.faults[f"database damaged: {name}"] += 1
            before = _sha(world.path)
            await _refuses(world, judged, again)
            judged.check(
                "the file is left alone", holds=_sha(world.path) == before, seen=name, again=again
            )
        return judged

    return attempt


def _refused(shim: Path, fault: str) -> Attempt:
    """A disk that fails from the start: refused, too."""

    async def attempt(folder: Path, seed: str, again: str) -> Outcome:
        judged = Outcome()
        async with opened(folder, seed) as world:
            disk = Disk(shim, world.path)
            disk.say(fault)
            judged.faults[f"disk at the start: {fault}"] += 1
            await _refuses(world, judged, again, **disk.variables())
        return judged

    return attempt


async def _refuses(world: World, judged: Outcome, again: str, **extra: str) -> None:
    (world.folder / "log").unlink(missing_ok=True)
    world.spawn(SERVE, **extra)
    status = await world.ended(20)
    if status is None:
        world.kill()
    said = world.last_words()
    judged.check(
        "a database that is no good is refused", holds=status == 1, seen=f"{status}", again=again
    )
    judged.check(
        "refused in one sentence", holds=bool(SENTENCE.fullmatch(said)), seen=said, again=again
    )


def _sha(path: Path) -> str:
    with suppress(IsADirectoryError):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return "a folder"
