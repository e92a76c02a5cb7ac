"""Notices of commits (NOTIFY) to the holders of the shards, which may get lost."""

import asyncio

from service.model.errors import StorageError
from service.store.postgres.connection import Pool, taken
from service.store.shards import ALL
from service.telemetry import log

_log = log.get()

NOTICE_SECONDS = 0.01  # One notice is for the commits of so long.
# By a hash, since the name of a channel may not be as long as that of a schema.
CHANNEL = "'genhook.' || hashtextextended(current_schema(), 0)"
_NOTIFY = f"SELECT pg_notify({CHANNEL}, $1)"


class Notices:
    """Sends notices of the shards in which this process has committed, on another connection.

    The text of a notice is a hexadecimal number with a bit for each shard, and the process's name.
    A NOTIFY within the transactions would make all commits of the server wait for each other. The
    holders look at the rows every few seconds, whether a notice comes or not.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._timer: asyncio.TimerHandle | None = None
        self._mask = 0
        self._sending: asyncio.Task[None] | None = None

    def plan(self, pool: Pool, shard: int) -> None:
        """Send a notice of a shard soon."""
        self._mask |= 1 << shard
        self._go_on(pool)

    async def close(self, pool: Pool) -> None:
        """Send what is planned, and wait for it."""
        while self._timer is not None or self._sending is not None:
            if self._timer is not None:
                self._timer.cancel()
                self._start(pool)
            if self._sending is not None:
                await asyncio.wait({self._sending})

    def _go_on(self, pool: Pool) -> None:
        """Plan the next notice, unless one is under way: one at a time waits for a connection."""
        if self._mask and self._timer is None and self._sending is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(NOTICE_SECONDS, self._start, pool)

    def _start(self, pool: Pool) -> None:
        self._timer = None
        mask, self._mask = self._mask, 0
        self._sending = asyncio.create_task(_notify(pool, f"{mask:x} {self._name}"), name="notice")
        self._sending.add_done_callback(lambda _task: self._end(pool))

    def _end(self, pool: Pool) -> None:
        self._sending = None
        self._go_on(pool)


def read_notice(text: str) -> tuple[set[int], str]:
    """Return the shards of a notice, and the name of the process that sent it."""
    mask, _, name = text.partition(" ")
    bits = int(mask or "0", 16)
    return {shard for shard in ALL if bits >> shard & 1}, name


async def _notify(pool: Pool, text: str) -> None:
    try:
        async with taken(pool) as connection:
            await connection.execute(_NOTIFY, text)
    except StorageError:
        pass  # Commits fail, too, and tell of it.
    except Exception as error:  # noqa: BLE001  the next notice must still be sent
        _log.warning("notice.failed", error=str(error))
