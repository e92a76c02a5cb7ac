"""The slots: how many attempts all lanes together may have under way, shared fairly."""

import heapq
import itertools

from service.delivery.lanes import Lane

FAILING_SHARE = 4  # A quarter of the slots is not for lanes that fail.
_Entry = tuple[int, int, Lane]


class Slots:
    """The attempts that all lanes may have under way, and the lanes that wait for one.

    A lane may start another attempt only while the free slots outnumber the ones it holds. A
    hanging lane therefore can never take the last slot, however many each lane may have.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.in_use = 0
        self._reserve = count // FAILING_SHARE
        self._entries: dict[Lane, _Entry] = {}
        self._heap: list[_Entry] = []  # By the slots needed, then in turn; outdated ones too.
        self._turn = itertools.count()

    def needed(self, lane: Lane) -> int:
        """How many slots must be free for the lane to start another attempt."""
        return lane.in_flight + 1 + (self._reserve if lane.failing_since is not None else 0)

    def are_free_for(self, lane: Lane) -> bool:
        """True if the lane may start another attempt."""
        return self.count - self.in_use >= self.needed(lane)

    def wait(self, lane: Lane) -> None:
        """Queue the lane until enough slots are free, at the place that it has by now."""
        entry = self._entries.get(lane)
        needed = self.needed(lane)
        if lane.waiting and (entry is None or needed < entry[0]):
            self._entries[lane] = entry = (needed, next(self._turn), lane)
            heapq.heappush(self._heap, entry)
            if len(self._heap) > 2 * len(self._entries) + 64:
                self._heap = sorted(self._entries.values())

    def next_waiting(self) -> Lane | None:
        """Take the next lane with enough free slots; those that hold the fewest come first."""
        while self._heap and self._heap[0][0] <= self.count - self.in_use:
            entry = heapq.heappop(self._heap)
            lane = entry[2]
            if self._entries.get(lane) is entry:  # Else it has moved to another place.
                del self._entries[lane]
                return lane
        return None
