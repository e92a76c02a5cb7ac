"""Runs a group of units on SQLite in one transaction (docs/decisions/0002)."""

import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

from service.store.database import AfterCommit, Row, T, Unit
from service.store.item import Item, batches_of, note_rows, run_batch
from service.store.sqlite.connection import is_of_unit, transaction
from service.store.sqlite.statements import DIALECT, statements

# Rows that the items of a unit may change in a group; its other items wait for the next.
GROUP_CHANGES_MAX = 5_000
FIRST_ITEMS = 64  # Items in a batched unit's first call of a group; later calls go by its rows.


class Transaction:
    """A transaction on one connection; see store/database.py."""

    __slots__ = ("_after", "_connection", "charged", "locked", "now")

    def __init__(self, connection: sqlite3.Connection, now: int, after: AfterCommit) -> None:
        self._connection = connection
        self._after = after
        self.now = now
        self.locked: set[str] = set()
        self.charged: Counter[str] | None = None  # Rows by tenant.

    async def one(self, name: str, /, **values: object) -> Row | None:
        """Return the first row of the statement, or None."""
        row: Row | None = self._execute(name, values).fetchone()
        return row

    async def all(self, name: str, /, **values: object) -> list[Row]:
        """Return every row of the statement."""
        return self._execute(name, values).fetchall()

    async def each(self, name: str, /, **values: object) -> AsyncIterator[Row]:
        """Iterate over the rows of the statement."""
        for row in self._execute(name, values):
            yield row

    async def lock(self, name: str, /, **values: object) -> list[Row]:
        """Return every row of the statement. The file has one writer: nobody else changes them."""
        rows: list[Row] = self._execute(name, values).fetchall()
        self.locked.update(row["id"] for row in rows)
        return rows

    async def keep(self, name: str, /, **values: object) -> list[Row]:
        """Return every row of the statement."""
        return self._execute(name, values).fetchall()

    async def lock_names(self, *_names: str) -> None:
        """Do nothing: the file has one writer."""

    async def run(self, name: str, /, **values: object) -> int:
        """Execute the statement; return how many rows it changed."""
        return self._execute(name, values).rowcount

    async def many(self, name: str, rows: Iterable[Mapping[str, object]]) -> None:
        """Execute the statement once for each of `rows`."""
        sql, bind, _ = statements()[name]
        self._connection.executemany(sql, map(bind, rows))

    async def select(self, sql: str, values: Mapping[str, object]) -> list[Row]:
        """Return the rows of SQL that the code has composed."""
        statement = DIALECT.compose(sql)
        return self._connection.execute(statement.sql, statement.bind(values)).fetchall()

    async def scan(self, sql: str, values: Mapping[str, object]) -> AsyncIterator[Row]:
        """Iterate over the rows of SQL that the code has composed."""
        statement = DIALECT.compose(sql)
        for row in self._connection.execute(statement.sql, statement.bind(values)):
            yield row

    def after_commit(self, do: Callable[..., None], *args: object) -> None:
        """Call `do` on the event loop after the commit."""
        self._after.append((do, args))

    def charge(self, rows: Mapping[str, int]) -> None:
        """Count rows that are written on account of tenants, where they may be many."""
        self.charged = Counter(self.charged)
        self.charged.update(rows)

    def _execute(self, name: str, values: Mapping[str, object]) -> sqlite3.Cursor:
        sql, bind, _ = statements()[name]
        return self._connection.execute(sql, bind(values))


def _run_unit(unit: Coroutine[Any, Any, T]) -> T:
    """Run a unit to its end, without an event loop."""
    try:
        unit.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    unit.close()
    raise AssertionError("a unit of work awaited something that is not its transaction")


def _run(
    connection: sqlite3.Connection, batch: Sequence[Item], now: int, after: AfterCommit
) -> None:
    """Run one unit, or one batched unit with all its items."""
    tx = Transaction(connection, now, after)
    results = _run_unit(run_batch(batch, tx))
    for item, result in zip(batch, results, strict=True):
        item.result, item.has_run = result, True
    if tx.charged:
        note_rows(tx.charged, batch)


def _run_alone(
    connection: sqlite3.Connection, batch: Sequence[Item], now: int, after: AfterCommit
) -> None:
    """Run each item of a failed group in a savepoint, so that only those fail that raise."""
    for item in batch:
        own: AfterCommit = []
        connection.execute("SAVEPOINT unit")
        try:
            _run(connection, [item], now, own)
        except BaseException as error:
            if not connection.in_transaction:
                raise  # SQLite has rolled back the transaction, as on a full disk: the group fails.
            connection.execute("ROLLBACK TO unit")
            item.error, item.has_run = error, True
        else:
            after.extend(own)
        connection.execute("RELEASE unit")


def _run_parts(
    connection: sqlite3.Connection,
    items: Sequence[Item],
    now: int,
    run: Callable[[sqlite3.Connection, Sequence[Item], int, AfterCommit], None],
) -> AfterCommit:
    """Run the items in parts, until the items of a unit have changed GROUP_CHANGES_MAX rows.

    One item may write a thousand rows and the next one none, so a number of items bounds no commit.
    The items of other units still run, so that no request waits for all webhooks of other tenants.
    """
    after: AfterCommit = []
    changed: Counter[object] = Counter()  # Rows, by unit.
    for item in items:
        item.has_run = False
    for batch in batches_of(items):
        unit, done, size = batch[0].unit, 0, FIRST_ITEMS
        while done < len(batch) and changed[unit] < GROUP_CHANGES_MAX:
            before, began = connection.total_changes, time.perf_counter()
            run(connection, batch[done : done + size], now, after)
            batch[done].seconds = time.perf_counter() - began
            done += size
            changed[unit] += connection.total_changes - before
            size = max((GROUP_CHANGES_MAX - changed[unit]) * done // max(changed[unit], done), 1)
    return after


def commit_group(connection: sqlite3.Connection, items: Sequence[Item], now: int) -> AfterCommit:
    """Commit the items in one transaction, without those that fail.

    Items whose `has_run` is False afterwards are left for the next group.
    """
    try:
        with transaction(connection):
            # Without savepoints, which would make SQLite copy every changed page.
            return _run_parts(connection, items, now, _run)
    except Exception as error:
        is_of_all = isinstance(error, sqlite3.OperationalError) and not is_of_unit(error)
        if len(items) == 1 or is_of_all:
            raise  # A second run would fail in the same way.
    with transaction(connection):
        return _run_parts(connection, items, now, _run_alone)


def read(connection: sqlite3.Connection, unit: Unit[T], args: tuple[Any, ...], now: int) -> T:
    """Run a unit that only reads, on a snapshot."""
    connection.execute("BEGIN")
    try:
        return _run_unit(unit(Transaction(connection, now, []), *args))
    finally:
        if connection.in_transaction:  # After some errors, SQLite has rolled back itself.
            connection.execute("ROLLBACK")
