"""Counts statements, pages of the write-ahead log, bytes and trees for each kind of unit.

Other programs do not change these figures. The service runs in its own process, with a driven
clock, a scripted upstream and scripted subscribers.

`python -m bench.counts FOLDER` writes the figures to FOLDER/counts.json.
"""

import asyncio
import json
import re
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from bench.machine import ROOT, python_command
from bench.meter import Cost, Meter, Transaction
from bench.plan import Figures, Plan
from service.telemetry import log
from tests.harness import Harness, opened, success_report

GENERATIONS = 1_000  # Stored first: a tree with few rows has few levels, and so few pages.
CHUNK = 100
ALONE, BATCHES = 16, 8  # Repetitions of which the average is taken: pages split now and then.
BATCH = 16
BODY_BYTES = 1_024
# Models: one subscriber, ten subscribers, one subscriber and no callbacks.
ONE, TEN, POLLED = "imagen4", "imagen4-fast", "cogview-4"
TEN_SUBSCRIBERS = 10
REPORT = "counts.json"
SETTINGS: dict[str, Any] = {"poll_rate_per_second": 1_000.0, "deadline_seconds": 86_400}

Store = Callable[[int], Awaitable[list[Transaction]]]


class Counts(msgspec.Struct):
    """The costs of one kind of unit: alone, repeatedly, and in batches."""

    alone: list[Cost]
    batches: list[Cost]

    def figures(self) -> dict[str, float]:
        """Return the average cost of one unit by the name of the figure."""
        batch = {f"batch_{name}": value for name, value in _averages(self.batches).items()}
        return {**_averages(self.alone), "trees": float(len(self.trees)), **batch}

    @property
    def trees(self) -> list[str]:
        """Every table and index that a single unit changed."""
        return sorted(frozenset[str]().union(*(cost.trees for cost in self.alone)))


def _averages(costs: Sequence[Cost]) -> dict[str, float]:
    figures = [cost.per_unit() for cost in costs]
    return {name: statistics.fmean(each[name] for each in figures) for name in figures[0]}


class Subject:
    """The service, and the units that are counted; each method returns their transactions."""

    def __init__(self, world: Harness) -> None:
        self.world = world

    @property
    def meter(self) -> Meter:
        """A meter of the service's writer."""
        return Meter(self.world.app.database)

    async def warm(self, generations: int) -> None:
        """Store the subscribers, and generations whose outcomes are delivered."""
        await self._subscribe("one", [ONE, POLLED])
        for number in range(TEN_SUBSCRIBERS):
            await self._subscribe(f"ten-{number}", [TEN])
        for start in range(0, generations, CHUNK):
            await self._call_back(await self._generate(ONE, min(CHUNK, generations - start)))
            await self.world.run(1)

    async def restart(self, trust: str) -> None:
        """Restart the service with another trust in callbacks."""
        self.world.settings = msgspec.structs.replace(self.world.settings, callback_trust=trust)
        await self.world.restart()

    async def store_callbacks(self, count: int) -> list[Transaction]:
        """Store callbacks as hints."""
        indexes = await self._generate(ONE, count)
        self._finish(indexes)
        transactions = await self._one_transaction(self._call_back(indexes))
        await self.world.run(1)
        return transactions

    async def believe_for_one(self, count: int) -> list[Transaction]:
        """Believe callbacks and store one delivery for each."""
        return await self._believe(ONE, count)

    async def believe_for_ten(self, count: int) -> list[Transaction]:
        """Believe callbacks and store ten deliveries for each."""
        return await self._believe(TEN, count)

    async def poll_ended(self, count: int) -> list[Transaction]:
        """Poll tasks that have ended and store one delivery for each."""
        indexes = await self._generate(POLLED, count)
        self._finish(indexes)
        return _select("exchanges", await self.meter.transactions(self.world.run(60)))

    async def poll_unchanged(self, count: int) -> list[Transaction]:
        """Poll tasks that are still in progress."""
        indexes = await self._generate(POLLED, count)
        transactions = await self.meter.transactions(self.world.run(60))
        self._finish(indexes)
        await self.world.run(60)
        return _select("exchanges", transactions)

    async def record_attempts(self, count: int) -> list[Transaction]:
        """Record attempts that were answered with 200."""
        await self._call_back(await self._generate(ONE, count))
        return _select("attempts", await self.meter.transactions(self.world.run(1)))

    async def _subscribe(self, name: str, models: list[str]) -> None:
        await self.world.subscribe(
            f"http://127.0.0.1:7/{name}",
            event_types=["generation.succeeded"],
            filter={"models": models},
            max_in_flight=CHUNK,
        )

    async def _generate(self, model: str, count: int) -> list[int]:
        """Submit generations one after the other; return the indexes of their create requests."""
        first = len(self.world.upstream.creates)
        for _ in range(count):
            self.world.clock.advance(0.001)
            await self.world.generate(model)
        return list(range(first, first + count))

    def _finish(self, indexes: Sequence[int]) -> None:
        """Have upstream answer polls of these tasks with their results."""
        for index in indexes:
            data = _body(index)["data"]
            self.world.upstream.tasks[data["task_id"]] = data

    async def _call_back(self, indexes: Sequence[int]) -> None:
        """Send the callbacks of these tasks, all at the same time."""
        self.world.clock.advance(1)
        calls = [self.world.call_back(_body(index), index) for index in indexes]
        assert {answer.status_code for answer in await asyncio.gather(*calls)} == {200}

    async def _believe(self, model: str, count: int) -> list[Transaction]:
        indexes = await self._generate(model, count)
        transactions = await self._one_transaction(self._call_back(indexes))
        await self.world.run(1)
        return transactions

    async def _one_transaction(self, units: Awaitable[None]) -> list[Transaction]:
        transactions = await self.meter.transactions(units)
        assert len(transactions) == 1, "concurrent units did not share a commit"
        return transactions


