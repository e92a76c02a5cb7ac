"""Numbered migrations. Each runs in a transaction; PRAGMA user_version is the last one applied."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

from service.model.errors import StorageError
from service.store.migrations import Older, describe_problem, list_migrations
from service.store.sqlite.connection import transaction

_FOLDER = Path(__file__).parent / "migrations"
_TABLES = "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view')"
_OURS = ("tenants", "generations", "deliveries")  # All of these are missing in others' files.
_CREATED = "SELECT name, sql FROM sqlite_schema WHERE type = ? AND sql IS NOT NULL"


def migrations() -> list[tuple[int, Path]]:
    """Return the migrations of this genhook as (number, file), in order."""
    return list_migrations(_FOLDER)


def latest() -> int:
    """Return the schema version that this code needs."""
    return migrations()[-1][0]


def version(connection: sqlite3.Connection) -> int:
    """Return the schema version of the file; 0 if it is new."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def problem(connection: sqlite3.Connection) -> str | None:
    """Return what is wrong with the version of the schema, or None."""
    # In this order: another process may make the tables in between.
    names = {name for (name,) in connection.execute(_TABLES)}
    current = version(connection)
    if current == 0 and names.issuperset(_OURS):
        return "the schema has lost its number (PRAGMA user_version): restore a backup that has it"
    if names and (current == 0 or names.isdisjoint(_OURS)):  # Others number their files, too.
        return "the database has tables of another program, and none of genhook"
    return describe_problem(current, latest())


def migrate(connection: sqlite3.Connection) -> list[str]:
    """Apply the missing migrations; return their names.

    StorageError if the schema is newer, or if the file is another program's.
    """
    applied: list[str] = []
    if (message := problem(connection)) and not isinstance(message, Older):
        raise StorageError(message)
    for number, path in migrations():
        with transaction(connection):
            if version(connection) < number:
                for statement in _statements(path.read_text()):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version={number}")
                applied.append(path.stem)
    if message := problem(connection):
        raise StorageError(message)
    return applied


def missing(connection: sqlite3.Connection, kind: Literal["table", "index"]) -> dict[str, str]:
    """Return what is missing of a kind, as {name: the statement that creates it}."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        migrate(fresh)
        created = dict(fresh.execute(_CREATED, (kind,)))
    for name, _ in connection.execute(_CREATED, (kind,)):
        created.pop(name, None)
    return {name: " ".join(sql.split()) for name, sql in created.items()}


def _statements(script: str) -> Iterator[str]:
    """Split a script into statements: sqlite3's executescript would commit the transaction."""
    current = ""
    for line in script.splitlines(keepends=True):
        current += line
        if sqlite3.complete_statement(current):
            yield current
            current = ""
    if current.strip():  # A last statement without a semicolon, or a comment.
        yield current
