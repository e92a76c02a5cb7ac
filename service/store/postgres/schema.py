"""Numbered migrations, all in one transaction; the table `schema_version` has the last one."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.model.errors import StorageError
from service.store.migrations import Older, describe_problem, list_migrations
from service.store.postgres.connection import LONG_SECONDS

_RESTORE = "restore a backup into an empty schema"
_FOLDER = Path(__file__).parent / "migrations"
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('genhook.schema' || current_schema(), 0))"

# The names that a `search_path` leads to in other schemas are none of ours.
_HERE = "(SELECT oid FROM pg_namespace WHERE nspname = current_schema())"
_IS_OURS = f"""
SELECT count(*) FILTER (WHERE attname IN ('number', 'genhook_id')) = 2
FROM pg_class c JOIN pg_attribute ON attrelid = c.oid
WHERE relname = 'schema_version' AND relnamespace = {_HERE} GROUP BY c.oid"""  # noqa: S608
# Which names stand for something in the schema: of tables and indexes, of tables, which have types
# of their names, and of functions, all of which take one text.
_TAKEN = f"""
SELECT relname AS name FROM pg_class
WHERE relnamespace = {_HERE} AND relname = ANY (CAST($1 AS TEXT[]))
UNION SELECT typname FROM pg_type
WHERE typnamespace = {_HERE} AND typname = ANY (CAST($2 AS TEXT[]))
UNION SELECT proname FROM pg_proc
WHERE pronamespace = {_HERE} AND proname = ANY (CAST($3 AS TEXT[]))
    AND pronargs = 1 AND proargtypes[0] = CAST('text' AS REGTYPE)
ORDER BY name"""  # noqa: S608

_INDEX = re.compile(r"(?m)^CREATE (?:UNIQUE )?INDEX (\w+)[^;]*")
_TABLE = re.compile(r"(?ms)^CREATE TABLE (\w+) \((.*?)^\);")
_FUNCTION = re.compile(r"(?m)^CREATE FUNCTION (\w+)")
_KEY = re.compile(r"(?m)^ +PRIMARY KEY \(([^)]*)\)|^ +(\w+) .*\b(PRIMARY KEY|UNIQUE)")


def migrations() -> list[tuple[int, Path]]:
    """Return the migrations of this genhook as (number, file), in order."""
    return list_migrations(_FOLDER)


def latest() -> int:
    """Return the schema version that this code needs."""
    return migrations()[-1][0]


async def version(connection: Any) -> int:
    """Return the schema version; 0 if there is none yet.

    StorageError if `schema_version` is the table of another program, or has lost its row.
    """
    is_ours = await connection.fetchval(_IS_OURS)
    if is_ours is None:
        return 0
    if not is_ours:
        raise StorageError(_describe_others(["schema_version"]))
    numbers = await connection.fetch("SELECT number FROM schema_version")
    if len(numbers) != 1:
        raise StorageError(f"schema_version has {len(numbers)} rows, and needs one: {_RESTORE}")
    return int(numbers[0][0])


async def problem(connection: Any) -> str | None:
    """Return what is wrong with the schema, or None."""
    try:
        current = await version(connection)
    except StorageError as error:
        return str(error)
    if current == 0:
        names = [*tables(), *indexes()], tables(), _FUNCTION.findall(_read_all())
        taken = [row[0] for row in await connection.fetch(_TAKEN, *names)]
        if taken and set(tables()).issubset(taken):
            return f"schema_version is missing beside genhook's own tables: {_RESTORE}"
        if taken:
            return _describe_others(taken)
    return describe_problem(current, latest())


def _describe_others(names: Sequence[str]) -> str:
    """Return the problem that names which genhook needs are another program's."""
    some = ", ".join(names[:3]) + (" and more" if names[3:] else "")
    return f"another program made {some}: name an empty database or schema for genhook"


def indexes() -> dict[str, str]:
    """Return the statement that creates each index of the migrations, by the index's name."""
    created: dict[str, str] = {}
    text = _read_all()
    for match in _INDEX.finditer(text):
        created[match[1]] = " ".join(match[0].split())
    for table, columns in _TABLE.findall(text):
        for key, column, kind in _KEY.findall(columns):
            name = f"{table}_{column}_key" if kind == "UNIQUE" else f"{table}_pkey"
            rule = f"{kind or 'PRIMARY KEY'} ({key or column})"
            created[name] = f"ALTER TABLE {table} ADD CONSTRAINT {name} {rule}"
    return created


def tables() -> list[str]:
    """Return the tables of the migrations."""
    return [name for name, _ in _TABLE.findall(_read_all())]


def _read_all() -> str:
    return "\n".join(path.read_text() for _, path in migrations())


async def missing_tables(connection: Any) -> list[str]:
    """Return the tables that are not there."""
    sql = "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
    names = {row[0] for row in await connection.fetch(sql)}
    return [name for name in tables() if name not in names]


async def missing_indexes(connection: Any) -> dict[str, str]:
    """Return the indexes that are not there, as `indexes` does."""
    sql = "SELECT indexname FROM pg_indexes WHERE schemaname = current_schema()"
    names = {row[0] for row in await connection.fetch(sql)}
    return {name: sql for name, sql in indexes().items() if name not in names}


async def migrate(connection: Any) -> list[str]:
    """Apply the missing migrations in the transaction of the connection; return their names.

    StorageError if the schema is newer, or has names of genhook's that are another program's.
    """
    applied: list[str] = []
    await connection.execute(_LOCK, timeout=LONG_SECONDS)  # Another process may migrate now.
    if (message := await problem(connection)) and not isinstance(message, Older):
        raise StorageError(message)
    current = await version(connection)
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
