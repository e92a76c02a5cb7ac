"""Copies every row of one database to another, in the order of keys, and compares the two."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from service.model.errors import StorageError

Values = tuple[Any, ...]
Report = Callable[[str, int], None]  # A table, and how many of its rows were copied so far.

BATCH_ROWS = 1_000
BATCH_BYTES = 4 << 20  # A body may be large; a batch ends with the row that reaches this.
# The migrations fill it themselves, so a new database is not empty there.
FILLED = "revisions"


class Table(NamedTuple):
    """A table with its columns, and with its key, by which its rows are copied in order."""

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]

    def key_of(self, row: Values) -> Values:
        """Return the key of a row, whose values stand in the order of the columns."""
        return tuple(row[self.columns.index(name)] for name in self.key)


class Side(ABC):
    """One of the two databases, migrated to this version, and used by nobody else."""

    # The statement that returns each column of each table, in the order of both names, with its
    # place in the primary key, or 0.
    columns_sql: str
    parameter: str  # The text of the n-th parameter, with {} for its number.
    version_sql: str  # The statement that sets the version of the schema, with {} for it.

    def __init__(self, name: str, database: Any) -> None:
        self.name = name
        self.database = database

    async def prepare(self) -> None:  # noqa: B027  SQLite has nothing to do
        """Bring the rows into the form that both databases have. To be called before the others."""

    @abstractmethod
    async def is_marked(self) -> bool:
        """Whether a copy to this database has begun and has not ended."""

    async def mark(self, *, begun: bool) -> None:
        """Note that a copy to this database has begun, or has ended."""
        latest = self.database.schema_version
        await self.execute(self.version_sql.format(-latest if begun else latest))

    async def tables(self) -> Sequence[Table]:
        """Return the tables, in the order of their names."""
        places: dict[str, dict[str, int]] = {}
        for table, column, place in await self.fetch(self.columns_sql):
            places.setdefault(table, {})[column] = place
        return [Table(name, tuple(of), _key_columns(name, of)) for name, of in places.items()]

    async def last_key(self, table: Table) -> Values | None:
        """Return the key of the last row; None if there is none."""
        order = ", ".join(f"{column} DESC" for column in table.key)
        sql = f"SELECT {', '.join(table.key)} FROM {table.name} ORDER BY {order} LIMIT 1"  # noqa: S608  our own names
        return next(map(tuple, await self.fetch(sql)), None)

    async def read(self, table: Table, after: Values | None) -> list[Values]:
        """Return the next rows after a key: BATCH_ROWS or BATCH_BYTES of them at most."""
        key = ", ".join(table.key)
        values = after or ()
        parameters = ", ".join(self.parameter.format(n + 1) for n in range(len(values)))
        begin = f"WHERE ({key}) > ({parameters}) " if values else ""
        sql = f"SELECT {', '.join(table.columns)} FROM {table.name} {begin}ORDER BY {key} "  # noqa: S608  our own names
        return await self.take(f"{sql}LIMIT {BATCH_ROWS}", values)

    async def clear(self, table: Table) -> None:
        """Delete the rows of a table."""
        await self.execute(f"DELETE FROM {table.name}")  # noqa: S608  our own names

    @abstractmethod
    async def execute(self, sql: str) -> None:
        """Execute a statement, which may take long."""

    @abstractmethod
    async def fetch(self, sql: str) -> Sequence[Any]:
        """Return the rows of a statement."""

    @abstractmethod
    async def take(self, sql: str, values: Values) -> list[Values]:
        """Return the rows of a statement until a `Batch` is full."""

    @abstractmethod
    async def insert(self, table: Table, rows: Sequence[Values]) -> None:
        """Store rows in one transaction."""


async def copy(source: Side, target: Side, report: Report) -> dict[str, int]:
    """Copy what is missing in the target, and compare; return the number of rows by table.

    A copy that was interrupted goes on where it ended. StorageError if the target holds rows of its
    own, if the two have different tables, or if their rows are not equal at the end.
    """
    for side in (source, target):
        await side.prepare()
    tables = await source.tables()
    theirs = {table.name: set(table.columns) for table in await target.tables()}
    if theirs != {table.name: set(table.columns) for table in tables}:
        raise StorageError(
            "the two databases have different tables: both must be of this version, and an SQLite "
            "file must have none of another program"
        )
    if not await target.is_marked():
        for table in tables:
            if table.name != FILLED and await target.last_key(table) is not None:
                raise StorageError(f"{target.name} is not empty: its table {table.name} has rows")
        await target.mark(begun=True)
    for table in tables:
        if table.name == FILLED:
            await target.clear(table)
        await _copy_table(source, target, table, report)
    counts = {table.name: await _compare(source, target, table) for table in tables}
    await target.mark(begun=False)
    return counts


async def _copy_table(source: Side, target: Side, table: Table, report: Report) -> None:
    last, count = await target.last_key(table), 0
    while rows := await source.read(table, last):
        await target.insert(table, rows)
        last, count = table.key_of(rows[-1]), count + len(rows)
        report(table.name, count)


async def _compare(source: Side, target: Side, table: Table) -> int:
    """Return the number of rows; StorageError if the two sides differ in any value."""
    count, digest = await _digest(source, table)
    if (count, digest) != await _digest(target, table):
        raise StorageError(
            f"the table {table.name} differs after the copy: was one of the databases in use? "
            "Delete the target, stop what uses them, and copy again"
        )
    return count


async def _digest(side: Side, table: Table) -> tuple[int, bytes]:
    """Return the number of rows and a digest of all their values in order."""
    count, digest = 0, hashlib.sha256()
    last: Values | None = None
    while rows := await side.read(table, last):
        last, count = table.key_of(rows[-1]), count + len(rows)
        for row in rows:
            digest.update(msgspec.msgpack.encode(row))
    return count, digest.digest()


class Batch:
    """The rows that a side reads at a time."""

    def __init__(self) -> None:
        self.rows: list[Values] = []
        self._size = 0  # About how many bytes they take.

    def add(self, row: Iterable[Any]) -> bool:
        """Add a row; return whether the batch has BATCH_BYTES.

        NUL in its texts becomes U+FFFD: PostgreSQL stores no NUL.
        """
        values = tuple(
            value.replace("\0", "\ufffd") if type(value) is str and "\0" in value else value
            for value in row
        )
        self.rows.append(values)
        self._size += sum(len(value) for value in values if isinstance(value, str | bytes))
        return self._size >= BATCH_BYTES


def _key_columns(name: str, columns: Mapping[str, int]) -> tuple[str, ...]:
    """Return a table's key from its columns, each with its place in the primary key, or 0.

    An event's `seq` is the key on SQLite; its `id` orders events that have none yet, too.
    """
    if name == "events":
        return ("id",)
    return tuple(sorted(filter(columns.get, columns), key=columns.__getitem__))
