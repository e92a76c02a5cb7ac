"""Counts what units cost the database: statements, pages of its log, bytes, and trees.

No other program changes these figures. The service runs in a process of its own: its clock is
driven, upstream and subscribers are scripted.

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

from bench.machine import ROOT, python
from bench.meter import Cost, Meter, Transaction
from bench.plan import Figures, Plan
from service.telemetry import log
from tests.harness import Harness, opened, success_report

GENERATIONS = 1_000  # Stored before anything is counted: trees need their depth.
CHUNK = 100
ALONE, BATCHES = 16, 8  # How often each unit is counted: pages split now and then.
BATCH = 16
BODY_BYTES = 1_024
ONE, TEN, POLLED = "imagen4", "imagen4-fast", "cogview-4"  # Models, by who wants their outcomes.
TEN_SUBSCRIBERS = 10
REPORT = "counts.json"
SETTINGS: dict[str, Any] = {"poll_rate_per_second": 1_000.0, "deadline_seconds": 86_400}

Unit = Callable[[int], Awaitable[list[Transaction]]]


class Counted(msgspec.Struct):
    """What a unit costs alone, some times over, and in batches."""

    alone: list[Cost]
    batches: list[Cost]

    def figures(self) -> dict[str, float]:
        """Every figure of one unit by its name, on average."""
        batch = {f"batch_{name}": value for name, value in _averages(self.batches).items()}
        return {**_averages(self.alone), "trees": float(len(self.trees)), **batch}

    @property
    def trees(self) -> list[str]:
        """Every table and index that the unit changed alone."""
        return sorted(frozenset[str]().union(*(cost.trees for cost in self.alone)))


def _averages(costs: Sequence[Cost]) -> dict[str, float]:
    figures = [cost.each() for cost in costs]
    return {name: statistics.fmean(one[name] for one in figures) for name in figures[0]}


class Subject:
    """The service, and the units whose cost is counted."""

    def __init__(self, world: Harness) -> None:
        self.world = world

    @property
    def meter(self) -> Meter:
        """Watches the service's writer."""
        return Meter(self.world.app.database)

    async def warm(self, generations: int) -> None:
        """Store subscribers, and generations whose outcomes were delivered."""
        await self._subscribe("one", [ONE, POLLED])
        for number in range(TEN_SUBSCRIBERS):
            await self._subscribe(f"ten-{number}", [TEN])
        for start in range(0, generations, CHUNK):
            await self._call_back(await self._generate(ONE, min(CHUNK, generations - start)))
            await self.world.run(1)

    async def trust(self, trust: str) -> None:
        """Start the service anew with this trust in callbacks."""
        self.world.settings = msgspec.structs.replace(self.world.settings, callback_trust=trust)
        await self.world.restart()

    async def callbacks(self, count: int) -> list[Transaction]:
        """Store callbacks that are hints."""
        indexes = await self._generate(ONE, count)
        self._finish(indexes)
        stored = await self._in_one(self._call_back(indexes))
        await self.world.run(1)
        return stored

    async def outcomes(self, count: int) -> list[Transaction]:
        """Believe callbacks, each with one delivery."""
        return await self._believe(ONE, count)

    async def outcomes_for_ten(self, count: int) -> list[Transaction]:
        """Believe callbacks, each with ten deliveries."""
        return await self._believe(TEN, count)

    async def polled_outcomes(self, count: int) -> list[Transaction]:
        """Ask about tasks that have ended, each with one delivery."""
        indexes = await self._generate(POLLED, count)
        self._finish(indexes)
        return _into("exchanges", await self.meter.transactions(self.world.run(60)))

    async def polls(self, count: int) -> list[Transaction]:
        """Ask about tasks that upstream still works on."""
        indexes = await self._generate(POLLED, count)
        polls = await self.meter.transactions(self.world.run(60))
        self._finish(indexes)
        await self.world.run(60)
        return _into("exchanges", polls)

    async def attempts(self, count: int) -> list[Transaction]:
        """Record attempts that were answered with 200."""
        await self._call_back(await self._generate(ONE, count))
        return _into("attempts", await self.meter.transactions(self.world.run(1)))

    async def _subscribe(self, name: str, models: list[str]) -> None:
        await self.world.subscribe(
            f"http://127.0.0.1:7/{name}",
            event_types=["generation.succeeded"],
            filter={"models": models},
            max_in_flight=CHUNK,
        )

    async def _generate(self, model: str, count: int) -> list[int]:
        """Have upstream take tasks, one after the other; their indexes among its creates."""
        first = len(self.world.upstream.creates)
        for _ in range(count):
            self.world.clock.advance(0.001)
            await self.world.generate(model)
        return list(range(first, first + count))

    def _finish(self, indexes: Sequence[int]) -> None:
        """End the tasks, so that upstream answers questions with their results."""
        for index in indexes:
            data = _body(index)["data"]
            self.world.upstream.tasks[data["task_id"]] = data

    async def _call_back(self, indexes: Sequence[int]) -> None:
        """Send the callbacks of these tasks, all at once."""
        self.world.clock.advance(1)
        calls = [self.world.call_back(_body(index), index) for index in indexes]
        assert {answer.status_code for answer in await asyncio.gather(*calls)} == {200}

    async def _believe(self, model: str, count: int) -> list[Transaction]:
        indexes = await self._generate(model, count)
        believed = await self._in_one(self._call_back(indexes))
        await self.world.run(1)
        return believed

    async def _in_one(self, units: Awaitable[None]) -> list[Transaction]:
        transactions = await self.meter.transactions(units)
        assert len(transactions) == 1, "units that came at once did not share a commit"
        return transactions


