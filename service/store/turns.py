"""Turns of tenants: of what may take long, each tenant does one thing at a time.

A tenant that asks for a hundred things waits for itself, and the others only for one of them.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any
from weakref import WeakValueDictionary

from service.model.errors import StorageBusyError

TURN_SECONDS = 25.0  # How long a caller waits for its turn.
HELD_BYTES_MAX = 64 << 20  # Of the bodies that all callers of one kind of turn hold.


class Turns:
    """Hands out turns: one to each tenant at a time, and at most `turns_max` of them together."""

    def __init__(self, turns_max: int) -> None:
        self._turns = asyncio.Semaphore(turns_max)
        self._tenants: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._held_bytes = Counter[str]()  # By tenant.

    @contextlib.asynccontextmanager
    async def turn(self, tenant: str, held_bytes: int = 0) -> AsyncIterator[None]:
        """Wait for a turn of the tenant, and keep it during the block.

        held_bytes: the size of the body that the caller holds meanwhile. StorageBusyError after
        TURN_SECONDS, or at once over the limit. The first body of a tenant has room unless all hold
        more than HELD_BYTES_MAX; with a further one, it may hold no more than is free.
        """
        free, holds = HELD_BYTES_MAX - self._held_bytes.total(), self._held_bytes[tenant]
        if held_bytes and (free < 0 or (holds and holds + held_bytes > free)):
            raise StorageBusyError("too many bodies wait for their turn")
        self._held_bytes[tenant] += held_bytes
        of_tenant = self._tenants.setdefault(tenant, asyncio.Lock())
        try:
            async with contextlib.AsyncExitStack() as stack:
                try:
                    async with asyncio.timeout(TURN_SECONDS):
                        await stack.enter_async_context(of_tenant)
                        await stack.enter_async_context(self._turns)
                except TimeoutError:
                    raise StorageBusyError("too many others wait for their turn") from None
                yield
        finally:
            self._held_bytes -= Counter({tenant: held_bytes})  # Forgets who holds nothing.


def ignore_error(task: asyncio.Future[Any]) -> None:
    """Mark the error of a task as seen: its caller may be gone."""
    if not task.cancelled():
        task.exception()
