"""The queue in front of the database: bounded in units, in bytes and in seconds, in turn by tenant.

A unit that waits holds the body of its request in memory, so a number of units alone is no bound.
No caller waits longer than WAIT_SECONDS, whatever the disk does, except that of an item that is
`always` retried.
"""

import asyncio
import math
from collections.abc import Callable, Collection, Sequence

from service.model.errors import StorageBusyError, UnstoredError
from service.store.item import Item
from service.store.lines import Lines

QUEUE_BYTES_MAX = 64 << 20  # Of the requests' bodies that units in the queue or in a commit hold.
WAIT_SECONDS = 5.0
STALLED = "the database did not commit in time"


class Queue:
    """The units that wait for a commit, and those that are in one."""

    def __init__(self, items_max: int, wake: Callable[[], None]) -> None:
        self.items_max = items_max
        self._wake = wake  # Called when items may be taken that nobody has put just now.
        self.bytes_max = QUEUE_BYTES_MAX
        self.is_stalled = False  # A caller stopped waiting, and no commit ended meanwhile.
        self._waiting = Lines()
        # Items that are `is_behind`, and all that have to leave before these may wait, too. Those
        # that come meanwhile form the next round: with a set for each item, a full queue could be
        # held many times over, and with one that grows they would wait as long as others come.
        self._behind: list[Item] = []
        self._before: set[Item] = set()
        self._behind_next: list[Item] = []
        self._committing: set[Item] = set()
        self._refused: set[Item] = set()  # Of `_committing`, those whose callers were refused.
        self._ended_at = -math.inf  # When the last commit ended, by the loop's clock.
        self._held_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting) + len(self._behind) + len(self._behind_next)

    def put(self, item: Item) -> None:
        """Add an item. UnstoredError if the queue is full, unless it is `always`."""
        held_bytes = self._held_bytes + item.held_bytes
        if not item.always:
            # One body may be larger than the bound: it is admitted if it is the only one.
            is_over = held_bytes > self.bytes_max and self._held_bytes > 0
            if (is_over and item.held_bytes) or len(self._waiting) >= self.items_max:
                raise UnstoredError("the queue in front of the database is full")
            loop = item.future.get_loop()
            item.ends_at = loop.time() + WAIT_SECONDS
            if self._timer is None:
                self._timer = loop.call_at(item.ends_at, self.end_waits)
        self._held_bytes = held_bytes
        if not item.is_behind:
            self._waiting.append(item)
        elif self._before:
            self._behind_next.append(item)
        elif before := {*self._committing, *self._waiting}:
            self._behind, self._before = [item], before
        else:
            self._waiting.append(item)

    def take(self) -> Sequence[Item]:
        """Return the next items, which count as in a commit until `finish` or `put_back`."""
        taken = self._waiting.take()
        self._committing.update(taken)
        return taken

    def put_back(self, items: Sequence[Item]) -> None:
        """Put items that were taken, and did not run, back to the front of their lines."""
        items = self.drop_refused(items)
        self._committing.difference_update(items)
        self._waiting.put_back(items)

    def drop_refused(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return those of the taken items that may run now; the others were refused and leave."""
        if not self._refused:
            return items
        refused = self._refused.intersection(items)
        self._leave(refused)
        return [item for item in items if item not in refused]

    def finish(self, items: Sequence[Item]) -> None:
        """End the commit of items that were taken."""
        self._waiting.learn(items)
        self._ended_at, self.is_stalled = asyncio.get_running_loop().time(), False
        self._leave(items)

    def clear(self) -> None:
        """Forget everything that waits."""
        self._behind.clear()
        self._before.clear()
        self._behind_next.clear()
        self._release(self._waiting.drop(lambda _item: True))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def end_waits(self) -> None:
        """Fail the items that have waited for WAIT_SECONDS. Of these, no waiting one ever runs.

        Whether those that the database has been given are stored is not known yet, as after a
        crash.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()

        def is_late(item: Item) -> bool:
            return item.ends_at <= now

        dropped = self._waiting.drop(is_late)
        self._refused.update(filter(is_late, self._committing))
        late = [*self._refused, *dropped]
        if self._committing:  # Else a commit may begin, and nothing would end the stall.
            self.is_stalled |= any(item.ends_at >= self._ended_at + WAIT_SECONDS for item in late)
        for item in dropped:
            item.resolve(UnstoredError(STALLED))
        for item in self._refused:
            item.resolve(StorageBusyError(STALLED))
        self._release(dropped)
        items = (*self._committing, *self._waiting)
        ends = [item.ends_at for item in items if not (item.always or is_late(item))]
        self._timer = loop.call_at(min(ends), self.end_waits) if ends else None

    def _leave(self, items: Collection[Item]) -> None:
        self._release(items)
        self._committing.difference_update(items)
        if self._refused:
            self._refused.difference_update(items)

    def _release(self, items: Collection[Item]) -> None:
        """Let go of items that leave: of their bytes, and of those that come behind them."""
        self._held_bytes -= sum(item.held_bytes for item in items)
        if not self._before:
            return
        self._before.difference_update(items)
        if not self._before:
            for item in self._behind:
                self._waiting.append(item)
            self._behind, self._behind_next = self._behind_next, []
            if self._behind:
                self._before = {*self._committing, *self._waiting}.difference(items)
            self._wake()
