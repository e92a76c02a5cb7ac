"""Migrations: of a new, an older, a newer and a damaged database file."""

import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from service.app import App
from service.model.errors import StorageError
from service.store.sqlite import schema
from service.store.sqlite.database import Database
from tests.harness import settings


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Database]:
    database = Database(str(path))
    await database.open()
    try:
        yield database
    finally:
        await database.close()


def declared_names() -> set[str]:
    """Return the names of the tables and indexes in the migrations' text."""
    text = " ".join(path.read_text() for _, path in schema.migrations())
    return set(re.findall(r"(?:TABLE|INDEX|TRIGGER) (\w+)", text))


def test_migrations_are_numbered_without_a_gap() -> None:
    numbers = [number for number, _ in schema.migrations()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert schema.latest() == numbers[-1]


async def test_a_new_file_gets_every_table_and_index(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as database:
        applied = await database.migrate()
        assert applied == [path.stem for _, path in schema.migrations()]
        assert await database.schema_problem() is None
        rows = await database.apply(
            lambda c: c.execute("SELECT name FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
        )
    assert {row["name"] for row in rows} - {"sqlite_sequence", "sqlite_stat1"} == declared_names()


@pytest.mark.parametrize("number", [0, 1, 7, -1])
@pytest.mark.parametrize("what", ["TABLE songs (title TEXT)", "VIEW songs AS SELECT 1 AS title"])
async def test_a_file_of_another_program_is_refused_and_stays_as_it_is(
    tmp_path: Path, what: str, number: int
) -> None:
    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"CREATE {what}")
        connection.execute(f"PRAGMA user_version={number}")
        connection.commit()
    async with opened(path) as database:
        with pytest.raises(StorageError, match="tables of another program"):
            await database.migrate()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("songs",)]


async def test_tables_of_genhook_that_have_lost_their_number_are_no_other_programs(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.db"
    async with opened(path) as database:
        await database.migrate()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version=0")
    async with opened(path) as database:
        with pytest.raises(StorageError, match="has lost its number"):
            await database.migrate()


@pytest.mark.parametrize("is_replaced", [False, True])
async def test_a_file_that_was_deleted_or_replaced_meanwhile_is_a_schema_problem(
    tmp_path: Path, *, is_replaced: bool
) -> None:
    path, other = tmp_path / "a.db", tmp_path / "b.db"
    async with opened(path) as database, opened(other) as backup:
        await database.migrate()
        await backup.migrate()
        assert await database.schema_problem() is None
        path.unlink()
        if is_replaced:
            other.rename(path)
        assert "was deleted or replaced" in str(await database.schema_problem())


async def test_a_second_migrate_changes_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as database:
        await database.migrate()
        assert await database.migrate() == []
    async with opened(tmp_path / "a.db") as database:
        assert await database.migrate() == []


async def test_a_file_that_is_not_migrated_is_a_schema_problem(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as database:
        problem = await database.schema_problem()
        assert problem is not None
        assert "run genhook migrate" in problem
        await database.migrate()
        assert await database.schema_problem() is None


async def test_a_file_of_a_newer_version_is_refused_and_not_changed(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as database:
        await database.migrate()
        newer = schema.latest() + 1
        await database.apply(lambda c: c.execute(f"PRAGMA user_version={newer}"))
        with pytest.raises(StorageError, match="newer genhook"):
            await database.migrate()
        problem = await database.schema_problem()
        assert problem is not None
        assert "newer genhook" in problem
        assert await database.apply(schema.version) == newer


async def test_a_migration_that_fails_is_rolled_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "migrations"
    folder.mkdir()
    (folder / "0001_good.sql").write_text("CREATE TABLE good (a);\n")
    (folder / "0002_bad.sql").write_text("CREATE TABLE half (a);\nCREATE TABLE good (a);\n")
    monkeypatch.setattr(schema, "_FOLDER", folder)
    async with opened(tmp_path / "a.db") as database:
        with pytest.raises(StorageError, match="good"):
            await database.migrate()
        assert await database.apply(schema.version) == 1
        rows = await database.apply(
            lambda c: c.execute("SELECT name FROM sqlite_schema").fetchall()
        )
        assert [row["name"] for row in rows] == ["good"]


def test_the_last_statement_of_a_migration_needs_no_semicolon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0001_two.sql").write_text("CREATE TABLE tenants (x);\nCREATE TABLE b (y)\n")
    monkeypatch.setattr(schema, "_FOLDER", tmp_path)
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        schema.migrate(connection)
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_schema")]
    assert names == ["tenants", "b"]


async def test_two_processes_may_migrate_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as one, opened(tmp_path / "a.db") as other:
        applied = [await one.migrate(), await other.migrate()]
    assert applied == [[path.stem for _, path in schema.migrations()], []]


@pytest.mark.parametrize("damage", ["not a database", "header", "page"])
async def test_a_damaged_file_is_refused_and_not_changed(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "genhook.db"
    if damage == "not a database":
        path.write_bytes(b"this is a text file\n" * 500)
    else:
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE texts (line TEXT)")
            connection.executemany("INSERT INTO texts VALUES (?)", [("line",)] * 2_000)
        connection.close()
        content = bytearray(path.read_bytes())
        start, end = (16, 100) if damage == "header" else (100, 4_000)
        content[start:end] = b"\xa5" * (end - start)
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(StorageError, match=r"cannot (open|migrate) .*genhook\.db: "):
        await App(settings(tmp_path)).start(worker=False)
    assert path.read_bytes() == before
    assert not (tmp_path / "genhook.db-wal").exists()


class Overtaken(sqlite3.Connection):
    """A connection before whose second statement another process migrates the file."""

    statements, path = 0, Path()

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        self.statements += 1
        if self.statements == 2:
            with closing(sqlite3.connect(self.path, isolation_level=None)) as other:
                schema.migrate(other)
        return super().execute(*arguments)


def test_a_file_that_another_process_migrates_meanwhile_is_not_another_programs(
    tmp_path: Path,
) -> None:
    with closing(sqlite3.connect(tmp_path / "a.db", factory=Overtaken)) as connection:
        connection.path = tmp_path / "a.db"
        assert schema.problem(connection) is None
