"""What a suite did, and what it found."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Broken:
    """A promise that did not hold: which, what was seen, and the command that shows it again."""

    promise: str
    seen: str
    again: str = ""


@dataclass
class Outcome:
    """Tries, faults by kind, checks made, promises broken; `not_run` says why nothing was tried.

    `notes` are figures that are reported and not judged, by name.
    """

    tries: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    checks: int = 0
    broken: list[Broken] = field(default_factory=list)
    not_run: str | None = None
    notes: dict[str, float | str] = field(default_factory=dict)

    def add(self, other: "Outcome") -> None:
        """Count what another try did and found as well."""
        self.tries += other.tries
        self.faults += other.faults
        self.checks += other.checks
        self.broken += other.broken
        self.notes |= other.notes

    def check(self, promise: str, *, holds: bool, seen: str = "", again: str = "") -> bool:
        """Count a check, and note what was seen where the promise does not hold."""
        self.checks += 1
        if not holds:
            self.broken.append(Broken(promise, seen, again))
        return holds
