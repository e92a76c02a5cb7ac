"""The checks of `genhook doctor` on a PostgreSQL server."""

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec

from service.cli.arguments import to_sentence
from service.cli.database_checks import (
    CLOCK_OFF_MS,
    SEALED,
    TOUCH,
    Finding,
    Level,
    judge_due,
    judge_indexes,
    judge_schema,
    judge_tables,
)
from service.model.errors import StorageError
from service.settings import Settings
from service.store.migrations import Older
from service.store.shards import SHARDS

OLD_TRANSACTION_SECONDS = 300
DEAD_ROWS_MAX = 100_000
_STATE = """
SELECT current_setting('server_version') AS version,
    CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT) AS now,
    pg_database_size(current_database()) AS bytes,
    current_setting('fsync') = 'on'
        AND current_setting('synchronous_commit') <> 'off' AS is_durable,
    current_setting('synchronous_standby_names') <> '' AS has_standby,
    quote_ident(current_schema()) AS schema, quote_ident(current_user) AS role,
    has_schema_privilege(current_schema(), 'CREATE') AS may_create,
    -- Without the right to see more, what follows has no state.
    NOT EXISTS (SELECT 1 FROM pg_stat_replication
        WHERE coalesce(sync_state, 'sync') IN ('sync', 'quorum')) AS lacks_standby,
    (SELECT coalesce(max(CAST(extract(epoch FROM clock_timestamp() - xact_start) AS BIGINT)), 0)
        FROM pg_stat_activity WHERE datname = current_database()) AS oldest_seconds"""
_INVALID = """
SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE NOT i.indisvalid AND n.nspname = current_schema()"""
# Estimates of the server, which cost nothing: rows that nobody sees any more, by table.
_BLOATED = f"""
SELECT relname, n_dead_tup FROM pg_stat_user_tables
WHERE schemaname = current_schema() AND n_dead_tup > {DEAD_ROWS_MAX} AND n_dead_tup > n_live_tup
ORDER BY n_dead_tup DESC LIMIT 3"""  # noqa: S608  a number of ours
_LARGEST = """
SELECT relname, pg_total_relation_size(relid) AS bytes FROM pg_stat_user_tables
WHERE schemaname = current_schema() ORDER BY bytes DESC LIMIT 3"""


class Server(msgspec.Struct):
    """What a look at the server found; `problem` is why it ended."""

    problem: str | None = None
    is_pooled: bool = False
    worker_problem: str | None = None  # Why no worker could begin, if it is no pooler.
    schema_problem: str | None = None
    schema_version: int = 0
    state: dict[str, Any] = {}
    missing_tables: list[str] = []
    missing: dict[str, str] = {}  # Indexes, with the statements that create them.
    invalid: list[str] = []
    due: list[tuple[str, int | None]] | None = None  # Kinds of rows with their earliest due times.
    bloated: list[tuple[str, int]] = []  # Tables with their rows that nobody sees any more.
    largest: list[tuple[str, int]] = []  # Tables with their sizes in bytes, indexes included.
    sealed: list[tuple[str, bytes]] | None = None
    shards: dict[str, int] = {}  # How many each process holds, by the name of its connections.


def look(url: str) -> Server:
    """Look at the server. An error is not raised: it is the `problem` of the result."""
    server = Server()
    try:
        asyncio.run(_look(server, url))
    except ModuleNotFoundError:
        server.problem = "the driver is not installed: pip install 'genhook[postgres]'"
    except StorageError as error:
        server.problem = str(error)
    return server


async def _look(server: Server, url: str) -> None:
    from service.store.postgres import locks, schema
    from service.store.postgres.connection import open_pool, transaction_of

    pool = await open_pool(url, 1, "genhook")
    server.is_pooled = pool.is_pooled
    server.worker_problem = None if pool.is_tracked else locks.UNTRACKED
    try:
        async with transaction_of(pool) as connection:
            server.state = dict(await connection.fetchrow(_STATE))
            server.schema_problem = await schema.problem(connection)
            server.schema_version = schema.latest()
            if server.schema_problem is None:
                await _look_inside(server, connection)
        # Only now, since the transaction holds locks that this session may have to wait for.
        if server.schema_problem is None and not pool.is_pooled:
            server.worker_problem = await _try_as_worker(url)
    finally:
        await pool.close()


async def _try_as_worker(url: str) -> str | None:
    """Return why a worker could not begin now, or None; it takes no lock."""
    from service.store.postgres import locks
    from service.store.postgres.connection import connect, raising_storage_error

    try:
        connection = await connect(url)
        try:
            with raising_storage_error("no worker can look at the locks"):
                await locks.begin(connection)
        finally:
            connection.terminate()  # At once: a server that hangs would answer no `close`.
    except StorageError as error:
        return str(error)
    return None


