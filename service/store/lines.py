"""Fair queueing of units: a line for each tenant; the one that has written the fewest rows is next.

A unit may write ten rows or a thousand, so turns are measured in rows (start-time fair queueing). A
group ends at GROUP_ROWS, or at fewer rows while groups run for longer than GROUP_SECONDS. How many
rows a unit writes is known only after it has run; that is the estimate for the next unit of the
same kind. A unit counts UNIT_ROWS; one that has charged for rows before, for any tenant, counts the
estimate of its kind besides, or UNKNOWN_ROWS. Heavy kinds have a line of their own, so that a
tenant's requests do not queue behind the tenant's webhooks.

What an emptied line has written counts until the others have caught up, or nobody waits: a tenant
with one heavy unit at a time does not start afresh with each. A heavy line starts LEAD_ROWS later.
Otherwise a tenant that now and then writes three rows would wait for a heavy unit of every other
tenant.
"""

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from service.store.item import HEAVY_ROWS, Item

GROUP_MAX = 512  # Units in a group, if none of them is heavy.
UNIT_ROWS = 3  # What an ordinary unit counts: it takes as long as to insert three deliveries.
GROUP_ROWS = GROUP_MAX * UNIT_ROWS
GROUP_SECONDS = 0.1  # A group that runs for longer, without its sync, was too large.
GROUP_ROWS_MIN = 32 * UNIT_ROWS
UNKNOWN_ROWS = 200  # What a unit that charges for rows counts before it has run for this tenant.
WEIGHTS_MAX = 10_000  # Kinds that are remembered.
COUNTED_MAX = 1_000  # Units that are remembered to count their rows.
LEAD_ROWS = 100  # How many more rows a light line may have written before a heavy one is next.
ENDS_MAX = 10_000  # Emptied lines that are remembered.
_Kind = tuple[str | None, object]  # A tenant (None: no tenant, or several) and a unit.


class Line:
    """The items that wait in one line, first come first served."""

    __slots__ = ("items", "key", "lead")

    def __init__(self, key: _Kind) -> None:
        self.key = key
        self.lead = 0 if key[1] is None else LEAD_ROWS  # Rows that it is behind light lines.
        self.items: deque[Item] = deque()


class Lines:
    """Every line that is not empty. The order of its items is kept."""

    def __init__(self) -> None:
        self._lines: dict[_Kind, Line] = {}
        # A heap of (turn, arrival, line). The turn is the virtual time, in rows, at which the next
        # item of the line starts, and its lead; the arrival decides between equal turns.
        self._turns: list[tuple[int, int, Line]] = []
        self._ends: dict[_Kind, int] = {}  # Of emptied lines: the turn at which each would go on.
        self._rows = 0  # The virtual time: the turn of the item that was taken last.
        self._arrivals = 0
        self._count = 0
        self._room = GROUP_ROWS  # Rows of the next group, by how long the last groups ran.
        self._counted: set[object] = set()  # Units that charge for the rows they write.
        self._weights: dict[_Kind, int] = {}  # Estimated rows by kind; 0 unless the kind is heavy.

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Item]:
        return (item for line in self._lines.values() for item in line.items)

    def append(self, item: Item) -> None:
        """Add an item at the end of its line."""
        self._line_of(item).items.append(item)
        self._count += 1

    def put_back(self, items: Sequence[Item]) -> None:
        """Make items that were taken, and have not run, the next ones of their lines.

        The lines that were charged for them are not charged any more, and the virtual time is what
        it was before. A kind that has turned out heavy meanwhile goes to another line.
        """
        refunds: Counter[_Kind] = Counter()
        for item in reversed(items):
            self._line_of(item, is_back=True).items.appendleft(item)
            refunds[item.line_key] += item.estimate
        for key in refunds.keys() & self._ends.keys():
            self._ends[key] -= refunds[key]
        self._turns = [(turn - refunds[line.key], at, line) for turn, at, line in self._turns]
        heapq.heapify(self._turns)
        starts = [turn - line.lead for turn, _, line in self._turns if line.key in refunds]
        self._rows = min([self._rows, *starts])
        self._count += len(items)

    def take(self) -> list[Item]:
        """Take the items of the next group: one at least, if any waits."""
        taken: list[Item] = []
        room, turns = self._room, self._turns
        counted, weights = self._counted, self._weights
        while turns:
            turn, arrival, line = turns[0]
            items, rows = line.items, UNIT_ROWS
            item = items[0]
            if item.unit in counted:
                rows += weights.get((item.tenant, item.unit), UNKNOWN_ROWS)
            if rows > room and taken:
                break
            self._rows, room = turn - line.lead, room - rows
            item.estimate, item.line_key = rows, line.key
            taken.append(items.popleft())
            if items:
                heapq.heapreplace(turns, (turn + rows, arrival, line))
            else:
                heapq.heappop(turns)
                del self._lines[line.key]
                self._ends[line.key] = turn + rows
        self._forget_ends()
        self._count -= len(taken)
        return taken

    def drop(self, is_dropped: Callable[[Item], bool]) -> list[Item]:
        """Remove and return the items for which `is_dropped`."""
        dropped = [item for item in self if is_dropped(item)]
        if dropped:
            for line in self._lines.values():
                line.items = deque(item for item in line.items if not is_dropped(item))
            self._lines = {key: line for key, line in self._lines.items() if line.items}
            self._ends |= {line.key: turn for turn, _, line in self._turns if not line.items}
            self._turns = [turn for turn in self._turns if turn[2].items]
            heapq.heapify(self._turns)
            self._forget_ends()
            self._count -= len(dropped)
        return dropped

    def learn(self, items: Iterable[Item]) -> None:
        """Remember how many rows the items wrote: the estimates for the next of their kinds.

        The rows of a kind vary, so an estimate falls by no more than a quarter at a time.
        """
        most: dict[_Kind, int] = {}
        seconds = 0.0
        for item in items:
            seconds += item.seconds
            # None means few rows, if the unit counts them at other times.
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
        """Store the estimate of a kind; once heavy, its items move to a line of their own."""
        if len(self._counted) >= COUNTED_MAX:
            self._counted.clear()
        self._counted.add(kind[1])
        was_heavy = self._weights.pop(kind, 0) > 0
        is_heavy = rows >= HEAVY_ROWS or kind in self._lines
        if len(self._weights) >= WEIGHTS_MAX:
            del self._weights[next(iter(self._weights))]  # The oldest.
        self._weights[kind] = rows if is_heavy else 0
        if is_heavy and not was_heavy:
            moved = self.drop(lambda item: (item.tenant, item.unit) == kind)
            for item in moved:
                self.append(item)

    def _forget_ends(self) -> None:
        """Forget what emptied lines have written, if nobody waits or if there are too many."""
        if not self._turns:
            self._ends.clear()
        while len(self._ends) > ENDS_MAX:
            del self._ends[next(iter(self._ends))]

    def _line_of(self, item: Item, *, is_back: bool = False) -> Line:
        """Return the line of an item. is_back: it was taken, so the line it was in did not end."""
        key: _Kind = item.tenant, None
        if item.unit in self._counted and self._weights.get((item.tenant, item.unit)):
            key = item.tenant, item.unit
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(key)
            self._arrivals += 1
            start = self._rows + line.lead
            end = self._ends.pop(key, start)
            turn = end if is_back and item.line_key == key else max(start, end)
            heapq.heappush(self._turns, (turn, self._arrivals, line))
        return line
