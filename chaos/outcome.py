"""The result of a try or a suite."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Broken:
    """A promise that was broken, what shows it, and the command that repeats the try."""

    promise: str
    detail: str
    repeat: str = ""


@dataclass
class Outcome:
    """The tries, the faults by kind, the checks, and the broken promises.

    `not_run` is the reason why a suite could not run. `notes` are figures by name that are
    reported but not checked.
    """

    tries: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    checks: int = 0
    broken: list[Broken] = field(default_factory=list)
    not_run: str | None = None
    notes: dict[str, float | str] = field(default_factory=dict)

    def add(self, other: "Outcome") -> None:
        """Add another outcome to this one."""
        self.tries += other.tries
        self.faults += other.faults
        self.checks += other.checks
        self.broken += other.broken
        self.notes |= other.notes

    def check(self, promise: str, *, holds: bool, detail: str = "", repeat: str = "") -> bool:
        """Count a check, and record the promise as broken unless it holds."""
        self.checks += 1
        if not holds:
            self.broken.append(Broken(promise, detail, repeat))
        return holds
