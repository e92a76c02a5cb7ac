"""The right to work on PostgreSQL: an advisory lock of a session, on a connection of its own."""

import asyncio
import math

from service.store.postgres.connection import CONNECT_SECONDS, connect, failures
from service.store.postgres.database import Database
from service.store.postgres.notices import CHANNEL

RELEASE_SECONDS = 1.0
LOOK_SECONDS = 5.0  # A notice may be lost.
_KEY = "hashtextextended('genhook.worker' || current_schema(), 0)"
_TAKE = f"SELECT pg_try_advisory_lock({_KEY})"
_RELEASE = "SELECT pg_advisory_unlock_all()"
_CHANNEL = f"SELECT {CHANNEL}"


class SessionLock:
    """Ownership of the database: the server takes it away when the connection ends.

    One schema of one database has one lock; PostgreSQL keeps those of its databases apart. The
    connection is kept for the next time, until the database is closed.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._looked_at = -math.inf
        self._is_told = False
        self._turn = asyncio.Lock()  # A tick may ask while the loop that stands by does.

    @property
    def is_held(self) -> bool:
        """Whether this process has the lock, as far as it knows."""
        return self._database.is_owner and self._is_connected

    @property
    def _is_connected(self) -> bool:
        connection = self._database.lock_connection
        return connection is not None and not connection.is_closed()

    async def acquire(self) -> bool:
        """Take the lock if no process has it. StorageError if that cannot be determined."""
        with failures("cannot lock the database"):
            async with self._turn, asyncio.timeout(CONNECT_SECONDS):
                if not self.is_held:
                    self._database.is_owner = await self._take()
        return self.is_held

    async def _take(self) -> bool:
        if not self._is_connected:
            await self._connect()
        self._looked_at = asyncio.get_running_loop().time()
        return bool(await self._database.lock_connection.fetchval(_TAKE))

    async def _connect(self) -> None:
        self._database.lock_connection = connection = await connect(self._database.url)
        await connection.add_listener(await connection.fetchval(_CHANNEL), self._hear)

    async def release(self) -> None:
        """Let another process have the lock."""
        async with self._turn:
            connection, is_held = self._database.lock_connection, self.is_held
            self._database.is_owner = False
            if not is_held:
                return
            try:
                async with asyncio.timeout(RELEASE_SECONDS):
                    await connection.execute(_RELEASE)
            except Exception:  # noqa: BLE001  the lock ends with the connection
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
