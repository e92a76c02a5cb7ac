"""Connections to PostgreSQL: how they are opened, and which errors are the server's.

Behind a pooler in transaction mode a connection has another session for each transaction. What a
session would keep is sent with each transaction then, and nothing may hold a lock or listen.
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

CONNECT_SECONDS = 5.0
COMMAND_SECONDS = 30.0  # Of a statement of any unit; its caller has stopped waiting long before.
CONNECTION_SETTINGS = {  # The server notices a client that is gone.
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
TRANSACTION_SETTINGS = {
    # The server ends a transaction that a process has left open.
    "idle_in_transaction_session_timeout": "10000",
    "jit": "off",  # Compiling a statement takes longer than running any of ours.
    # Every statement is written for an index. A scan would also make a transaction that only read
    # some rows of a small table conflict with all that write to it.
    "enable_seqscan": "off",
}

# Of SQLSTATE: connections, transaction states, the user, the database, the schema, conflicts,
# resources, objects in use, operators, the system. Not 54: what is too large is the unit's fault.
_SERVER_CLASSES = ("08", "25", "28", "3D", "3F", "40", "53", "55", "57", "58", "XX")
_NAME = re.compile(r'\s*"(?:[^"]|"")*"|[^,]+')  # Of a schema in a `search_path`.


class Pool:
    """The connections of a process, each of which is taken for one transaction at a time."""

    def __init__(self, connections: Any, settings: dict[str, str] | None) -> None:
        self._connections = connections
        # Set behind a pooler: what each transaction sets for itself.
        self._preamble = None if settings is None else _set_local(settings)

    @property
    def is_pooled(self) -> bool:
        """Whether a pooler stands between: no session is a connection's own."""
        return self._preamble is not None

    @contextlib.asynccontextmanager
    async def transaction(self, **options: Any) -> AsyncIterator[Any]:
        """A connection in a transaction, which is committed at the end."""
        connection, transaction = await self._begin(options)
        try:
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_exit(transaction)
                if self._preamble is not None:
                    await connection.execute(self._preamble)
                yield connection
        except asyncpg.InvalidCachedStatementError:
            await connection.reload_schema_state()
            raise
        finally:
            await self._connections.release(connection)

    async def _begin(self, options: dict[str, Any]) -> tuple[Any, Any]:
        """Take a connection, and begin a transaction on it.

        While nobody used them, as in a process that was frozen, all may have ended: nothing was
        begun on those, so that others, or new ones, take their place.
        """
        tries = self._connections.get_max_size() + 1
        while True:
            connection = await self._connections.acquire(timeout=CONNECT_SECONDS)
            transaction = connection.transaction(**options)
            try:
                await transaction.start()
            except BaseException as error:
                tries -= 1
                has_ended = _has_ended(connection) and is_failure(error)
                await self._connections.release(connection)
                if not has_ended or not tries:
                    raise
            else:
                return connection, transaction

    async def close(self) -> None:
        """Close every connection once it is free."""
        await self._connections.close()

    def terminate(self) -> None:
        """Close every connection at once."""
        self._connections.terminate()


def _has_ended(connection: Any) -> bool:
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:  # The pool has noticed it, and taken it back.
        return True


def _arguments(url: str, name: str, *, is_pooled: bool = False) -> dict[str, Any]:
    """Return what a connection takes. A pooler refuses settings at a start that it cannot keep."""
    settings = {} if is_pooled else {**CONNECTION_SETTINGS, **TRANSACTION_SETTINGS}
    return {
        "dsn": _split_search_path(url)[0] if is_pooled else url,
        "target_session_attrs": "read-write",  # Of several hosts in the URL, the one that leads.
        "server_settings": {"application_name": name, **settings},
        "timeout": CONNECT_SECONDS,
        "command_timeout": COMMAND_SECONDS,
        # A statement would stay prepared in a session that is another client's next.
        **({"statement_cache_size": 0} if is_pooled else {}),
    }


def _split_search_path(url: str) -> tuple[str, dict[str, str]]:
    """Return a URL without its `search_path`, and that as a setting."""
    base, _, query = url.partition("?")
    options = parse_qsl(query, keep_blank_values=True)
    others = [(name, value) for name, value in options if name != "search_path"]
    path = {name: _quoted(value) for name, value in options if name == "search_path"}
    return f"{base}?{urlencode(others)}" if others else base, path


