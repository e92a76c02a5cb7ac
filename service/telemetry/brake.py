"""Limits how much strangers can cause in a second, or in another period."""

from collections import Counter
from collections.abc import Mapping

from service.model.clock import SECOND


class Limiter:
    """Admits so many calls with the same key in each period.

    What it refuses is not counted. So its memory is bounded if all calls have one key in common:
    the limit of that key also bounds how many other keys are counted.
    """

    def __init__(self, period_ms: int = SECOND) -> None:
        self._period_ms = period_ms
        self._period = 0
        self._counts = Counter[str | None]()

    def admit(self, now: int, limits: Mapping[str | None, int]) -> bool:
        """Count one for each key, unless one of them has reached its limit in this period."""
        if now // self._period_ms != self._period:
            self._period = now // self._period_ms
            self._counts.clear()
        if any(self._counts[key] >= limit for key, limit in limits.items()):
            return False
        self._counts.update(limits.keys())
        return True


class Brake:
    """Admits at most `per_second` log lines in each second, and counts those that it holds back."""

    def __init__(self, per_second: int) -> None:
        self._limits: dict[str | None, int] = {None: per_second}
        self._limiter = Limiter()
        self._unlogged = 0

    def admit(self, now: int) -> int | None:
        """Return how many lines were held back since the last one; None to hold this one back."""
        if not self._limiter.admit(now, self._limits):
            self._unlogged += 1
            return None
        unlogged, self._unlogged = self._unlogged, 0
        return unlogged
