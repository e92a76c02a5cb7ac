"""A PostgreSQL server without a free connection: 503 meanwhile, and then everything goes on."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import asyncpg
import pytest

from tests import engine, servers
from tests.harness import opened
from tests.store.test_postgres_restart import until_delivered, until_stored

CONNECTIONS = 20
TERMINATE = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE application_name LIKE 'genhook%'"""


@pytest.fixture
async def server(postgres: engine.Schemas) -> AsyncIterator[servers.Server]:
    """A server that allows few connections."""
    programs, owner = servers.of_package(postgres)
    with servers.folders("full", owner, 1) as [folder]:
        started = servers.Server(programs, folder)
        started.create()
        started.start(max_connections=str(CONNECTIONS))
        yield started
        await asyncio.to_thread(started.stop)


class Others:
    """Other programs on a server, which take every connection."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connections: list[Any] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()

    async def leave(self) -> None:
        """Give every connection back."""
        while self._connections:
            await self._connections.pop().close()

    async def fill(self) -> None:
        """Take what is free, and what the service has, until it has none and none is free."""
        async with asyncio.timeout(60):
            await self._take()
            while len(self._connections) < CONNECTIONS:
                await self._connections[0].execute(TERMINATE)
                await self._take()

    async def _take(self) -> None:
        try:
            while True:
                self._connections.append(await asyncpg.connect(self._url))
        except asyncpg.TooManyConnectionsError:
            pass


async def test_callbacks_are_refused_while_no_connection_is_free_and_stored_afterwards(
    server: servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.worker.STANDBY_SECONDS", 0.01)
    monkeypatch.setattr("service.store.writes.FAILING_SECONDS", 0.1)
    monkeypatch.setattr(engine, "database_of", lambda _path: server.url)
    async with opened(tmp_path, callback_trust="body") as world, Others(server.url) as others:
        assert world.app.worker is not None
        world.app.worker.start()
        await world.subscribe()
        await world.generate()
        await until_delivered(world, 1)
        await others.fill()
        for _ in range(3):
            assert (await world.call_back()).status_code == 503
        assert (await world.client.get("/readyz")).status_code == 503
        await others.leave()
        await until_stored(world)
        await until_delivered(world, 2)
        assert world.subscribers.event_types() == ["generation.submitted", "generation.succeeded"]
        async with asyncio.timeout(60):
            while (await world.client.get("/readyz")).status_code == 503:
                pass
