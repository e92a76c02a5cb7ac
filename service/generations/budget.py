"""The rate limit of polls: a token bucket, and the pause that a 429 asks for."""


class Budget:
    """A token bucket with a token for each poll. Times are milliseconds since the epoch."""

    def __init__(self, rate_per_second: float) -> None:
        self.rate = rate_per_second
        self.capacity = max(1.0, rate_per_second)
        self.tokens = self.capacity
        self.updated_at = 0
        self.paused_until = 0

    def available(self, now: int) -> int:
        """Return how many polls may be made at `now`."""
        refill = max(now - self.updated_at, 0) * self.rate / 1_000
        self.tokens = min(self.capacity, self.tokens + refill)
        self.updated_at = now
        return 0 if now < self.paused_until else int(self.tokens)

    def spend(self) -> None:
        """Take one token."""
        self.tokens -= 1

    def pause(self, until: int) -> None:
        """Allow no poll before `until`: upstream answered 429."""
        self.paused_until = max(self.paused_until, until)

    def next_at(self, now: int) -> int:
        """Return when the next poll may be made."""
        missing = max(0.0, 1.0 - self.tokens)
        return max(self.paused_until, now + int(missing / self.rate * 1_000) + 1)
