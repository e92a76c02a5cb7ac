"""Rows that can be neither worked nor moved on: they are passed over, and hold up no others."""

from collections import OrderedDict
from collections.abc import Mapping

from service.model.clock import MINUTE, SECOND
from service.model.errors import StorageError
from service.telemetry import log

STUCK_MAX = 1_000  # Rows that are remembered; the oldest are forgotten, and fail once more.
RETRY_MS = (5 * SECOND, 5 * MINUTE)  # The first delay and the longest; it doubles.
UNSTORED_MS = (SECOND, MINUTE)  # The same where the database failed: it may recover at any moment.
LOOK_AGAIN_MS = 100  # After unreadable rows were found: they may have hidden others.

_log = log.get()


class Stuck:
    """The ids of stuck rows, with the next try of each: in memory, as they cannot be changed."""

    def __init__(self) -> None:
        self._rows: OrderedDict[str, tuple[int, int]] = OrderedDict()  # The time, and the delay.

    def put(self, id_: str, now: int, error: Exception) -> None:
        """Pass a row over for a while, each time for longer.

        Nothing changes if it is passed over already: a client asked for this try.
        """
        first_ms, most_ms = UNSTORED_MS if isinstance(error, StorageError) else RETRY_MS
        until, delay_ms = self._rows.get(id_, (0, first_ms // 2))
        if now < until:
            return
        delay_ms = min(2 * delay_ms, most_ms)
        self._rows[id_] = now + delay_ms, delay_ms
        self._rows.move_to_end(id_)
        if len(self._rows) > STUCK_MAX:
            self._rows.popitem(last=False)
        _log.error("row.stuck", id=id_, retry_seconds=delay_ms / SECOND, error=repr(error))

    def forget(self, id_: str) -> None:
        """Pass a row over no longer: it was worked."""
        self._rows.pop(id_, None)

    def put_all(self, errors: Mapping[str, Exception], now: int) -> None:
        """Pass rows over that cannot be read."""
        for id_, error in errors.items():
            self.put(id_, now, error)

    def ids(self, now: int) -> list[str]:
        """Return the rows that are passed over now; forget those that did not fail again."""
        for id_, (until, delay_ms) in [*self._rows.items()]:
            if now >= until + 2 * delay_ms:
                del self._rows[id_]
        return [id_ for id_, (until, _) in self._rows.items() if now < until]

    def next_at(self, due_at: int | None, now: int) -> int | None:
        """Return when to look at the rows again: at `due_at`, or earlier for a stuck row."""
        times = [until for until, _ in self._rows.values() if now < until]
        return min([*times, *([] if due_at is None else [due_at])], default=None)
