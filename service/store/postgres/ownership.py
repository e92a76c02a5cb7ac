"""The right to work on PostgreSQL: an advisory lock of a session, on a connection of its own."""

import asyncio
import contextlib
import math
from typing import Any

import asyncpg

from service.model.errors import StorageError
from service.store.postgres.connection import connect_arguments, is_failure
from service.store.postgres.database import Database

CONNECT_SECONDS = 5.0
LOOK_SECONDS = 5.0  # A notice may be lost.
_KEY = "hashtextextended('genhook.worker' || current_schema(), 0)"
_TAKE = f"SELECT pg_try_advisory_lock({_KEY}) WHERE NOT pg_is_in_recovery()"
_CHANNEL = "SELECT 'genhook.' || current_schema()"


class SessionLock:
    """Ownership of the database: the server takes it away when the connection ends."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Any = None
        self._looked_at = -math.inf
        self._is_told = False

    @property
    def is_held(self) -> bool:
        """Whether this process has the lock, as far as it knows."""
        connection = self._connection
        return self._database.is_owner and connection is not None and not connection.is_closed()

    async def acquire(self) -> bool:
        """Take the lock if no process has it. StorageError if that cannot be determined."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                if self._connection is None or self._connection.is_closed():
                    self._connection = await asyncpg.connect(
                        **connect_arguments(self._database.url)
                    )
                    channel = await self._connection.fetchval(_CHANNEL)
                    await self._connection.add_listener(channel, self._hear)
                is_held = self._database.is_owner = bool(await self._connection.fetchval(_TAKE))
        except Exception as error:
            if is_failure(error):
                raise StorageError(f"cannot lock the database: {error}") from error
            raise
        return is_held

    async def release(self) -> None:
        """Let another process have the lock."""
        connection, self._connection, self._database.is_owner = self._connection, None, False
        if connection is not None:
            with contextlib.suppress(Exception):
                await connection.close(timeout=1.0)
            connection.terminate()

    def _hear(self, *_: object) -> None:
        self._is_told = True

    async def other_process_committed(self) -> bool:
        """True if another process may have committed: it told so, or nobody looked for a while."""
        now = asyncio.get_running_loop().time()
        is_due = self._is_told or now - self._looked_at >= LOOK_SECONDS
        if is_due:
            self._is_told, self._looked_at = False, now
        return is_due
