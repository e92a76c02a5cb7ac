"""A synchronous standby that is away: nothing counts as stored before it has it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from service.store.postgres import Database
from tests import engine, servers

_WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
# The right to write to the server's log alone, which a hardened server leaves to few.
_TAKE_RIGHT = """
DO $$ BEGIN EXECUTE (
    SELECT string_agg(format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', oid::regprocedure), ';')
    FROM pg_proc WHERE proname = 'pg_logical_emit_message'
); END $$"""
_STORED = "SELECT number FROM revisions WHERE noun = 'stored'"


@pytest.fixture
async def admin(postgres: engine.Schemas) -> AsyncIterator[asyncpg.Connection]:
    """A connection of a superuser to a server of its own, which waits for no standby yet."""
    programs, owner = servers.of_package(postgres)
    with servers.folders("synchronous", owner, 1) as [folder]:
        server = servers.Server(programs, folder)
        server.create()
        server.start()
        connection = await asyncpg.connect(server.url)
        # Of its own commits, which end no wait of others.
        await connection.execute("SET synchronous_commit = local")
        await connection.execute("CREATE ROLE genhook LOGIN; GRANT ALL ON SCHEMA public TO genhook")
        await connection.execute(_TAKE_RIGHT)
        try:
            yield connection
        finally:
            await connection.close()
            await asyncio.to_thread(server.stop)


async def wait_for(admin: asyncpg.Connection, standbys: str) -> None:
    """Let commits wait from now on for standbys of these names; none if it is empty."""
    await admin.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{standbys}'")
    await admin.execute("SELECT pg_reload_conf()")
    async with asyncio.timeout(60):
        while await admin.fetchval("SHOW synchronous_standby_names") != standbys:
            pass


async def session_that_waits(
    admin: asyncpg.Connection, writing: asyncio.Future[Any], last: int = 0
) -> int:
    """Return the session that waits for a standby, once there is another one than the last.

    Fail if the caller of the unit has its answer by then.
    """
    async with asyncio.timeout(60):
        while True:
            assert not writing.done(), "it was acknowledged"
            pid = await admin.fetchval(_WAITING)
            if pid not in (None, last):
                return int(pid)


async def store(tx: Any) -> str:
    await tx.select("INSERT INTO revisions VALUES ('stored', 7) RETURNING number", {})
    return "stored"


async def test_a_commit_that_no_standby_has_is_not_acknowledged_although_its_session_was_ended(
    admin: asyncpg.Connection,
) -> None:
    url = f"postgresql://genhook@{admin._addr[0]}:{admin._addr[1]}/postgres"
    database = Database(url, clock=lambda: 7)
    async with contextlib.AsyncExitStack() as stack:
        await database.open()
        stack.push_async_callback(database.close)
        await database.migrate()
        await wait_for(admin, "nosuch")
        stack.push_async_callback(wait_for, admin, "")  # Or nothing would end.
        writing = asyncio.ensure_future(database.write(store))
        first = await session_that_waits(admin, writing)
        await admin.execute("SELECT pg_terminate_backend($1)", first)
        await session_that_waits(admin, writing, first)
        assert await admin.fetchval(_STORED) == 7, "it is committed here"
        await wait_for(admin, "")
        assert await writing == "stored"
