"""The tally: statistics of attempts, stored a second later and together, not with each attempt."""

from service.context import Context
from service.model.clock import SECOND
from service.model.errors import StorageError
from service.store import deliveries, stats
from service.telemetry import log

_log = log.get()
COUNT_EVERY_MS = SECOND  # Statistics are stored so often; a kill loses the latest.


class Tally:
    """The attempts that were stored and are not in the statistics yet."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.counts = stats.AttemptCounts()
        self.due_at = 0  # When the counts are to be stored, if there are any.

    def is_due(self, now: int) -> bool:
        """True if there is something to be stored by now."""
        return bool(self.counts) and now >= self.due_at

    def add(self, record: deliveries.AttemptRecord, now: int) -> int | None:
        """Count a stored attempt, unless its statistics were stored with it.

        Return when the counts are to be stored, if this attempt is the first of them.
        """
        if record.is_counted_now:
            return None
        is_first = not self.counts
        record.count_in(self.counts)
        if not is_first:
            return None
        self.due_at = now + COUNT_EVERY_MS
        return self.due_at

    async def store(self) -> None:
        """Store the counts, if there are any; those that cannot be stored are left out.

        It raises nothing: statistics must not end what waits for this, such as a tick.
        """
        if not self.counts:
            return
        counts, self.counts = self.counts, stats.AttemptCounts()
        try:
            await self.context.database.write(stats.add, counts)
        except StorageError as error:
            _log.warning("attempts.uncounted", error=str(error))
        except Exception:  # noqa: BLE001  see above
            _log.exception("attempts.uncounted")
