"""Connections to PostgreSQL: how they are opened, and which errors are the server's."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
from asyncpg.exceptions import ClientConfigurationError, TargetServerAttributeNotMatched

from service.model.errors import StorageError

CONNECT_SECONDS = 5.0
COMMAND_SECONDS = 30.0  # Of a statement of any unit; its caller has stopped waiting long before.
SERVER_SETTINGS = {
    # The server ends a transaction that a process has left open, and notices a client that is gone.
    "idle_in_transaction_session_timeout": "10000",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "20000",
    "jit": "off",  # Compiling a statement takes longer than running any of ours.
    # Every statement is written for an index. A scan would also make a transaction that only read
    # some rows of a small table conflict with all that write to it.
    "enable_seqscan": "off",
}

# Of SQLSTATE: connections, transaction states, the user, the database, the schema, conflicts,
# resources, objects in use, operators, the system. Not 54: what is too large is the unit's fault.
_SERVER_CLASSES = ("08", "25", "28", "3D", "3F", "40", "53", "55", "57", "58", "XX")


def _arguments(url: str, name: str) -> dict[str, Any]:
    return {
        "dsn": url,
        "target_session_attrs": "read-write",  # Of several hosts in the URL, the one that leads.
        "server_settings": {"application_name": name, **SERVER_SETTINGS},
        "timeout": CONNECT_SECONDS,
        "command_timeout": COMMAND_SECONDS,
    }


async def connect(url: str, name: str = "genhook") -> Any:
    """Open one connection, which the server knows by this name. StorageError if that fails."""
    with failures("cannot connect to the database"):
        async with asyncio.timeout(CONNECT_SECONDS):
            return await asyncpg.connect(**_arguments(url, name))


async def open_pool(url: str, connections: int, name: str) -> Any:
    """Open a pool of up to so many connections. StorageError if the server does not answer."""
    with failures("cannot connect to the database"):
        # It keeps no connection by itself: it would log each try while the server is away.
        sizes = {"min_size": 0, "max_size": connections}
        pool = asyncpg.create_pool(**_arguments(url, name), **sizes, reset=_keep)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await pool
                async with pool.acquire() as connection:
                    _check_encoding(connection.get_settings().server_encoding)
                    return pool
        except BaseException:
            pool.terminate()
            raise


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
async def taken(pool: Any) -> AsyncIterator[Any]:
    """A connection of the pool; failures of the server become StorageError."""
    with failures("the database failed"):
        async with pool.acquire(timeout=CONNECT_SECONDS) as connection:
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
    """Return whether the same unit may succeed if it runs again: SQLSTATE class 40."""
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
