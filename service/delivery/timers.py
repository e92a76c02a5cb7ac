"""When the dispatcher has to look at lanes again, or to store results or statistics."""

import heapq
from collections.abc import Iterator

OUTDATED_MIN = 1_000  # Besides one for each name: more outdated entries are dropped.


class Timers:
    """One time for each name, the earliest that was set; the empty name keeps all of its times.

    In the heap, entries that were replaced stay until there are many: a lane that rests for a day
    would add one each minute.
    """

    def __init__(self) -> None:
        self._queue: list[tuple[int, str]] = []
        self._earliest: dict[str, int] = {}

    @property
    def next_at(self) -> int | None:
        """The earliest time, in milliseconds; it may be outdated."""
        return self._queue[0][0] if self._queue else None

    def set(self, at: int, name: str = "") -> bool:
        """Add a time; return whether it is the next one of all."""
        if name:
            if self._earliest.get(name, at + 1) <= at:
                return False
            self._earliest[name] = at
        heapq.heappush(self._queue, (at, name))
        if len(self._queue) > OUTDATED_MIN + 2 * len(self._earliest):
            self._queue = list({each for each in self._queue if self._is_current(*each)})
            heapq.heapify(self._queue)
        return self._queue[0][0] == at

    def take_due(self, now: int) -> Iterator[str]:
        """Remove what is due by `now`; yield the names."""
        while self._queue and self._queue[0][0] <= now:
            at, name = heapq.heappop(self._queue)
            if name and self._is_current(at, name):
                del self._earliest[name]
                yield name

    def clear(self) -> None:
        """Forget all times."""
        self._queue.clear()
        self._earliest.clear()

    def _is_current(self, at: int, name: str) -> bool:
        return not name or self._earliest.get(name) == at
