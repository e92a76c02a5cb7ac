"""Notices of commits (NOTIFY) to the holders of the shards, which may get lost."""

import asyncio
import contextlib

from service.model.errors import StorageError
from service.store.postgres.connection import Pool, transaction_of
from service.store.shards import ALL, SHARDS
from service.telemetry import log

_log = log.get()

NOTICE_SECONDS = 0.01  # One notice is for the commits of so long.
# The server makes the name, since it knows the schema of the session. A hash: the name of a channel
# may not be as long as that of a schema.
CHANNEL_SQL = "'genhook.' || hashtextextended(current_schema(), 0)"
_NOTIFY = f"SELECT pg_notify({CHANNEL_SQL}, $1)"


class Notices:
    """Sends notices of the shards in which this process has committed, on another connection.

    The text of a notice is a hexadecimal number with a bit for each shard, and the sender's number
    above these. A NOTIFY within the transactions would make all commits of the server wait for each
    other. The holders look at the rows every few seconds, whether a notice comes or not.
    """

    def __init__(self, name: str) -> None:
        self._sender = sender_of(name)
        self._mask = 0
        self._sending: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    def plan(self, pool: Pool, shard: int) -> None:
        """Send a notice of a shard soon."""
        self._mask |= 1 << shard
        # One notice at a time waits for a connection.
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send(pool), name="notice")

    async def close(self) -> None:
        """Send what is planned, and wait for it."""
        self._closing.set()
        try:
            while self._sending is not None and not self._sending.done():
                await asyncio.wait({self._sending})
        finally:
            self._closing.clear()

    async def _send(self, pool: Pool) -> None:
        """Send notices until nothing is planned, each NOTICE_SECONDS after the last."""
        while self._mask:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(NOTICE_SECONDS):
                    await self._closing.wait()
            mask, self._mask = self._mask, 0
            await _notify(pool, f"{self._sender << SHARDS | mask:x}")


def sender_of(name: str) -> int:
    """Return the number that is in the notices of the process with this name."""
    return int(name.rpartition("-")[2], 16)


def read_notice(text: str) -> tuple[set[int], int]:
    """Return the shards of a notice, and the number of the process that sent it."""
    number = int(text or "0", 16)
    return {shard for shard in ALL if number >> shard & 1}, number >> SHARDS


async def _notify(pool: Pool, text: str) -> None:
    try:
        async with transaction_of(pool) as connection:
            await connection.execute(_NOTIFY, text)
    except StorageError:
        pass  # Commits fail, too, and tell of it.
    except Exception as error:  # noqa: BLE001  the next notice must still be sent
        _log.warning("notice.failed", error=str(error))
