"""How many questions upstream may be asked: a token bucket, and the pause that a 429 asks for."""


class Budget:
    """A token bucket over the rate towards upstream; times are milliseconds since the epoch."""

    def __init__(self, rate_per_second: float) -> None:
        self.rate = rate_per_second
        self.capacity = max(1.0, rate_per_second)
        self.tokens = self.capacity
        self.updated_at: int | None = None
        self.paused_until = 0

    def available(self, now: int) -> int:
        """Return how many questions may be asked at `now`."""
        if self.updated_at is not None and now > self.updated_at:
            gained = (now - self.updated_at) * self.rate / 1_000
            self.tokens = min(self.capacity, self.tokens + gained)
        self.updated_at = now
        return 0 if now < self.paused_until else int(self.tokens)

    def spend(self) -> None:
        """Take one token."""
        self.tokens -= 1

    def pause(self, until: int) -> None:
        """Ask nothing before `until`: upstream answered that it is asked too often."""
        self.paused_until = max(self.paused_until, until)

    def next_at(self, now: int) -> int:
        """Return when a question may be asked again."""
        missing = max(0.0, 1.0 - self.tokens)
        return max(self.paused_until, now + int(missing / self.rate * 1_000) + 1)
