"""Results of attempts that could not be stored: they are stored again later, never sent again."""

from service.delivery.attempt import Result
from service.delivery.lanes import Lane
from service.delivery.loading import STORAGE_RETRY_MS
from service.model.clock import SECOND
from service.telemetry import log

_log = log.get()
PAUSE_MAX_MS = 30 * SECOND


class Unrecorded:
    """Results that wait for the database. All are tried at once, after pauses that double.

    A database that is behind would otherwise spend its time on records that come too late again.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[Lane, Result]] = []
        self._pause_ms = STORAGE_RETRY_MS
        self._error = ""
        self.retry_at: int | None = None  # When all that wait are tried again; None if none does.

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, lane: Lane, result: Result, now: int, error: Exception) -> int:
        """Keep a result; return when all results that wait are tried again."""
        if self.retry_at is None:
            self.retry_at = now + self._pause_ms
            self._pause_ms = min(2 * self._pause_ms, PAUSE_MAX_MS)
        self._waiting.append((lane, result))
        self._error = str(error)
        return self.retry_at

    def take(self, now: int) -> list[tuple[Lane, Result]]:
        """Return the results that are to be tried again by now, with one log line for all."""
        if self.retry_at is None or now < self.retry_at:
            return []
        taken, self._waiting, self.retry_at = self._waiting, [], None
        _log.error("attempts.unrecorded", count=len(taken), error=self._error)
        return taken

    def note_stored(self) -> None:
        """Begin with short pauses again: the database stores."""
        self._pause_ms = STORAGE_RETRY_MS

    def clear(self) -> None:
        """Forget everything: the rows stay due."""
        self._waiting, self.retry_at = [], None
