"""Several PostgreSQL servers in one URL: a fail-over, and servers that do not answer."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from asyncpg.exceptions import TargetServerAttributeNotMatched

from service.model.errors import StorageError
from service.store.postgres import connection
from tests import engine, servers
from tests.harness import opened
from tests.store.test_postgres_restart import until_delivered, until_stored

NOT_MATCHED = TargetServerAttributeNotMatched("no host matches")


@pytest.fixture
def pair(postgres: engine.Schemas) -> Iterator[tuple[servers.Server, servers.Server]]:
    """A server, and its standby, which has every commit before it is answered."""
    programs, owner = servers.of_package(postgres)
    with servers.folders("failover", owner, 2) as folders:
        first, second = (servers.Server(programs, folder) for folder in folders)
        try:
            first.create()
            first.start()
            second.follow(first)
            second.start()
            asyncio.run(execute(first.url, "ALTER SYSTEM SET synchronous_standby_names = '*'"))
            asyncio.run(execute(first.url, "SELECT pg_reload_conf()"))
            yield first, second
        finally:
            first.stop()
            second.stop()


async def execute(url: str, sql: str) -> None:
    connected = await asyncpg.connect(url)
    await connected.execute(sql)
    await connected.close()


async def test_the_service_goes_on_by_itself_on_the_server_that_is_promoted(
    pair: tuple[servers.Server, servers.Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pair
    url = f"postgresql://postgres@{first.host},{second.host}/postgres"
    monkeypatch.setattr("service.worker.STANDBY_SECONDS", 0.01)
    monkeypatch.setattr(
        engine, "database_of", lambda _path: f"{url}?target_session_attrs=read-write"
    )
    async with opened(tmp_path, callback_trust="body") as world:
        assert world.app.worker is not None
        world.app.worker.start()
        await world.subscribe()
        await world.generate()
        await until_delivered(world, 1)
        await asyncio.to_thread(first.stop)
        assert (await world.call_back()).status_code == 503
        await asyncio.to_thread(second.promote)
        await until_stored(world)
        await until_delivered(world, 2)
        assert world.subscribers.event_types() == ["generation.submitted", "generation.succeeded"]


async def test_no_connection_to_a_server_that_hangs_is_used_after_the_first_has_shown_it(
    pair: tuple[servers.Server, servers.Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pair
    url = f"postgresql://postgres@{first.host},{second.host}/postgres"
    monkeypatch.setattr(connection, "CONNECT_SECONDS", 6.0)
    monkeypatch.setattr(connection, "COMMAND_SECONDS", 3.0)
    monkeypatch.setattr(engine, "database_of", lambda _path: url)
    async with opened(tmp_path, callback_trust="body") as world:
        await world.generate()
        async with contextlib.AsyncExitStack() as all_at_once:
            for _ in range(4):  # So that as many connections are idle afterwards.
                await all_at_once.enter_async_context(
                    connection.transaction_of(world.app.database._pool)
                )
        with first.hanging():
            await asyncio.to_thread(second.promote)
            assert (await world.call_back()).status_code == 503
            assert (await world.call_back()).is_success


@pytest.fixture
def deaf() -> Iterator[socket.socket]:
    """A server that takes connections and says nothing, as one that hangs."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0)
        yield listening


async def test_a_server_that_says_nothing_is_passed_over_and_asked_last_from_then_on(
    postgres: engine.Schemas, deaf: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CONNECT_SECONDS", 12.0)  # It waits for half of it.
    parts = urlsplit(postgres.url)
    [folder], port = parse_qs(parts.query)["host"], deaf.getsockname()[1]
    url = parts._replace(query=f"host=127.0.0.1,{folder}&port={port},5432").geturl()
    pool = await connection.open_pool(url, 2, "genhook")
    for _ in range(2):
        async with connection.transaction_of(pool) as taken:
            assert await taken.fetchval("SELECT 1") == 1
    await pool.close()
    deaf.accept()[0].close()
    with pytest.raises(BlockingIOError):
        deaf.accept()


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        ({"a": ConnectionRefusedError("refused"), "b": NOT_MATCHED}, "refused"),
        ({"a": NOT_MATCHED, "b": ConnectionRefusedError("refused")}, "refused"),
        ({"a": NOT_MATCHED, "b": NOT_MATCHED}, "the server is read-only, or a standby in recovery"),
        ({"a": asyncpg.InvalidPasswordError("wrong"), "b": None}, "wrong"),
        ({"a": asyncpg.TooManyConnectionsError("too many"), "b": NOT_MATCHED}, "too many"),
    ],
)
async def test_the_reason_is_that_of_a_server_which_would_lead(
    errors: dict[str, Exception | None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def connect(url: str, **_: object) -> None:
        if error := errors[urlsplit(url).hostname or ""]:
            raise error

    monkeypatch.setattr(asyncpg, "connect", connect)
    with pytest.raises(StorageError) as caught:
        await connection.connect("postgresql://a,b/genhook")
    assert str(caught.value).startswith(f"cannot connect to the database: {said}")