def _set_local(settings: dict[str, str]) -> str:
    """Return statements that set these until the end of the transaction, and take no snapshot."""
    return "".join(f"SET LOCAL {name} = {value};" for name, value in settings.items())


def _quoted(path: str) -> str:
    """Return a `search_path` as a statement has it."""
    names = (name.strip() for name in _NAME.findall(path))
    return ", ".join(
        name if name.startswith('"') else '"' + name.lower().replace('"', '""') + '"'
        for name in names
        if name
    )


async def connect(url: str, name: str = "genhook") -> Any:
    """Open one connection, which the server knows by this name. StorageError if that fails."""
    with failures("cannot connect to the database"):
        async with asyncio.timeout(CONNECT_SECONDS):
            return await asyncpg.connect(**_arguments(url, name))


async def open_pool(url: str, connections: int, name: str) -> Pool:
    """Open a pool of up to so many connections. StorageError if the server does not answer."""
    with failures("cannot connect to the database"):
        async with asyncio.timeout(CONNECT_SECONDS):
            is_pooled = await _look_for_pooler(url, name)
            # It keeps no connection by itself: it would log each try while the server is away.
            sizes = {"min_size": 0, "max_size": connections}
            arguments = _arguments(url, name, is_pooled=is_pooled)
            opened = await asyncpg.create_pool(**arguments, **sizes, reset=_keep)
    own = {**TRANSACTION_SETTINGS, **_split_search_path(url)[1]}
    return Pool(opened, own if is_pooled else None)


async def _look_for_pooler(url: str, name: str) -> bool:
    """Whether a pooler stands between: what it calls the session is no process of the server.

    StorageError if the server cannot be used at all.
    """
    connection = await asyncpg.connect(**_arguments(url, name, is_pooled=True))
    try:
        _check_encoding(connection.get_settings().server_encoding)
        pid = await connection.fetchval("SELECT pg_backend_pid()")
        return bool(pid != connection.get_server_pid())
    finally:
        connection.terminate()


def _check_encoding(encoding: str) -> None:
    """StorageError unless every text can be stored."""
    if encoding != "UTF8":
        raise StorageError(
            f"the database has the encoding {encoding}, and needs UTF8: CREATE DATABASE genhook "
            "ENCODING 'UTF8' TEMPLATE template0"
        )


async def _keep(_connection: Any) -> None:
    """Send no statements that reset a session: a unit leaves nothing in it."""


@contextlib.asynccontextmanager
async def taken(pool: Pool, **options: Any) -> AsyncIterator[Any]:
    """A transaction on a connection of the pool; failures of the server become StorageError."""
    with failures("the database failed"):
        async with pool.transaction(**options) as connection:
            yield connection


@contextlib.contextmanager
def failures(prefix: str) -> Iterator[None]:
    """Turn failures of the server, or of the way to it, into StorageError."""
    try:
        yield
    except Exception as error:
        if is_failure(error):
            raise StorageError(f"{prefix}: {reason(error)}") from error
        raise


def is_repeatable(error: BaseException) -> bool:
    """Return whether the same unit may succeed if it runs again.

    It met another one (SQLSTATE class 40), or a migration has changed what its statements return.
    """
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        return True
    return isinstance(error, asyncpg.PostgresError) and (error.sqlstate or "").startswith("40")


def is_failure(error: BaseException) -> bool:
    """Return whether the server or the way to it is at fault, not the unit."""
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        return state[:2] in _SERVER_CLASSES or state == "42501"  # It forbids this.
    if isinstance(error, ValueError):  # A value that the driver cannot encode is the unit's.
        return isinstance(error, ClientConfigurationError)
    clients = (asyncpg.InterfaceError, asyncpg.InternalClientError)
    return isinstance(error, (OSError, TimeoutError, *clients))


def reason(error: BaseException) -> str:
    """Return what the server said, on one line. It never quotes a URL or a password."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, TargetServerAttributeNotMatched):
        return "the server is read-only, or a standby in recovery"
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
