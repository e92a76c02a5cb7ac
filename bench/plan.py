"""What a measurement is given, and what it gives back."""

import math
import statistics
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Plan:
    """How long and how often, and a folder that is emptied afterwards."""

    rounds: int
    seconds: float
    folder: Path
    quick: bool

    def size(self, full: int) -> int:
        """A number of rows: a tenth of them where it is to be quick."""
        return full // 10 if self.quick else full


@dataclass
class Figures:
    """Every figure of a measurement, once for each round."""

    rounds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, **figures: float) -> None:
        """What one round gave."""
        for name, value in figures.items():
            self.rounds[name].append(value)

    def ratio(self, name: str, over: str, under: str) -> None:
        """A figure of the last round by another one of it."""
        self.rounds[name].append(self.rounds[over][-1] / self.rounds[under][-1])

    def median(self, name: str) -> float:
        """The middle round; not a number where there is none."""
        found = self.rounds.get(name)
        return statistics.median(found) if found else math.nan


Measure = Callable[[Plan, Figures], Awaitable[None]]
