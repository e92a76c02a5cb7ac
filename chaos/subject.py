"""`genhook serve` that kills itself at a chosen commit; its clock and its resolver can lie.

CHAOS_POINT    "before send._record 2": `kill -9` just before the second commit that
               contains this unit; "after" is just after it, before anything follows from it. The
               unit `migrate` is a migration.
CHAOS_REACHED  a file that gets a line for the point of death, and one for each kind of unit.
CHAOS_OFFSET   a file with the milliseconds that are added to the wall clock.
CHAOS_NAMES    the seconds that a look-up of a name below slow.chaos.test takes until it fails; one
               below dead.chaos.test fails at once.
"""

import functools
import os
import signal
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

from service.model import clock

OFFSET_BYTES = 24


def unit_name(unit: Any) -> str:
    """Return the name of a unit of work: its module, without the packages, and its function.

    The name of a statement follows if it is a partial function's, as in `module.function.name`.
    """
    statement = ""
    while isinstance(unit, functools.partial):
        statement += "".join(f".{value}" for value in unit.args if isinstance(value, str))
        unit = unit.func
    module = unit.__module__.rpartition(".")[2]
    return f"{module}.{unit.__qualname__}{statement}".replace("<locals>.", "")


class KillPoint:
    """The commit at which this process dies, and the units that it has committed so far."""

    def __init__(self, point: str, reached: str) -> None:
        self.side, self.unit, times = (point or "never - 0").split()
        self.remaining = int(times)
        self._file = os.open(reached, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._units: set[str] = set()

    def matches(self, names: set[str]) -> bool:
        """Record the units of a commit; return whether it is the commit to die at."""
        for name in names - self._units:
            self._units.add(name)
            os.write(self._file, f"unit {name}\n".encode())
        if self.unit in names:
            self.remaining -= 1
            return self.remaining == 0
        return False

    def die(self, side: str) -> None:
        """Kill this process if `side` is the chosen side of the commit."""
        if side == self.side:
            os.write(self._file, f"died {side} {self.unit}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)


class WatchedConnection:
    """A connection whose COMMIT can be the point of death."""

    def __init__(self, connection: sqlite3.Connection, point: KillPoint) -> None:
        self._connection = connection
        self._point = point

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, sql: str) -> sqlite3.Cursor:
        """Execute the statement; die before or after it if it is the commit to die at."""
        matches = sql == "COMMIT" and self._point.matches({"migrate"})
        if matches:
            self._point.die("before")
        cursor = self._connection.execute(sql)
        if matches:
            self._point.die("after")
        return cursor


def wrap_commits(point: KillPoint) -> None:
    """Wrap the service's commits, so that the process can die before or after each of them."""
    from service.store.sqlite import group, schema  # noqa: PLC0415  once the clock is wrapped

    real_commit: Callable[..., Any] = group.commit_group
    real_migrate: Callable[..., Any] = schema.migrate

    def commit_group(connection: sqlite3.Connection, items: Sequence[Any], now: int) -> Any:
        matches = point.matches({unit_name(item.unit) for item in items})
        if matches:
            point.die("before")
        after = real_commit(connection, items, now)
        if matches:
            point.die("after")
        return after

    def migrate(connection: sqlite3.Connection) -> Any:
        return real_migrate(WatchedConnection(connection, point))

    group.commit_group = commit_group
    schema.migrate = migrate


def wrap_server_commits(point: KillPoint) -> None:
    """Wrap the commits of units on PostgreSQL in the same way."""
    from asyncpg.transaction import Transaction  # noqa: PLC0415

    from service.store.postgres.database import Database  # noqa: PLC0415

    real_run: Callable[..., Any] = Database._run_once  # noqa: SLF001
    real_exit: Callable[..., Any] = Transaction.__aexit__
    running: ContextVar[frozenset[str]] = ContextVar("running", default=frozenset())

    async def run_once(database: Any, batch: Sequence[Any]) -> Any:
        running.set(
            frozenset(unit_name(item.unit) for item in batch)
        )  # In the task of this commit.
        try:
            return await real_run(database, batch)
        finally:
            running.set(frozenset())

    async def exit_(transaction: Any, kind: Any, *rest: Any) -> None:
        matches = kind is None and bool(running.get()) and point.matches(set(running.get()))
        if matches:
            point.die("before")
        await real_exit(transaction, kind, *rest)
        if matches:
            point.die("after")

    Database._run_once = run_once  # type: ignore[assignment]  # noqa: SLF001
    Transaction.__aexit__ = exit_


def wrap_clock(path: str) -> None:
    """Add the milliseconds in the file to the wall clock."""
    file = os.open(path, os.O_RDONLY)
    real = clock.now_ms

    def now_ms() -> int:
        return real() + int(os.pread(file, OFFSET_BYTES, 0) or 0)

    clock.now_ms = now_ms


def wrap_names(seconds: float) -> None:
    """Let the names below chaos.test fail as names do whose servers are dead or silent."""
    real: Callable[..., Any] = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(host, str) and host.endswith(".slow.chaos.test"):
            time.sleep(seconds)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if isinstance(host, str) and host.endswith(".dead.chaos.test"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *arguments, **options)

    socket.getaddrinfo = getaddrinfo


def main() -> int:
    """Wrap the clock, the names and the commits, then serve."""
    if seconds := os.environ.get("CHAOS_NAMES"):
        wrap_names(float(seconds))
    if path := os.environ.get("CHAOS_OFFSET"):
        wrap_clock(path)
    if reached := os.environ.get("CHAOS_REACHED"):
        is_server = os.environ["GENHOOK_DATABASE_URL"].startswith("postgresql:")
        wrap = wrap_server_commits if is_server else wrap_commits
        wrap(KillPoint(os.environ.get("CHAOS_POINT", ""), reached))
    from service.cli.main import main as serve  # noqa: PLC0415  once everything is wrapped

    return serve(["serve"])


def read_reached(text: str) -> tuple[Counter[str], set[str]]:
    """Read a file of CHAOS_REACHED: the points of death, and the units that were committed."""
    lines = text.splitlines()
    deaths = Counter(line.removeprefix("died ") for line in lines if line.startswith("died "))
    return deaths, {line.removeprefix("unit ") for line in lines if line.startswith("unit ")}


if __name__ == "__main__":
    raise SystemExit(main())
