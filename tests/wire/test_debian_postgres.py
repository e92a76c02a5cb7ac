"""Debian's PostgreSQL, the oldest supported one: every statement, and the main journey on it."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from service.cli import main
from service.store.postgres import Database
from service.store.postgres.statements import statements
from tests import engine, servers
from tests.cli.test_copy import fill, rows
from tests.conftest import SECRET_KEY
from tests.harness import opened, success_report
from tests.journeys.gates import count_rows
from tests.journeys.test_retention import run_days


@pytest.fixture(scope="module")
def server() -> Iterator[servers.Server]:
    """Debian's server, which has no tables yet."""
    with servers.debians() as started:
        yield started


@pytest.fixture
def url(server: servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a schema of this test, which the harness opens, too."""
    url = server.new_schema(tmp_path.name.lower())
    monkeypatch.setattr(engine, "database_of", lambda _path: url)
    return url


@pytest.fixture
def commands(bare_environment: None, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variables that commands need."""
    monkeypatch.setenv("GENHOOK_DATABASE_URL", url)
    monkeypatch.setenv("GENHOOK_SECRET_KEYS", SECRET_KEY)


async def test_the_server_prepares_every_statement(url: str) -> None:
    database = Database(url)
    await database.open()
    await database.migrate()
    await database.close()
    connection = await asyncpg.connect(url)
    refused = {}
    for name, statement in statements().items():
        try:
            await connection.prepare(statement.sql)
        except asyncpg.PostgresError as error:
            refused[name] = str(error)
    await connection.close()
    assert refused == {}
    assert len(statements()) > 100


async def test_callbacks_polls_deliveries_and_retention_work(url: str, tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await world.subscribe(event_types=["generation.succeeded"])
        created = [await world.generate(metadata={"team": "a"}) for _ in range(3)]
        assert (await world.call_back(success_report("task1"), index=0)).is_success
        world.upstream.finish("task2")
        world.upstream.fail("task3")
        await world.run(60)
        assert world.upstream.polls == ["task2", "task3"]
        ended = [await world.get(f"/v1/generations/{each['id']}") for each in created]
        assert [each["status"] for each in ended] == ["succeeded", "succeeded", "failed"]
        assert world.subscribers.event_types() == ["generation.succeeded"] * 2
        found = await world.get("/v1/generations", **{"metadata.team": "a", "status": "failed"})
        assert [each["id"] for each in found["data"]] == [created[2]["id"]]
        await world.app.database.write(damage, created[0]["id"], created[1]["id"])
        await run_days(world, 40)
        # The one whose list of events cannot be read stays, as on the other databases.
        counts = await count_rows(world, "generations", "generation_metadata", "deliveries")
        assert counts == {"generations": 1, "generation_metadata": 2, "deliveries": 0}


async def damage(tx: Any, events_of: str, metadata_of: str) -> None:
    await tx._connection.execute("UPDATE generations SET event_ids = '{' WHERE id = $1", events_of)
    sql = "UPDATE generation_bodies SET metadata = '{' WHERE generation_id = $1"
    await tx._connection.execute(sql, metadata_of)


def test_a_service_moves_to_it_and_back(commands: None, url: str, tmp_path: Path) -> None:
    asyncio.run(fill(tmp_path))  # On that server.
    first, second = tmp_path / "first.db", tmp_path / "second.db"
    assert main.main(["copy", "--from", url, "--to", f"sqlite:///{first}"]) == 0
    asyncio.run(empty(url))
    assert main.main(["copy", "--from", f"sqlite:///{first}", "--to", url]) == 0
    assert main.main(["copy", "--from", url, "--to", f"sqlite:///{second}"]) == 0
    assert rows(second) == rows(first)
    assert rows(first)["attempts"]


async def empty(url: str) -> None:
    connection = await asyncpg.connect(url)
    name = f'"{await connection.fetchval("SELECT current_schema()")}"'
    await connection.execute(f"DROP SCHEMA {name} CASCADE; CREATE SCHEMA {name}")
    await connection.close()


def test_migrate_and_the_doctor_are_content(
    commands: None, capsys: pytest.CaptureFixture[str]
) -> None:
    number = engine.version(servers.find_debians())
    assert main.main(["migrate"]) == 0
    capsys.readouterr()
    main.main(["doctor", "--json"])
    found = {each["about"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["server"]["message"].startswith(f"PostgreSQL {number}.")
    assert found["database"]["level"] == "ok"
    assert found["indexes"]["level"] == "ok"
