"""A schema on PostgreSQL as one side of a copy."""

from collections.abc import Sequence
from typing import Any

from service.store.copying import Batch, Side, Table, Values
from service.store.postgres import schema
from service.store.postgres.connection import LONG_SECONDS
from service.store.postgres.database import Database
from service.store.retention import fold_usage

_COLUMNS = """
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
    AND c.table_name IN ({tables}) AND c.is_generated = 'NEVER'
ORDER BY c.table_name COLLATE "C", c.column_name COLLATE "C\""""


class PostgresSide(Side):
    """A connection of its own, to the schema of an open database of the store."""

    database: Database
    parameter = "${}"
    version_sql = "UPDATE schema_version SET number = {}"

    def __init__(self, name: str, connection: Any, database: Database) -> None:
        super().__init__(name, database)
        self._connection = connection
        # Other programs may have tables beside these; SQLite has no `usage_added`.
        names = (f"'{name}'" for name in schema.tables() if name != "usage_added")
        self.columns_sql = _COLUMNS.format(tables=", ".join(names))

    async def prepare(self) -> None:
        """Give every event its `seq`, and empty `usage_added`, which SQLite does not have."""
        await self.database.order_events(LONG_SECONDS)
        while await self.database.write(fold_usage):
            pass

    async def is_marked(self) -> bool:
        """Whether a copy to this database has begun and has not ended."""
        return await schema.version(self._connection) < 0

    async def execute(self, sql: str) -> None:
        """Execute a statement, which may take long."""
        await self._connection.execute(sql, timeout=LONG_SECONDS)

    async def fetch(self, sql: str) -> Sequence[Any]:
        """Return the rows of a statement."""
        rows: Sequence[Any] = await self._connection.fetch(sql)
        return rows

    async def take(self, sql: str, values: Values) -> list[Values]:
        """Return the rows of a statement until a batch is full."""
        batch = Batch()
        async with self._connection.transaction(readonly=True):
            async for row in self._connection.cursor(sql, *values, prefetch=50):
                if batch.add(row):
                    break
        return batch.rows

    async def insert(self, table: Table, rows: Sequence[Values]) -> None:
        """Store rows in one transaction."""
        await self._connection.copy_records_to_table(
            table.name, records=rows, columns=table.columns
        )
