"""Reads the cost of transactions from SQLite's statement trace and write-ahead log."""

import asyncio
import re
import sqlite3
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from service.store.sqlite.connection import FILE_PAGE_BYTES
from service.store.sqlite.database import Database

LOG_SECONDS = 10.0
WAL_HEADER_BYTES, FRAME_BYTES = 32, 24 + FILE_PAGE_BYTES
Trace = list[tuple[str, int]]  # A statement, and the size of the log when it started.
CONTROL = re.compile(r"BEGIN|COMMIT|ROLLBACK|SAVEPOINT|RELEASE")


class Transaction(msgspec.Struct, frozen=True):
    """A transaction: its statements, the pages that it wrote to the log, and their trees."""

    statements: list[str]
    pages: list[int]
    trees: frozenset[str] = frozenset()


class Cost(msgspec.Struct, frozen=True):
    """The cost of some units; of the statements, `control` are BEGIN, COMMIT and savepoints."""

    units: int
    statements: int
    control: int
    pages: int
    bytes: int
    trees: frozenset[str]

    @classmethod
    def of(cls, transactions: Sequence[Transaction], units: int) -> "Cost":
        """Add up transactions that stored so many units."""
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

    def per_unit(self) -> dict[str, float]:
        """Return the cost of one unit by the name of the figure."""
        names = ("statements", "control", "pages", "bytes")
        return {name: getattr(self, name) / self.units for name in names}


class Meter:
    """Reads the transactions of a database's writer."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._log = Path(f"{database.path}-wal")

    async def transactions(self, units: Awaitable[Any]) -> list[Transaction]:
        """Run `units`; return the writer's transactions meanwhile, in order."""
        trace: Trace = []
        async with asyncio.timeout(LOG_SECONDS):
            while not await self._database.apply(_start_trace, self._log, trace):  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # A checkpoint of the service is running.
        with _growing_log(self._database.path):
            await units
            await self._database.apply(_stop_trace)
            trees = await self._database.apply(_trees_by_page)
            wal = self._log.read_bytes()
        assert int.from_bytes(wal[8:12], "big") == FILE_PAGE_BYTES
        return [
            msgspec.structs.replace(
                one, trees=frozenset(trees[page] for page in one.pages if page in trees)
            )
            for one in transactions_in(trace, wal)
        ]


def _start_trace(connection: sqlite3.Connection, wal: Path, trace: Trace) -> bool:
    """Empty the log and start the trace; return False while another checkpoint runs."""
    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if not busy:
        connection.set_trace_callback(lambda sql: trace.append((sql, wal.stat().st_size)))
    return not busy


def _stop_trace(connection: sqlite3.Connection) -> None:
    connection.set_trace_callback(None)


@contextmanager
def _growing_log(path: str) -> Iterator[None]:
    """Hold a snapshot, so that no checkpoint lets the writer restart the log."""
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        yield


def transactions_in(trace: Trace, wal: bytes) -> Iterator[Transaction]:
    """Yield every transaction of a trace, with the pages that were logged until the next one.

    SQLite traces statements of triggers as comments; they do not count.
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
    """Return the page of each frame in a part of a log (sqlite.org/fileformat2.html, 4.1)."""
    starts = range(max(from_byte, WAL_HEADER_BYTES), to_byte, FRAME_BYTES)
    return [int.from_bytes(wal[at : at + 4], "big") for at in starts]


def _trees_by_page(connection: sqlite3.Connection) -> dict[int, str]:
    """Return the table or index that each page belongs to."""
    rows = connection.execute("SELECT pageno, name FROM dbstat WHERE name <> 'sqlite_schema'")
    return {row[0]: row[1] for row in rows}
