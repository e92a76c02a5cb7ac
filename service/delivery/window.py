"""A lane's window: how many attempts may be under way, opened and closed as TCP does it."""

# Decision 18 says why these rules and figures.

START = 8
FLOOR = 2  # One for first attempts, one for retries.
QUICK_MS = 50  # An answer is quick up to this, or to twice the lowest latency.
QUICK_FACTOR = 2
SLOW_MS = 250  # Answers are slow above this and above three times the lowest latency.
SLOW_FACTOR = 3
SMOOTHING = 8  # The latest latency is one part in so many of the smoothed one.


class Window:
    """The number of attempts that one receiver may have under way.

    While answers are quick, it doubles with each round of answers; after the first cut it grows by
    one a round. It is halved when answers slow down, and by failures: once for a round, since the
    other attempts of that round fail for the same reason.
    """

    __slots__ = ("_credit", "_cut_at", "_is_doubling", "_lowest_ms", "_smooth_ms", "limit", "size")

    def __init__(self, limit: int = START) -> None:
        self.limit = limit
        self.size = min(START, limit)
        self._is_doubling = True
        self._credit = 0  # Answers so far that count towards one more slot.
        self._cut_at = 0
        self._lowest_ms: float | None = None
        self._smooth_ms = 0.0

    def set_limit(self, limit: int) -> None:
        """Change how far the window may open."""
        self.limit = limit
        self.size = max(min(self.size, limit), min(FLOOR, limit))

    def answered(self, latency_ms: int, started_at: int, *, now: int, in_flight: int) -> None:
        """Learn from an answer that is no failure; `in_flight` counts its attempt too."""
        if started_at < self._cut_at:
            return  # It began before the latest cut, and says nothing about the size since then.
        if self._lowest_ms is None:
            self._lowest_ms = self._smooth_ms = latency_ms
        self._lowest_ms = min(self._lowest_ms, latency_ms)
        self._smooth_ms += (latency_ms - self._smooth_ms) / SMOOTHING
        slow_ms = max(SLOW_MS, SLOW_FACTOR * self._lowest_ms)
        if self._smooth_ms > slow_ms and self.size <= min(FLOOR, self.limit):
            # With so few under way, this is the receiver's own latency, not a queue of ours.
            self._lowest_ms = self._smooth_ms = latency_ms
            self._is_doubling = True
        elif self._smooth_ms > slow_ms:
            self._cut(now)
        elif latency_ms <= slow_ms and 2 * in_flight >= self.size:
            # While less than half is in use, an answer says nothing about this size.
            is_quick = latency_ms <= max(QUICK_MS, QUICK_FACTOR * self._lowest_ms)
            self._credit += self.size if self._is_doubling and is_quick else 1
            if self._credit >= self.size:
                self._credit = 0
                self.size = min(self.size + 1, self.limit)

    def failed(self, started_at: int, now: int) -> None:
        """Learn from an attempt without an answer, or with one that is 429 or 5xx."""
        if started_at >= self._cut_at:
            self._cut(now)

    def _cut(self, now: int) -> None:
        self.size = max(self.size // 2, min(FLOOR, self.limit))
        self._is_doubling = False
        self._credit = 0
        self._cut_at = now
        self._smooth_ms = self._lowest_ms or 0.0
