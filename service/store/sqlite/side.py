"""An SQLite file as one side of a copy."""

import sqlite3
from collections.abc import Sequence
from typing import Any

from service.store.copying import Batch, Side, Table, Values
from service.store.sqlite import schema
from service.store.sqlite.connection import transaction
from service.store.sqlite.database import Database


class SqliteSide(Side):
    """An open database of the store. Everything runs on its writer's connection."""

    database: Database
    columns_sql = """
        SELECT t.name, c.name, c.pk FROM sqlite_schema t, pragma_table_info(t.name) c
        WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite%' ORDER BY t.name, c.name"""
    parameter = "?{}"
    version_sql = "PRAGMA user_version={}"

    async def is_marked(self) -> bool:
        """Whether a copy to this database has begun and has not ended."""
        return await self.database.apply(schema.version) < 0

    async def execute(self, sql: str) -> None:
        """Execute a statement."""
        await self.fetch(sql)

    async def fetch(self, sql: str) -> Sequence[Any]:
        """Return the rows of a statement."""
        return await self.database.apply(lambda connection: connection.execute(sql).fetchall())

    async def take(self, sql: str, values: Values) -> list[Values]:
        """Return the rows of a statement until a batch is full."""
        return await self.database.apply(_take, sql, values)

    async def insert(self, table: Table, rows: Sequence[Values]) -> None:
        """Store rows in one transaction."""
        await self.database.apply(_insert, table, rows)


def _take(connection: sqlite3.Connection, sql: str, values: Values) -> list[Values]:
    batch = Batch()
    cursor = connection.execute(sql, values)
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
