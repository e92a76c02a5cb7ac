"""Turns: few requests start in one round of the event loop, so that a burst delays no client.

Otherwise a round would start every request that has arrived, before it looks for connections and
bytes of other clients; a new client needs several rounds until it is answered.
"""

import asyncio
from collections import deque
from collections.abc import Callable

STARTS_MAX = 32  # Requests that start in one round of the loop.


class Turns:
    """The requests that wait to start. Those of one connection start one after the other."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Callable[..., None], tuple[object, ...]]] = deque()
        self._starts = 0  # In this round.
        self._has_next = False

    def take(self, start: Callable[..., None], *args: object) -> None:
        """Call `start(*args)` now, or in a later round if enough have started in this one."""
        if self._waiting or self._starts >= STARTS_MAX:
            self._waiting.append((start, args))
        else:
            self._starts += 1
            start(*args)
        if not self._has_next:
            self._plan()

    def _plan(self) -> None:
        self._has_next = True
        asyncio.get_running_loop().call_soon(self._begin_round)

    def _begin_round(self) -> None:
        self._has_next = False
        self._starts = min(len(self._waiting), STARTS_MAX)
        for _ in range(self._starts):
            start, args = self._waiting.popleft()
            start(*args)
        if self._starts:
            self._plan()
