"""The plan that a measurement gets, and the figures that it fills."""

import math
import statistics
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Plan:
    """How often and for how long to measure, and a folder that is deleted afterwards.

    `rows` is how many generations there are when old ones are deleted.
    """

    rounds: int
    seconds: float
    folder: Path
    quick: bool
    rows: int

    def size(self, full: int) -> int:
        """Return a number of rows: all of `full`, or a tenth of them in a quick run."""
        return full // 10 if self.quick else full


@dataclass
class Figures:
    """The figures of a measurement, each with one value for every round."""

    rounds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, **figures: float) -> None:
        """Add the values of one round."""
        for name, value in figures.items():
            self.rounds[name].append(value)

    def ratio(self, name: str, over: str, under: str) -> None:
        """Divide two figures of the last round, and add the quotient as a figure."""
        self.rounds[name].append(self.rounds[over][-1] / self.rounds[under][-1])

    def median(self, name: str) -> float:
        """Return the median over the rounds; NaN if there is no such figure."""
        values = self.rounds.get(name)
        return statistics.median(values) if values else math.nan


Measure = Callable[[Plan, Figures], Awaitable[None]]
