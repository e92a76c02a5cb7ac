"""The lines of those who wait to write: one for each tenant, which come to their turns by rows.

A unit may write ten rows or a thousand. So a turn is no number of units: who has written fewer rows
is next, and a group ends after so many; after fewer where the last groups ran for long. How many
rows a unit writes is known only afterwards, and then for the next one of its kind and tenant; of a
tenant's first ones, a group takes few. Heavy ones have a line of their own, so that a tenant's
requests do not queue behind its own webhooks.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from service.store.item import HEAVY_ROWS, Item

GROUP_MAX = 512  # Units in a group, if none of them is heavy.
UNIT_ROWS = 3  # An ordinary unit takes as long as so many deliveries, each with its indexes.
GROUP_ROWS = GROUP_MAX * UNIT_ROWS
GROUP_SECONDS = 0.1  # A group that runs for longer, without its sync, was too large.
GROUP_ROWS_MIN = 32 * UNIT_ROWS
UNKNOWN_ROWS = 200  # The first ones of a tenant count for so many, where others' were counted.
WEIGHTS_MAX = 10_000  # Kinds of units that are remembered.
COUNTED_MAX = 1_000
_Kind = tuple[str | None, object]  # A tenant, or None for the rest; and a unit.


class Line:
    """The items that wait in one line, first come first served."""

    __slots__ = ("items", "key")

    def __init__(self, key: _Kind) -> None:
        self.key = key
        self.items: deque[Item] = deque()


class Lines:
    """Every line that is not empty. The order of its items is kept."""

    def __init__(self) -> None:
        self._lines: dict[_Kind, Line] = {}
        # The rows after which it is the turn of each line, counted as if each wrote as many; who
        # came first comes first.
        self._turns: list[tuple[int, int, Line]] = []
        self._rows = 0  # When it was the turn of the last item that was taken.
        self._arrivals = 0
        self._count = 0
        self._room = GROUP_ROWS  # Of a group, by how long the last ones ran.
        self._counted: set[object] = set()  # Units that count the rows that they write.
        self._weights: dict[_Kind, int] = {}  # Their rows by kind, 0 unless they are heavy.

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Item]:
        return (item for line in self._lines.values() for item in line.items)

    def append(self, item: Item) -> None:
        """Add an item at the end of its line."""
        self._line_of(item).items.append(item)
        self._count += 1

    def put_back(self, items: Sequence[Item]) -> None:
        """Make items that were taken, and have not run, the next ones of their lines."""
        for item in reversed(items):
            self._line_of(item).items.appendleft(item)
        self._count += len(items)

    def take(self) -> list[Item]:
        """Take the items of the next group: one at least, if any waits."""
        taken: list[Item] = []
        room, turns = self._room, self._turns
        counted, weights = self._counted, self._weights
        while turns:
            turn, arrival, line = turns[0]
            items, rows = line.items, UNIT_ROWS
            if items[0].unit in counted:
                rows += weights.get((items[0].tenant, items[0].unit), UNKNOWN_ROWS)
            if rows > room and taken:
                break
            self._rows, room = turn, room - rows
            taken.append(items.popleft())
            if items:
                heapq.heapreplace(turns, (turn + rows, arrival, line))
            else:
                heapq.heappop(turns)
                del self._lines[line.key]
        self._count -= len(taken)
        return taken

    def drop(self, is_dropped: Callable[[Item], bool]) -> list[Item]:
        """Remove and return the items for which `is_dropped`."""
        dropped = [item for item in self if is_dropped(item)]
        if dropped:
            for line in self._lines.values():
                line.items = deque(item for item in line.items if not is_dropped(item))
            self._lines = {key: line for key, line in self._lines.items() if line.items}
            self._turns = [turn for turn in self._turns if turn[2].items]
            heapq.heapify(self._turns)
            self._count -= len(dropped)
        return dropped

    def clear(self) -> None:
        """Forget everything that waits."""
        self.drop(lambda _item: True)

    def learn(self, items: Iterable[Item]) -> None:
        """Note how many rows the items wrote that have run, for the next of their kinds.

        One of a kind may write few rows and the next one many: what was many is forgotten slowly.
        """
        most: dict[_Kind, int] = {}
        seconds = 0.0
        for item in items:
            seconds += item.seconds
            # Of a unit that counts its rows, no count means few.
            if item.has_run and (item.rows is not None or item.unit in self._counted):
                kind: _Kind = item.tenant, item.unit
                most[kind] = max(item.rows or 0, most.get(kind, 0))
        if seconds > GROUP_SECONDS:
            self._room = max(self._room // 2, GROUP_ROWS_MIN)
        elif seconds < GROUP_SECONDS / 4:
            self._room = min(self._room * 2, GROUP_ROWS)
        for kind, rows in most.items():
            self._weigh(kind, max(rows, self._weights.get(kind, 0) * 3 // 4))

    def _weigh(self, kind: _Kind, rows: int) -> None:
        """Note the rows of units of a kind; heavy ones that wait move to a line of their own."""
        if len(self._counted) >= COUNTED_MAX:
            self._counted.clear()
        self._counted.add(kind[1])
        was_heavy = self._weights.pop(kind, 0) > 0
        is_heavy = rows >= HEAVY_ROWS or kind in self._lines
        if len(self._weights) >= WEIGHTS_MAX:
            del self._weights[next(iter(self._weights))]  # That of the longest ago.
        self._weights[kind] = rows if is_heavy else 0
        if is_heavy and not was_heavy:
            moved = self.drop(lambda item: (item.tenant, item.unit) == kind)
            for item in moved:
                self.append(item)

    def _line_of(self, item: Item) -> Line:
        key: _Kind = item.tenant, None
        if item.unit in self._counted and self._weights.get((item.tenant, item.unit)):
            key = item.tenant, item.unit
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(key)
            self._arrivals += 1
            heapq.heappush(self._turns, (self._rows, self._arrivals, line))
        return line
