"""Numbered migrations, all in one transaction; the table `schema_version` has the last one."""

import re
from pathlib import Path
from typing import Any

from service.model.errors import StorageError
from service.store.migrations import describe_problem, list_migrations
from service.store.postgres.connection import LONG_SECONDS

_FOLDER = Path(__file__).parent / "migrations"
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('genhook.schema' || current_schema(), 0))"

_INDEX = re.compile(r"(?m)^CREATE (?:UNIQUE )?INDEX (\w+)[^;]*")
_TABLE = re.compile(r"(?ms)^CREATE TABLE (\w+) \((.*?)^\);")
_KEY = re.compile(r"(?m)^ +PRIMARY KEY \(([^)]*)\)|^ +(\w+) .*\b(PRIMARY KEY|UNIQUE)")


def migrations() -> list[tuple[int, Path]]:
    """Return the migrations of this genhook as (number, file), in order."""
    return list_migrations(_FOLDER)


def latest() -> int:
    """Return the schema version that this code needs."""
    return migrations()[-1][0]


async def version(connection: Any) -> int:
    """Return the schema version; 0 if there is none yet."""
    if await connection.fetchval("SELECT to_regclass('schema_version')") is None:
        return 0
    return int(await connection.fetchval("SELECT number FROM schema_version"))


async def problem(connection: Any) -> str | None:
    """Return what is wrong with the version of the schema, or None."""
    return describe_problem(await version(connection), latest())


def indexes() -> dict[str, str]:
    """Return the statement that creates each index of the migrations, by the index's name."""
    created: dict[str, str] = {}
    for _, path in migrations():
        text = path.read_text()
        for match in _INDEX.finditer(text):
            created[match[1]] = " ".join(match[0].split())
        for table, columns in _TABLE.findall(text):
            for key, column, kind in _KEY.findall(columns):
                is_unique = kind == "UNIQUE"
                name = f"{table}_{column}_key" if is_unique else f"{table}_pkey"
                rule = f"{kind or 'PRIMARY KEY'} ({key or column})"
                created[name] = f"ALTER TABLE {table} ADD CONSTRAINT {name} {rule}"
    return created


def tables() -> list[str]:
    """Return the tables of the migrations."""
    return [name for _, path in migrations() for name, _ in _TABLE.findall(path.read_text())]


async def missing_tables(connection: Any) -> list[str]:
    """Return the tables that are not there."""
    sql = "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
    names = {row[0] for row in await connection.fetch(sql)}
    return [name for name in tables() if name not in names]


async def missing_indexes(connection: Any) -> dict[str, str]:
    """Return the indexes that are not there, as `indexes` does."""
    rows = await connection.fetch(
        "SELECT indexname FROM pg_indexes WHERE schemaname = current_schema()"
    )
    names = {row[0] for row in rows}
    return {name: sql for name, sql in indexes().items() if name not in names}


async def migrate(connection: Any) -> list[str]:
    """Apply the missing migrations in the transaction of the connection; return their names.

    StorageError if the schema is newer.
    """
    applied: list[str] = []
    await connection.execute(_LOCK, timeout=LONG_SECONDS)  # Another process may migrate now.
    current = await version(connection)
    if current < 0:
        raise StorageError(describe_problem(current, latest()))
    if current == 0:
        await connection.execute(
            "CREATE TABLE schema_version (number BIGINT NOT NULL,"
            " genhook_id UUID NOT NULL DEFAULT gen_random_uuid());"
            "INSERT INTO schema_version (number) VALUES (0)"
        )
    for number, path in migrations():
        if current < number:
            await connection.execute(path.read_text(), timeout=LONG_SECONDS)
            await connection.execute("UPDATE schema_version SET number = $1", number)
            applied.append(path.stem)
    if message := await problem(connection):
        raise StorageError(message)
    return applied
