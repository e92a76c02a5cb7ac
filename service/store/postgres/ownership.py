"""The right to work on PostgreSQL: an advisory lock of a session, on a connection of its own."""

import asyncio
import contextlib
import math
from typing import Any

from service.store.postgres.connection import CONNECT_SECONDS, connect, failures
from service.store.postgres.database import Database
from service.store.postgres.notices import CHANNEL

LOOK_SECONDS = 5.0  # A notice may be lost.
_KEY = "hashtextextended('genhook.worker' || current_schema(), 0)"
_TAKE = f"SELECT pg_try_advisory_lock({_KEY})"
_CHANNEL = f"SELECT {CHANNEL}"


class SessionLock:
    """Ownership of the database: the server takes it away when the connection ends.

    One schema of one database has one lock; PostgreSQL keeps those of its databases apart.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Any = None
        self._looked_at = -math.inf
        self._is_told = False

    @property
    def is_held(self) -> bool:
        """Whether this process has the lock, as far as it knows."""
        return self._database.is_owner and self._is_connected

    @property
    def _is_connected(self) -> bool:
        return self._connection is not None and not self._connection.is_closed()

    async def acquire(self) -> bool:
        """Take the lock if no process has it. StorageError if that cannot be determined."""
        if self.is_held:
            return True
        self._database.is_owner = False
        if not self._is_connected:
            self._connection = await connect(self._database.url)
        with failures("cannot lock the database"):
            async with asyncio.timeout(CONNECT_SECONDS):
                is_taken = bool(await self._connection.fetchval(_TAKE))
                if is_taken:
                    channel = await self._connection.fetchval(_CHANNEL)
                    await self._connection.add_listener(channel, self._hear)
        self._database.is_owner = is_taken
        self._looked_at = asyncio.get_running_loop().time()
        return is_taken

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
