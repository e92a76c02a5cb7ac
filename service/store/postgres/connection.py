"""Connections to PostgreSQL: how they are opened, and which errors are the server's.

Behind a pooler in transaction mode, each transaction of a connection may run in another session.
So settings are sent with each transaction, and no session may hold a lock or LISTEN.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import parse_qsl, urlencode

import asyncpg
from asyncpg.exceptions import ClientConfigurationError, TargetServerAttributeNotMatched

from service.model.errors import StorageError
from service.store.postgres.hosts import hosts_of

VERSION_MIN = 15  # The oldest PostgreSQL that the tests run on.
CONNECT_SECONDS = 5.0
COMMAND_SECONDS = 30.0  # Of a statement; the caller of its unit has stopped waiting long before.
LONG_SECONDS = 86_400.0  # Of a statement that no unit waits for: of a migration, or of a copy.
CONNECTION_SETTINGS = {  # So that the server notices a client that is gone.
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "20000",
    "idle_session_timeout": "0",  # Idle connections stay open; one holds the locks.
}
# A role or a database may have other values of these, as for people or reports.
TRANSACTION_SETTINGS = {
    # The server ends a transaction that a process has left open.
    "idle_in_transaction_session_timeout": "10000",
    # The callers of units have time limits of their own. A migration and a copy may take long.
    "statement_timeout": "0",
    "lock_timeout": "0",
    "jit": "off",  # Compiling a statement takes longer than running any of ours.
    # Every statement is written for an index, also while a table is small.
    "enable_seqscan": "off",
}

NEWER_SETTINGS = {"transaction_timeout": "0"}  # As above, since PostgreSQL 17.

# SQLSTATE classes that are the server's fault (PostgreSQL docs, appendix A): connections,
# transaction states, user, database, schema, conflicts, resources, objects in use, operators, the
# system. Not 54 (program limits): a value that is too large is the unit's fault.
_SERVER_CLASSES = ("08", "25", "28", "3D", "3F", "40", "53", "55", "57", "58", "XX")
# Of class 42: rights; a missing table, column, object or function. The rest is our own fault.
_SERVER_STATES = ("42501", "42P01", "42703", "42704", "42883")
_CLIENTS = (asyncpg.InterfaceError, asyncpg.InternalClientError)
_PID_AND_TRACKING = "SELECT pg_backend_pid(), CAST(current_setting('track_activities') AS BOOLEAN)"
_NAME = re.compile(r'\s*"(?:[^"]|"")*"|[^,]+')  # Of a schema in a `search_path`.


class Pool:
    """The connections of a process, each of which is taken for one transaction at a time."""

    def __init__(
        self, connections: Any, settings: dict[str, str] | None, *, is_tracked: bool
    ) -> None:
        self._connections = connections
        self.is_tracked = is_tracked  # Whether the server shows when a session sent a statement.
        # Behind a pooler: statements that begin each transaction.
        self._preamble = None if settings is None else _set_local(settings)

    @property
    def is_pooled(self) -> bool:
        """Whether the connections go through a pooler, so that none has a session of its own."""
        return self._preamble is not None

    @contextlib.asynccontextmanager
    async def transaction(self, **options: Any) -> AsyncIterator[Any]:
        """A connection in a transaction, which is committed at the end.

        Its isolation is READ COMMITTED unless the options have another, whatever the role's default
        is: code that waits for a lock relies on seeing what was committed meanwhile.
        """
        options = {"isolation": "read_committed", **options}
        try:
            async with contextlib.AsyncExitStack() as held:
                connection, begun = await self._begin(held, options)
                try:
                    async with begun:
                        if self._preamble is not None:
                            await connection.execute(self._preamble)
                        yield connection
                except asyncpg.InvalidCachedStatementError:
                    await connection.reload_schema_state()
                    raise
        except TimeoutError:  # The server hangs or is gone, for the other connections too.
            await self._connections.expire_connections()
            raise

    async def _begin(
        self, held: contextlib.AsyncExitStack, options: dict[str, Any]
    ) -> tuple[Any, contextlib.AsyncExitStack]:
        """Return a connection, and the context of the transaction that has begun on it.

        Idle connections may have ended while this process was frozen, as on Lambda. BEGIN then
        fails. No statement was sent by then, so another connection is taken.
        """
        tries = 1 + self._connections.get_idle_size()
        while True:
            own, begun = contextlib.AsyncExitStack(), contextlib.AsyncExitStack()
            connection, tries = None, tries - 1
            try:
                with _raising_refusal():
                    acquired = self._connections.acquire(timeout=CONNECT_SECONDS)
                    connection = await own.enter_async_context(acquired)
                await begun.enter_async_context(connection.transaction(**options))
            except BaseException as error:
                await own.aclose()
                is_lost = is_storage_fault(error) and not isinstance(error, TimeoutError)
                if connection is None or not (is_lost and tries):
                    raise
            else:
                held.push_async_exit(own)
                return connection, begun

    async def close(self) -> None:
        """Close every connection once it is free."""
        await self._connections.close()

    def terminate(self) -> None:
        """Close every connection at once."""
        self._connections.terminate()


def _arguments(
    url: str, name: str, settings: dict[str, str], *, is_pooled: bool = False
) -> dict[str, Any]:
    """Return the arguments of a connection. A pooler refuses most settings at its start."""
    dsn, path = _split_search_path(url)
    settings = {} if is_pooled else {**path, **CONNECTION_SETTINGS, **settings}
    return {
        "dsn": dsn,
        "target_session_attrs": "read-write",  # Of several servers in the URL, the primary.
        "server_settings": {"application_name": name, **settings},
        "timeout": CONNECT_SECONDS,
        "command_timeout": COMMAND_SECONDS,
        # A statement would stay prepared in a session that is another client's next.
        **({"statement_cache_size": 0} if is_pooled else {}),
    }


def _split_search_path(url: str) -> tuple[str, dict[str, str]]:
    """Return a URL without its `search_path`, and the `search_path` as a setting."""
    base, _, query = url.partition("?")
    options = parse_qsl(query, keep_blank_values=True)
    others = [(name, value) for name, value in options if name != "search_path"]
    path = {name: value for name, value in options if name == "search_path"}
    return f"{base}?{urlencode(others)}" if others else base, path


def _set_local(settings: dict[str, str]) -> str:
    """Return statements that apply these settings until the transaction ends."""
    return "".join(f"SET LOCAL {name} = {value};" for name, value in settings.items())


def _quoted(path: str) -> str:
    """Return a `search_path` with each name quoted, as a SET statement needs it."""
    names = (name.strip() for name in _NAME.findall(path))
    return ", ".join(
        name if name.startswith('"') else '"' + name.lower().replace('"', '""') + '"'
        for name in names
        if name
    )


async def connect(url: str, name: str = "genhook") -> Any:
    """Open one connection, which the server knows by this name. StorageError if that fails."""
    with raising_storage_error("cannot connect to the database"), _raising_refusal():
        async with asyncio.timeout(CONNECT_SECONDS):
            return await _connect(**_arguments(url, name, TRANSACTION_SETTINGS))


async def _connect(dsn: str, **arguments: Any) -> Any:
    return await hosts_of(dsn).connect(dsn, **arguments)


async def open_pool(url: str, connections: int, name: str) -> Pool:
    """Open a pool of up to so many connections. StorageError if the server does not answer."""
    with raising_storage_error("cannot connect to the database"), _raising_refusal():
        async with asyncio.timeout(CONNECT_SECONDS):
            is_pooled, is_tracked, settings = await _look_at_server(url, name)
            # It keeps no connection by itself: it would log each try while the server is away.
            sizes = {"min_size": 0, "max_size": connections}
            arguments = _arguments(url, name, settings, is_pooled=is_pooled)
            connect_ = hosts_of(arguments["dsn"]).connect
            opened = await asyncpg.create_pool(
                **arguments, **sizes, reset=_leave_as_it_is, connect=connect_
            )
    path = {name: _quoted(value) for name, value in _split_search_path(url)[1].items()}
    return Pool(opened, {**settings, **path} if is_pooled else None, is_tracked=is_tracked)


async def _look_at_server(url: str, name: str) -> tuple[bool, bool, dict[str, str]]:
    """Return whether the URL leads to a pooler, `Pool.is_tracked`, and each transaction's settings.

    A pooler reports another process id for the session than the server does. StorageError if the
    server cannot be used at all.
    """
    connection = await _connect(**_arguments(url, name, {}, is_pooled=True))
    try:
        _check_version(connection.get_server_version())
        _check_encoding(connection.get_settings().server_encoding)
        pid, is_tracked = await connection.fetchrow(_PID_AND_TRACKING)
        is_newer = connection.get_server_version() >= (17,)
        newer = NEWER_SETTINGS if is_newer else {}
        is_pooled = bool(pid != connection.get_server_pid())
        return is_pooled, is_tracked, {**TRANSACTION_SETTINGS, **newer}
    finally:
        connection.terminate()


def _check_version(version: Any) -> None:
    """StorageError if the server is older than VERSION_MIN."""
    if version.major < VERSION_MIN:
        raise StorageError(
            f"the server is PostgreSQL {version.major}.{version.minor}, "
            f"and genhook needs {VERSION_MIN} or newer"
        )


def _check_encoding(encoding: str) -> None:
    """StorageError unless the encoding can store every text."""
    if encoding != "UTF8":
        raise StorageError(
            f"the database has the encoding {encoding}, and needs UTF8: CREATE DATABASE genhook "
            "ENCODING 'UTF8' TEMPLATE template0"
        )


async def _leave_as_it_is(_connection: Any) -> None:
    """Send no statements that reset a session: a unit leaves nothing in it."""


@contextlib.asynccontextmanager
async def transaction_of(pool: Pool, **options: Any) -> AsyncIterator[Any]:
    """A transaction on a connection of the pool; failures of the server become StorageError."""
    with raising_storage_error("the database failed"):
        async with pool.transaction(**options) as connection:
            yield connection


@contextlib.contextmanager
def _raising_refusal() -> Iterator[None]:
    """Turn a server's error on a new connection into a failure: no unit is to blame."""
    try:
        yield
    except asyncpg.PostgresError as error:
        if is_storage_fault(error) and not isinstance(error, asyncpg.UndefinedObjectError):
            raise
        raise ConnectionRefusedError(
            f"{reason(error)} (an option of GENHOOK_DATABASE_URL, or a setting of its role)"
        ) from error


