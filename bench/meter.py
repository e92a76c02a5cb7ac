"""Reads what transactions cost a database off SQLite's statement trace and write-ahead log."""

import asyncio
import re
import sqlite3
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from service.store.sqlite.database import Database

LOG_SECONDS = 10.0
PAGE_BYTES = 4_096
WAL_HEADER_BYTES, FRAME_BYTES = 32, 24 + PAGE_BYTES
Trace = list[tuple[str, int]]  # Each statement, and how many bytes the log had when it began.
CONTROL = re.compile(r"BEGIN|COMMIT|ROLLBACK|SAVEPOINT|RELEASE")


class Transaction(msgspec.Struct, frozen=True):
    """The statements of one transaction, its pages of the log, and the trees that they are of."""

    statements: list[str]
    pages: list[int]
    trees: frozenset[str] = frozenset()


class Cost(msgspec.Struct, frozen=True):
    """What some units cost together; `control` counts the BEGIN, COMMIT and savepoints of them."""

    units: int
    statements: int
    control: int
    pages: int
    bytes: int
    trees: frozenset[str]

    @classmethod
    def of(cls, transactions: Sequence[Transaction], units: int) -> "Cost":
        """What these transactions cost together, where they stored so many units."""
        statements = [statement for one in transactions for statement in one.statements]
        pages = sum(len(one.pages) for one in transactions)
        return cls(
            units=units,
            statements=len(statements),
            control=sum(CONTROL.match(statement) is not None for statement in statements),
            pages=pages,
            bytes=pages * FRAME_BYTES,
            trees=frozenset[str]().union(*(one.trees for one in transactions)),
        )

    def each(self) -> dict[str, float]:
        """What one unit cost."""
        names = ("statements", "control", "pages", "bytes")
        return {name: getattr(self, name) / self.units for name in names}


class Meter:
    """Watches the writer of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._log = Path(f"{database.path}-wal")

    async def transactions(self, units: Awaitable[Any]) -> list[Transaction]:
        """Every transaction of the writer while `units` run, in order."""
        trace: Trace = []
        async with asyncio.timeout(LOG_SECONDS):
            while not await self._database.apply(_start_trace, self._log, trace):  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # The service's own checkpoint ends by itself.
        with _growing_log(self._database.path):
            await units
            await self._database.apply(_stop_trace)
            trees = await self._database.apply(_trees_by_page)
            wal = self._log.read_bytes()
        assert int.from_bytes(wal[8:12], "big") == PAGE_BYTES
        return [
            msgspec.structs.replace(
                one, trees=frozenset(trees[page] for page in one.pages if page in trees)
            )
            for one in transactions_in(trace, wal)
        ]


def _start_trace(connection: sqlite3.Connection, wal: Path, trace: Trace) -> bool:
    """Empty the log, then note every statement; False while another checkpoint runs."""
    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if not busy:
        connection.set_trace_callback(lambda sql: trace.append((sql, wal.stat().st_size)))
    return not busy


def _stop_trace(connection: sqlite3.Connection) -> None:
    connection.set_trace_callback(None)


@contextmanager
def _growing_log(path: str) -> Iterator[None]:
    """Hold a snapshot: then no checkpoint can have the writer start the log again."""
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        yield


def transactions_in(trace: Trace, wal: bytes) -> Iterator[Transaction]:
    """Every transaction of a trace, with what the log grew by until the next one began.

    SQLite traces the statements of triggers as comments; they are part of what started them.
    """
    statements: list[str] = []
    from_byte, is_open = 0, False
    for statement, log_bytes in [*trace, ("BEGIN", len(wal))]:
        if statement.startswith("BEGIN"):
            if statements:
                yield Transaction(statements, pages_in(wal, from_byte, log_bytes))
            statements, from_byte, is_open = [], log_bytes, True
        if is_open and not statement.startswith("--"):
            statements.append(statement)
            is_open = not statement.startswith("COMMIT")


def pages_in(wal: bytes, from_byte: int, to_byte: int) -> list[int]:
    """The page of each frame in a part of a log (https://sqlite.org/fileformat2.html, 4.1)."""
    starts = range(max(from_byte, WAL_HEADER_BYTES), to_byte, FRAME_BYTES)
    return [int.from_bytes(wal[at : at + 4], "big") for at in starts]


def _trees_by_page(connection: sqlite3.Connection) -> dict[int, str]:
    """The table or index that each page belongs to."""
    rows = connection.execute("SELECT pageno, name FROM dbstat WHERE name <> 'sqlite_schema'")
    return {row[0]: row[1] for row in rows}
