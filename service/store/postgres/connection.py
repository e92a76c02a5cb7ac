"""Connections to PostgreSQL: how they are opened, and which errors are the server's."""

from typing import Any

import asyncpg

APPLICATION = "genhook"
# The server ends a transaction that a process has left open, and notices a client that is gone.
SERVER_SETTINGS = {
    "application_name": APPLICATION,
    "idle_in_transaction_session_timeout": "30000",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "20000",
    "jit": "off",  # Compiling a statement takes longer than running any of ours.
}


def connect_arguments(url: str) -> dict[str, Any]:
    """Return the arguments of asyncpg for a URL."""
    return {"dsn": url, "server_settings": SERVER_SETTINGS}


def is_repeatable(error: BaseException) -> bool:
    """Return whether the same unit may succeed if it runs again: SQLSTATE class 40."""
    return isinstance(error, asyncpg.PostgresError) and (error.sqlstate or "").startswith("40")


_SERVER_CLASSES = ("08", "25", "40", "53", "54", "55", "57", "58", "XX")


def is_failure(error: BaseException) -> bool:
    """Return whether the server or the way to it is at fault, not the unit."""
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "")[:2] in _SERVER_CLASSES
    return isinstance(error, OSError | TimeoutError | asyncpg.InterfaceError)