@contextlib.contextmanager
def raising_storage_error(prefix: str) -> Iterator[None]:
    """Turn failures of the server, or of the way to it, into StorageError."""
    try:
        yield
    except Exception as error:
        if is_storage_fault(error):
            raise StorageError(f"{prefix}: {reason(error)}") from error
        raise


def is_repeatable(error: BaseException) -> bool:
    """Return whether the same unit may succeed if it runs again.

    It was in conflict with another (SQLSTATE class 40), or a migration changed a result's columns.
    """
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        return True
    return isinstance(error, asyncpg.PostgresError) and (error.sqlstate or "").startswith("40")


def is_storage_fault(error: BaseException) -> bool:
    """Return whether the server or the way to it is at fault, not the unit."""
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        return state[:2] in _SERVER_CLASSES or state in _SERVER_STATES
    # A value that the driver cannot encode is the unit's; an unknown certificate is no such value.
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return isinstance(error, ClientConfigurationError)
    return isinstance(error, (OSError, TimeoutError, *_CLIENTS))


def reason(error: BaseException) -> str:
    """Return what the server said, on one line. It never quotes a URL or a password."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, TargetServerAttributeNotMatched):
        return (
            "the server is read-only, or a standby in recovery, or default_transaction_read_only "
            "is on for this role or database"
        )
    if isinstance(error, _CLIENTS) and not isinstance(error, ClientConfigurationError):
        return "the connection was lost"  # asyncpg names only its own call that failed.
    if isinstance(error, asyncpg.InvalidSchemaNameError):
        return f"{error}: the search_path names none that is there and that this user may use"
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
