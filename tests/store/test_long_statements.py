"""What no unit waits for may take longer than a statement of a unit: a migration, and a copy."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.store.copying import Table
from service.store.postgres import Database, schema
from service.store.postgres import connection as connection_module
from service.store.postgres.connection import connect
from service.store.postgres.side import PostgresSide
from tests import engine
from tests.store.test_postgres import connected, opened

SHORT_SECONDS = 2.0
LONG = f"SELECT pg_sleep({1.5 * SHORT_SECONDS})"


@pytest.fixture
async def database(
    postgres: engine.Schemas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Database]:
    monkeypatch.setattr(connection_module, "COMMAND_SECONDS", SHORT_SECONDS)
    async with opened(postgres, tmp_path) as database:
        await database.migrate()
        yield database


async def test_a_migration_may_take_longer_than_a_statement(
    database: Database, postgres: engine.Schemas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres.use_up(tmp_path)
    path = tmp_path / "0099_slow.sql"
    path.write_text(LONG)
    migrations = [*schema.migrations(), (99, path)]
    monkeypatch.setattr(schema, "migrations", lambda: migrations)
    assert await database.migrate() == ["0099_slow"]
    assert await database.schema_problem() is None


async def test_a_migration_waits_for_that_of_another_process(database: Database) -> None:
    async with connected(database) as connection:
        async with connection.transaction():
            assert await schema.migrate(connection) == []
            migrating = asyncio.create_task(database.migrate())
            await connection.execute(LONG)
            assert not migrating.done()
        assert await migrating == []


async def test_a_copy_that_begins_anew_may_delete_for_long(database: Database) -> None:
    async with connected(database) as other:
        own = await connect(database.url)
        side, table = PostgresSide("a server", own, database), Table("revisions", (), ("name",))
        async with other.transaction():
            await other.execute("SELECT * FROM revisions FOR UPDATE")
            clearing = asyncio.create_task(side.clear(table))
            await other.execute(LONG)
        await clearing
        await own.close()
        assert await other.fetch("SELECT * FROM revisions") == []
