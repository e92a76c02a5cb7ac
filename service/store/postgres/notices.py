"""Notices of commits to the process that works; its own looks at the rows stand behind them."""

import asyncio
import contextlib
from typing import Any

from service.model.errors import StorageError
from service.store.postgres.connection import taken

NOTICE_SECONDS = 0.01  # Commits of so long are told by one notice.
CHANNEL = "'genhook.' || current_schema()"
_NOTIFY = f"SELECT pg_notify({CHANNEL}, '')"


class Notices:
    """Tells that this process committed, after the commit and on another connection.

    Within the transaction, a NOTIFY would make all commits of the server wait for each other.
    """

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def plan(self, pool: Any) -> None:
        """Send a notice soon."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(NOTICE_SECONDS, self._start, pool)

    async def close(self) -> None:
        """Wait for the notices under way; send no other."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _start(self, pool: Any) -> None:
        self._timer = None
        task = asyncio.create_task(_notify(pool), name="notice")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _notify(pool: Any) -> None:
    with contextlib.suppress(StorageError):
        async with taken(pool) as connection:
            await connection.execute(_NOTIFY)
