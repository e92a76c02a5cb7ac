"""Numbered migrations, applied under the database's own lock and checked with one SELECT."""

import sqlite3
from pathlib import Path

from service.model.errors import StorageError
from service.store.sqlite.database import Database

_FOLDER = Path(__file__).parent / "migrations"


def migrations() -> list[tuple[int, Path]]:
    """Every migration that this version knows, in order."""
    return sorted((int(path.name[:4]), path) for path in _FOLDER.glob("*.sql"))


def latest() -> int:
    """The schema version that this code needs."""
    return migrations()[-1][0]


def version(connection: sqlite3.Connection) -> int:
    """The schema version of the file; 0 where it is new."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _check(connection: sqlite3.Connection) -> None:
    found = version(connection)
    if found > latest():
        raise StorageError(
            f"the database has schema {found}, made by a newer genhook; this one knows {latest()}"
        )
    if found < latest():
        raise StorageError(
            f"the database has schema {found}, this genhook needs {latest()}: run genhook migrate"
        )


def _migrate(connection: sqlite3.Connection) -> list[str]:
    """Apply what is missing, each migration in a transaction of its own."""
    applied: list[str] = []
    for number, path in migrations():
        connection.execute("BEGIN IMMEDIATE")
        try:
            if version(connection) < number:
                for statement in _statements(path.read_text()):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version={number}")
                applied.append(path.stem)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    _check(connection)
    return applied


def _statements(script: str) -> list[str]:
    """The script's statements one by one: executescript would commit behind our back."""
    found, current = [], ""
    for line in script.splitlines(keepends=True):
        current += line
        if sqlite3.complete_statement(current):
            found.append(current)
            current = ""
    return found


async def migrate(database: Database) -> list[str]:
    """Bring the database to the latest schema; the names of what was applied.

    StorageError if it was made by a newer version or is no database at all.
    """
    try:
        return await database.apply(_migrate)
    except sqlite3.Error as error:
        raise StorageError(f"cannot migrate {database.path}: {error}") from error


async def check(database: Database) -> None:
    """StorageError unless the schema is the one that this code needs."""
    try:
        await database.apply(_check)
    except sqlite3.Error as error:
        raise StorageError(f"cannot read {database.path}: {error}") from error
