"""A limit for log lines that strangers can cause: it counts the lines that it holds back."""

from service.model.clock import SECOND


class Brake:
    """Admits at most `per_second` lines in each second."""

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._second = 0
        self._count = 0
        self._unlogged = 0

    def admit(self, now: int) -> int | None:
        """Return how many lines were held back since the last one; None to hold this one back."""
        if now // SECOND != self._second:
            self._second, self._count = now // SECOND, 0
        self._count += 1
        if self._count > self._per_second:
            self._unlogged += 1
            return None
        unlogged, self._unlogged = self._unlogged, 0
        return unlogged
