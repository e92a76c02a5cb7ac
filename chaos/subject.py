"""`genhook serve` that kills itself at a named commit, and whose clock can be moved.

CHAOS_POINT    "before submit._record 2": kill -9 just before the 2nd commit with that unit in it;
               "after" is just after it, before anybody is told. The unit `migrate` is a migration.
CHAOS_REACHED  file that gets a line for the point where it died, and one for each unit committed.
CHAOS_OFFSET   file that holds milliseconds by which the wall clock is off.
"""

import functools
import os
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from service.model import clock

OFFSET_BYTES = 24


def unit_name(unit: Any) -> str:
    """What a unit of work is called here: its module below service, and its own name."""
    while isinstance(unit, functools.partial):
        unit = unit.func
    name = f"{unit.__module__}.{unit.__qualname__}"
    return name.removeprefix("service.").replace("<locals>.", "")


class Fate:
    """Where this process dies, and what it has committed so far."""

    def __init__(self, point: str, reached: str) -> None:
        self.when, self.unit, times = (point or "never - 0").split()
        self.left = int(times)
        self._file = os.open(reached, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._seen: set[str] = set()

    def meet(self, names: set[str]) -> bool:
        """True if this commit is the one."""
        for name in names - self._seen:
            self._seen.add(name)
            os.write(self._file, f"unit {name}\n".encode())
        if self.unit in names:
            self.left -= 1
            return self.left == 0
        return False

    def die(self, when: str) -> None:
        """End here, if this is the side of the commit that was named."""
        if when == self.when:
            os.write(self._file, f"died {when} {self.unit}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)


class Watched:
    """A connection whose COMMIT is a point to die at."""

    def __init__(self, connection: sqlite3.Connection, fate: Fate) -> None:
        self._connection = connection
        self._fate = fate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, sql: str) -> sqlite3.Cursor:
        """As the connection does."""
        meets = sql == "COMMIT" and self._fate.meet({"migrate"})
        if meets:
            self._fate.die("before")
        cursor = self._connection.execute(sql)
        if meets:
            self._fate.die("after")
        return cursor


def wrap_commits(fate: Fate) -> None:
    """Put the point around the commits of the service."""
    from service.store.sqlite import database, schema  # noqa: PLC0415  once the clock is wrapped

    real_commit: Callable[..., Any] = database._commit_group  # noqa: SLF001  it is attacked
    real_migrate: Callable[..., Any] = schema.migrate

    def commit_group(connection: sqlite3.Connection, items: Sequence[Any], now: int) -> Any:
        meets = fate.meet({unit_name(item.unit) for item in items})
        if meets:
            fate.die("before")
        after = real_commit(connection, items, now)
        if meets:
            fate.die("after")
        return after

    def migrate(connection: sqlite3.Connection) -> Any:
        return real_migrate(Watched(connection, fate))

    database._commit_group = commit_group  # noqa: SLF001  it is attacked
    schema.migrate = migrate


def wrap_clock(path: str) -> None:
    """Add to the wall clock what the file says."""
    file = os.open(path, os.O_RDONLY)
    real = clock.now_ms

    def now_ms() -> int:
        return real() + int(os.pread(file, OFFSET_BYTES, 0) or 0)

    clock.now_ms = now_ms


def main() -> int:
    """Wrap, and serve."""
    if path := os.environ.get("CHAOS_OFFSET"):
        wrap_clock(path)
    if reached := os.environ.get("CHAOS_REACHED"):
        wrap_commits(Fate(os.environ.get("CHAOS_POINT", ""), reached))
    from service.cli.main import main as serve  # noqa: PLC0415  once everything is wrapped

    return serve(["serve"])


def census(text: str) -> tuple[Counter[str], set[str]]:
    """What a file of CHAOS_REACHED tells: points where it died, and units that were committed."""
    lines = text.splitlines()
    died = Counter(line.removeprefix("died ") for line in lines if line.startswith("died "))
    return died, {line.removeprefix("unit ") for line in lines if line.startswith("unit ")}


if __name__ == "__main__":
    raise SystemExit(main())
