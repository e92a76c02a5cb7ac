"""A schema on PostgreSQL as one side of a copy."""

from collections.abc import Sequence
from typing import Any

from service.store.copying import Batch, Table, Values, key_columns, select_last_key, select_next
from service.store.postgres import schema
from service.store.postgres.connection import LONG_SECONDS
from service.store.postgres.database import Database
from service.store.retention import fold_usage

_TABLES = """
SELECT c.table_name AS name, c.column_name AS column, coalesce(k.ordinal_position, 0) AS place
FROM information_schema.columns c
JOIN information_schema.tables t
    ON t.table_schema = c.table_schema AND t.table_name = c.table_name
LEFT JOIN information_schema.table_constraints p
    ON p.table_schema = c.table_schema AND p.table_name = c.table_name
    AND p.constraint_type = 'PRIMARY KEY'
LEFT JOIN information_schema.key_column_usage k
    ON k.constraint_schema = p.constraint_schema AND k.constraint_name = p.constraint_name
    AND k.table_name = c.table_name AND k.column_name = c.column_name
WHERE c.table_schema = current_schema() AND t.table_type = 'BASE TABLE'
    AND c.table_name NOT IN ('schema_version', 'usage_added') AND c.is_generated = 'NEVER'
ORDER BY c.table_name COLLATE "C", c.column_name COLLATE "C\""""


class PostgresSide:
    """A connection of its own, to the schema of an open database of the store."""

    def __init__(self, name: str, connection: Any, database: Database) -> None:
        self.name = name
        self._connection = connection
        self._database = database

    async def prepare(self) -> None:
        """Give every event its `seq`, and empty `usage_added`, which SQLite does not have."""
        await self._database.order_events(LONG_SECONDS)
        while await self._database.write(fold_usage):
            pass

    async def tables(self) -> Sequence[Table]:
        """Return the tables, in the order of their names."""
        columns: dict[str, dict[str, int]] = {}
        for name, column, place in await self._connection.fetch(_TABLES):
            columns.setdefault(name, {})[column] = place
        return [
            Table(name, tuple(sorted(names)), key_columns(name, names))
            for name, names in columns.items()
        ]

    async def is_marked(self) -> bool:
        """Whether a copy to this database has begun and has not ended."""
        return await schema.version(self._connection) < 0

    async def mark(self, *, begun: bool) -> None:
        """Note that a copy to this database has begun, or has ended."""
        number = -schema.latest() if begun else schema.latest()
        await self._connection.execute("UPDATE schema_version SET number = $1", number)

    async def last_key(self, table: Table) -> Values | None:
        """Return the key of the last row; None if there is none."""
        row = await self._connection.fetchrow(select_last_key(table))
        return None if row is None else tuple(row)

    async def read(self, table: Table, after: Values | None) -> list[Values]:
        """Return the next rows after a key."""
        sql = select_next(table, [f"${n + 1}" for n in range(len(table.key))], after)
        batch = Batch()
        async with self._connection.transaction(readonly=True):
            async for row in self._connection.cursor(sql, *(after or ()), prefetch=50):
                if batch.add(row):
                    break
        return batch.rows

    async def insert(self, table: Table, rows: Sequence[Values]) -> None:
        """Store rows in one transaction."""
        await self._connection.copy_records_to_table(
            table.name, records=rows, columns=table.columns
        )

    async def clear(self, table: Table) -> None:
        """Delete the rows of a table."""
        sql = f"DELETE FROM {table.name}"  # noqa: S608  our own names
        await self._connection.execute(sql, timeout=LONG_SECONDS)