def _body(index: int) -> dict[str, Any]:
    """A callback of BODY_BYTES that reports the success of a task."""
    body = success_report(f"task{index + 1}", f"https://cdn.example/{index}.png")
    body["data"]["log"] = "x" * (BODY_BYTES - len(json.dumps({**body, "log": ""})))
    return body


def _into(table: str, transactions: Sequence[Transaction]) -> list[Transaction]:
    """Those that insert into the table: a tick delivers, and cleans up once an hour, as well."""
    insert = re.compile(rf"INSERT INTO {table}\b")
    inserting = [one for one in transactions if any(map(insert.match, one.statements))]
    assert inserting, f"nothing was inserted into {table}"
    return inserting


class Times(msgspec.Struct, frozen=True):
    """How often each unit is counted."""

    alone: int = ALONE
    batches: int = BATCHES


async def count(folder: Path, generations: int, times: Times) -> dict[str, Counted]:
    """The cost of every unit by its name, in a new database below `folder`."""
    async with opened(folder, callback_trust="body", **SETTINGS) as world:
        subject = Subject(world)
        await subject.warm(generations)
        await subject.trust("confirm")
        units = {"callback": await _count(times, subject.callbacks)}
        await subject.trust("body")
        return units | {
            "outcome": await _count(times, subject.outcomes),
            "polled_outcome": await _count(times, subject.polled_outcomes),
            "poll": await _count(times, subject.polls),
            "attempt": await _count(times, subject.attempts),
            # Last: threads race for the order in which the attempts of ten lanes are stored.
            "outcome_for_ten": await _count(times, subject.outcomes_for_ten),
        }


async def _count(times: Times, unit: Unit) -> Counted:
    alone = [Cost.of(await unit(1), 1) for _ in range(times.alone)]
    batches = [Cost.of(await unit(BATCH), BATCH) for _ in range(times.batches)]
    return Counted(alone, batches)


async def measure(plan: Plan, figures: Figures) -> None:
    """Count once: further rounds would give the same."""
    folder = plan.folder / "counts"
    folder.mkdir()
    process = await asyncio.create_subprocess_exec(
        *python("-m", "bench.counts", str(folder)), cwd=ROOT
    )
    assert await process.wait() == 0, "the process that counts failed"
    for name, unit in json.loads((folder / REPORT).read_bytes()).items():
        print(f"    trees of one {name}: {', '.join(unit['trees'])}")
        figures.add(**{f"{name}_{figure}": value for figure, value in unit["figures"].items()})


def main() -> None:
    """Count, and write what was counted."""
    folder = Path(sys.argv[1])
    log.configure("error")
    # Stored durations are all 0: their digits take room. uvloop has a clock of its own.
    time.monotonic = time.perf_counter = lambda: 0.0
    counted = uvloop.run(count(folder, GENERATIONS, Times()))
    report = {
        name: {"figures": unit.figures(), "trees": unit.trees} for name, unit in counted.items()
    }
    (folder / REPORT).write_bytes(msgspec.json.encode(report))


if __name__ == "__main__":
    main()
