"""The plan of a suite, and how its tries run side by side."""

import asyncio
import json
import os
import shutil
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.machine import ROOT, python_command
from chaos.outcome import Outcome

SIDE_BY_SIDE = 4


class UnknownTryError(Exception):
    """`--only` names no try of the suite; the message lists those that it has."""


@dataclass(frozen=True)
class Plan:
    """The seed of all randomness, and the minutes of suites that have no end of their own.

    `only`, if set, is the label of the single try to run.
    """

    seed: int
    quick: bool
    minutes: float
    folder: Path
    suite: str = ""
    only: str | None = None
    slots: asyncio.Semaphore | None = None  # Shared by all suites that run side by side.

    def for_suite(self, suite: str) -> "Plan":
        """Return the plan for one suite, with its own folder."""
        return replace(self, suite=suite, folder=self.folder / suite)

    def repeat_command(self, label: str) -> str:
        """Return the command that repeats one try."""
        return f"python -m chaos {self.suite} --seed {self.seed} --only '{label}'"


@dataclass(frozen=True)
class Try:
    """A label, and a function of a folder, a seed and the command that repeats the try."""

    label: str
    run: Callable[[Path, str, str], Awaitable[Outcome]]


async def run_module(name: str, key: str, *arguments: str) -> tuple[list[dict[str, Any]], bool]:
    """Run a module in a process of its own; return its results, and whether it ended well.

    It prints each result as a line of JSON that begins with this key. Others are lines of the log.
    """
    process = await asyncio.create_subprocess_exec(
        *python_command("-m", name, *arguments),
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},  # The order of a set repeats, too.
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    output, _ = await process.communicate()
    lines = output.decode().splitlines()
    results = [json.loads(line) for line in lines if line.startswith(f'{{"{key}"')]
    return results, process.returncode == 0 and bool(results)


async def run_tries(plan: Plan, tries: Sequence[Try], side_by_side: int = SIDE_BY_SIDE) -> Outcome:
    """Run the tries, some at a time; a try that raises counts as a broken promise."""
    total = Outcome()
    slots = plan.slots or asyncio.Semaphore(side_by_side)
    selected = [each for each in tries if plan.only in (None, each.label)]
    if not selected:
        labels = "".join(f"\n  {each.label}" for each in tries)
        raise UnknownTryError(f"{plan.suite} has no try '{plan.only}'. It has:{labels}")

    async def run_one(number: int, each: Try) -> None:
        async with slots:
            total.add(await _run_try(plan, number, each))

    await asyncio.gather(*(run_one(number, each) for number, each in enumerate(selected)))
    return total


async def _run_try(plan: Plan, number: int, each: Try) -> Outcome:
    repeat = plan.repeat_command(each.label)
    try:
        outcome = await each.run(plan.folder / str(number), f"{plan.seed} {each.label}", repeat)
    except Exception as error:  # noqa: BLE001  it is reported, and the other tries go on
        outcome = Outcome()
        where = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {error}"
        outcome.check("the try ran to its end", holds=False, detail=detail, repeat=repeat)
    outcome.tries += 1
    if not outcome.broken:  # Otherwise the files stay for inspection.
        shutil.rmtree(plan.folder / str(number), ignore_errors=True)
    return outcome