async def _look_inside(server: Server, connection: Any) -> None:
    from service.store.postgres import locks, schema
    from service.store.postgres.statements import statements

    server.missing_tables = await schema.missing_tables(connection)
    if server.missing_tables:
        return
    server.missing = await schema.missing_indexes(connection)
    server.invalid = [row[0] for row in await connection.fetch(_INVALID)]
    if not server.missing:  # Else it could take long.
        rows = await connection.fetch(statements()["stats_due"].sql)
        server.due = [tuple(row) for row in rows]
    server.bloated = [tuple(row) for row in await connection.fetch(_BLOATED)]
    server.largest = [tuple(row) for row in await connection.fetch(_LARGEST)]
    await connection.execute(TOUCH)
    held = await locks.holders(connection)
    server.shards = {name: len(shards) for name, shards in held.items()}
    server.sealed = [tuple(row) for row in await connection.fetch(SEALED)]


def judge(server: Server, settings: Settings, now: int) -> Iterator[Finding]:
    """Say what was found, most basic first."""
    state = server.state
    if state:
        size = state["bytes"] >> 20
        yield Finding(
            "ok", "server", f"PostgreSQL {state['version']}; the database has {size} MiB."
        )
        yield from _judge_worker(server, settings)
        yield _judge_durability(state)
        yield from _judge_times(state, now)
    if server.problem:
        yield Finding("fail", "database", f"{server.problem}.")
    elif state["schema"] is None:
        message = "The search_path names no schema that is there and that this user may use."
        yield Finding("fail", "schema", message)
    elif isinstance(server.schema_problem, Older) and not state["may_create"]:
        grant = f"GRANT CREATE ON SCHEMA {state['schema']} TO {state['role']}"
        message = f"The role may not create what is missing: run `{grant}` as the schema's owner."
        yield Finding("fail", "schema", message)
    elif server.schema_problem:
        yield judge_schema(server.schema_problem, server.schema_version)
    elif server.missing_tables:
        yield from judge_tables(server.missing_tables)
    else:
        yield judge_schema(None, server.schema_version)
        yield Finding("ok", "database", "It can be written to.")
        if server.worker_problem is None:
            yield _judge_shards(server.shards)
        yield from _judge_tables(server)
        if server.due is not None:
            yield from judge_due(server.due, now)


def _judge_worker(server: Server, settings: Settings) -> Iterator[Finding]:
    """Say what keeps a worker from starting."""
    level: Level = "warn" if settings.worker == "off" else "fail"
    if server.is_pooled:
        from service.store.postgres.locks import POOLED  # It needs the driver.

        yield Finding(level, "pooler", to_sentence(POOLED))
    if server.worker_problem:
        yield Finding(level, "worker", f"None can begin: {server.worker_problem}.")


def _judge_shards(shards: dict[str, int]) -> Finding:
    if not shards:
        return Finding("ok", "worker", "No process works on it now.")
    held = ", ".join(f"{name} {count}" for name, count in sorted(shards.items()))
    if (free := SHARDS - sum(shards.values())) > 0:
        message = f"{free} of {SHARDS} shards are held by nobody, which should last for seconds"
        return Finding("warn", "worker", f"{message}: {held}.")
    return Finding("ok", "worker", f"Every shard is held: {held}.")


def _judge_tables(server: Server) -> Iterator[Finding]:
    sizes = ", ".join(f"{name} {size >> 20} MiB" for name, size in server.largest)
    yield Finding("ok", "tables", f"The largest are {sizes}, with their indexes.")
    for name, count in server.bloated:
        message = f"{name} has {count:,} dead rows, more than living ones: VACUUM does not keep up."
        yield Finding("warn", "tables", message)
    for name in server.invalid:
        yield Finding("warn", "indexes", f"{name} is not valid: run `REINDEX INDEX {name}`.")
    yield from judge_indexes(server.missing)


def _judge_durability(state: dict[str, Any]) -> Finding:
    if not state["is_durable"]:
        message = "fsync or synchronous_commit is off: a crash loses callbacks that were answered."
        return Finding("fail", "durability", message)
    if not state["has_standby"]:
        message = "No synchronous standby: a failover can lose the latest commits."
        return Finding("warn", "durability", message)
    if state["lacks_standby"]:
        message = "A synchronous standby is named, but none follows: commits wait for it."
        return Finding("fail", "durability", message)
    return Finding("ok", "durability", "Commits wait for a synchronous standby.")


def _judge_times(state: dict[str, Any], now: int) -> Iterator[Finding]:
    if abs(state["now"] - now) > CLOCK_OFF_MS:
        seconds = round((state["now"] - now) / 1_000)
        message = f"The server's clock differs from this machine's by {seconds} seconds."
        yield Finding("warn", "clock", message)
    if state["oldest_seconds"] > OLD_TRANSACTION_SECONDS:
        message = f"A transaction is {state['oldest_seconds']} seconds old: it holds up VACUUM."
        yield Finding("warn", "transactions", message)
