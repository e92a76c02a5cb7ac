"""An SQLite file as one side of a copy."""

import sqlite3
from collections.abc import Sequence

from service.store.copying import Batch, Table, Values, key_columns, select_last_key, select_next
from service.store.sqlite import schema
from service.store.sqlite.connection import transaction
from service.store.sqlite.database import Database


class SqliteSide:
    """An open database of the store. Everything runs on its writer's connection."""

    def __init__(self, name: str, database: Database) -> None:
        self.name = name
        self._database = database

    async def prepare(self) -> None:
        """Do nothing: all rows have that form."""

    async def tables(self) -> Sequence[Table]:
        """Return the tables, in the order of their names."""
        return await self._database.apply(_tables)

    async def is_marked(self) -> bool:
        """Whether a copy to this database has begun and has not ended."""
        return await self._database.apply(schema.version) < 0

    async def mark(self, *, begun: bool) -> None:
        """Note that a copy to this database has begun, or has ended."""
        sql = f"PRAGMA user_version={-schema.latest() if begun else schema.latest()}"
        await self._database.apply(sqlite3.Connection.execute, sql)

    async def last_key(self, table: Table) -> Values | None:
        """Return the key of the last row; None if there is none."""
        return await self._database.apply(_last_key, table)

    async def read(self, table: Table, after: Values | None) -> list[Values]:
        """Return the next rows after a key."""
        return await self._database.apply(_read, table, after)

    async def insert(self, table: Table, rows: Sequence[Values]) -> None:
        """Store rows in one transaction."""
        await self._database.apply(_insert, table, rows)

    async def clear(self, table: Table) -> None:
        """Delete the rows of a table."""
        await self._database.apply(sqlite3.Connection.execute, f"DELETE FROM {table.name}")  # noqa: S608  our own names


def _tables(connection: sqlite3.Connection) -> list[Table]:
    sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
    names = sorted(name for (name,) in connection.execute(sql))
    return [_table(connection, name) for name in names]


def _table(connection: sqlite3.Connection, name: str) -> Table:
    rows = connection.execute("SELECT name, pk FROM pragma_table_info(?)", (name,))
    columns = dict(rows)
    return Table(name, tuple(sorted(columns)), key_columns(name, columns))


def _last_key(connection: sqlite3.Connection, table: Table) -> Values | None:
    row = connection.execute(select_last_key(table)).fetchone()
    return None if row is None else tuple(row)


def _read(connection: sqlite3.Connection, table: Table, after: Values | None) -> list[Values]:
    sql = select_next(table, ["?"] * len(table.key), after)
    batch = Batch()
    cursor = connection.execute(sql, after or ())
    for row in cursor:
        if batch.add(row):
            break
    cursor.close()
    return batch.rows


def _insert(connection: sqlite3.Connection, table: Table, rows: Sequence[Values]) -> None:
    marks = ", ".join("?" * len(table.columns))
    sql = f"INSERT INTO {table.name} ({', '.join(table.columns)}) VALUES ({marks})"  # noqa: S608  our own names
    with transaction(connection):
        connection.executemany(sql, rows)