def _body(index: int) -> dict[str, Any]:
    """Return a callback of BODY_BYTES that reports the success of a task."""
    body = success_report(f"task{index + 1}", f"https://cdn.example/{index}.png")
    body["data"]["log"] = "x" * (BODY_BYTES - len(json.dumps({**body, "log": ""})))
    return body


def _select(table: str, transactions: Sequence[Transaction]) -> list[Transaction]:
    """Select the transactions that insert into the table; a tick does other work as well."""
    insert = re.compile(rf"INSERT INTO {table}\b")
    selected = [one for one in transactions if any(map(insert.match, one.statements))]
    assert selected, f"nothing was inserted into {table}"
    return selected


class Times(msgspec.Struct, frozen=True):
    """How often each kind of unit is counted."""

    alone: int = ALONE
    batches: int = BATCHES


async def count(folder: Path, generations: int, times: Times) -> dict[str, Counts]:
    """Count every kind of unit, by its name, in a new database below `folder`."""
    async with opened(folder, callback_trust="body", **SETTINGS) as world:
        subject = Subject(world)
        await subject.warm(generations)
        await subject.restart("confirm")
        callbacks = await _count(times, subject.store_callbacks)
        await subject.restart("body")
        return {
            "callback": callbacks,
            "outcome": await _count(times, subject.believe_for_one),
            "polled_outcome": await _count(times, subject.poll_ended),
            "poll": await _count(times, subject.poll_unchanged),
            "attempt": await _count(times, subject.record_attempts),
            # Last, because threads race for the order in which attempts of ten lanes are stored.
            "outcome_for_ten": await _count(times, subject.believe_for_ten),
        }


async def _count(times: Times, store: Store) -> Counts:
    alone = [Cost.of(await store(1), 1) for _ in range(times.alone)]
    batches = [Cost.of(await store(BATCH), BATCH) for _ in range(times.batches)]
    return Counts(alone, batches)


async def measure(plan: Plan, figures: Figures) -> None:
    """Count once, in a new process: further rounds would give the same figures."""
    folder = plan.folder / "counts"
    folder.mkdir()
    process = await asyncio.create_subprocess_exec(
        *python_command("-m", "bench.counts", str(folder)), cwd=ROOT
    )
    assert await process.wait() == 0, "the counting process failed"
    for name, counts in json.loads((folder / REPORT).read_bytes()).items():
        print(f"    trees of one {name}: {', '.join(counts['trees'])}")
        figures.add(**{f"{name}_{figure}": value for figure, value in counts["figures"].items()})


def main() -> None:
    """Count, and write the report."""
    folder = Path(sys.argv[1])
    log.configure("error")
    # Stored durations take room by their digits: make all of them 0.
    time.monotonic = time.perf_counter = lambda: 0.0
    by_name = uvloop.run(count(folder, GENERATIONS, Times()))
    report = {
        name: {"figures": counts.figures(), "trees": counts.trees}
        for name, counts in by_name.items()
    }
    (folder / REPORT).write_bytes(msgspec.json.encode(report))


if __name__ == "__main__":
    main()
