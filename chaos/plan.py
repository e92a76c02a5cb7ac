"""What a suite is asked for, and how its tries are run side by side."""

import asyncio
import shutil
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from chaos.outcome import Outcome

SIDE_BY_SIDE = 4


@dataclass(frozen=True)
class Plan:
    """`seed` draws everything; `minutes` bounds a full run of a suite that could go on for ever.

    `only`, if it is set, is the label of the one try to make.
    """

    seed: int
    quick: bool
    minutes: float
    folder: Path
    suite: str = ""
    only: str | None = None
    slots: asyncio.Semaphore | None = None  # Where suites run beside each other: for all of them.

    def of(self, suite: str) -> "Plan":
        """The same, for one suite, in a folder of its own."""
        return replace(self, suite=suite, folder=self.folder / suite)

    def again(self, label: str) -> str:
        """What to run to see a try again."""
        return f"python -m chaos {self.suite} --seed {self.seed} --only '{label}'"


@dataclass(frozen=True)
class Try:
    """One try: its label, and what it does with a folder, its seed and the command to repeat it."""

    label: str
    attempt: Callable[[Path, str, str], Awaitable[Outcome]]


async def run(of: Plan, tries: Sequence[Try], side_by_side: int = SIDE_BY_SIDE) -> Outcome:
    """Every try, some at a time; one that ends by an exception counts as a broken promise."""
    total = Outcome()
    slots = of.slots or asyncio.Semaphore(side_by_side)
    wanted = [one for one in tries if of.only in (None, one.label)]
    assert wanted, f"no try is called {of.only}"

    async def one(number: int, made: Try) -> None:
        async with slots:
            total.add(await _attempt(of, number, made))

    await asyncio.gather(*(one(number, made) for number, made in enumerate(wanted)))
    return total


async def _attempt(plan: Plan, number: int, of: Try) -> Outcome:
    again = plan.again(of.label)
    try:
        found = await of.attempt(plan.folder / str(number), f"{plan.seed} {of.label}", again)
    except Exception as error:  # noqa: BLE001  it is told, and the others go on
        found = Outcome()
        where = traceback.extract_tb(error.__traceback__)[-1]
        seen = f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {error}"
        found.check("the try came to its end", holds=False, seen=seen, again=again)
    found.tries += 1
    if not found.broken:  # Else the files stay, to be looked at.
        shutil.rmtree(plan.folder / str(number), ignore_errors=True)
    return found
