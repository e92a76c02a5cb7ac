"""How often upstream may be asked: the rate, and the pause after a 429."""

from collections.abc import Mapping

from service.context import Context
from service.delivery import retry
from service.model.clock import MINUTE, SECOND
from service.model.generation import Generation
from service.upstream import wire
from service.upstream.catalogue import STATUS_PATH, Model

THROTTLED_MS = 5 * SECOND  # The pause after a 429 without Retry-After.
PAUSE_MAX_MS = 5 * MINUTE
PAUSE_SHARE_OF_DEADLINE = 10  # No pause is longer than a tenth of the time to the deadline.
PROBE_MS = MINUTE  # While everything is paused, one question a minute goes through.


class Budget:
    """A token bucket with a token for each poll, and the pause that a 429 asks for.

    The pause holds for submissions, too.
    """

    def __init__(self, rate_per_second: float, capacity: float | None = None) -> None:
        self.rate = self._whole_rate = rate_per_second
        self.capacity = capacity or max(1.0, rate_per_second)
        self.tokens = self.capacity
        self.updated_at = 0
        self.paused_until = 0
        self.probe_at = 0
        self.is_shared = False  # Whether each poll is taken from a row that all processes share.
        self._throttled_id: str | None = None  # The last one throttled by a body alone.

    def available(self, now: int) -> int:
        """Return how many polls may be made at `now`."""
        refill = max(now - self.updated_at, 0) * self.rate / 1_000
        self.tokens = min(self.capacity, self.tokens + refill)
        self.updated_at = now
        return 0 if now < self.paused_until else max(0, int(self.tokens))

    def take_share(self, share: float, now: int) -> None:
        """Keep to a share of the whole rate: other processes have the rest."""
        self.available(now)
        self.rate = self._whole_rate * share
        self.capacity = max(1.0, self.rate)
        self.tokens = min(self.tokens, self.capacity)

    def may_probe(self, now: int) -> bool:
        """Whether one poll may be made although everything is paused."""
        return self.probe_at <= now < self.paused_until and self.tokens >= 1

    def spend(self) -> None:
        """Take one token."""
        self.tokens -= 1
        self.probe_at = self.updated_at + PROBE_MS

    def begin_turn(self, now: int) -> None:
        """Begin with at most one token: other processes have polled meanwhile.

        Each process leaves one token to the next one: its turn ends only once `debt_seconds` is 0.
        """
        self.available(now)
        self.tokens = min(self.tokens, 1.0)

    def debt_seconds(self, now: int) -> float:
        """Return for how long a turn has to go on until it leaves one token."""
        self.available(now)
        return max(0.0, 1.0 - self.tokens) / self.rate

    def pause(self, until: int, probe_at: int = 0) -> None:
        """Allow no poll before `until`, and no probe before `probe_at`, as after a 429."""
        self.paused_until = max(self.paused_until, until)
        self.probe_at = max(self.probe_at, probe_at)

    def concerns_all(self, generation_id: str, answer: wire.Answer) -> bool:
        """Whether an answer throttles all requests to upstream.

        The HTTP status 429 does. A body's code may be about its task alone: it takes the codes of
        two generations, and no report about another one in between.
        """
        other_id = self._throttled_id
        if not is_throttled(answer):
            if isinstance(answer, wire.Report) and generation_id != other_id:
                self._throttled_id = None
            return False
        assert isinstance(answer, wire.NoReport)
        if answer.of_body:
            self._throttled_id = generation_id
        return not answer.of_body or other_id not in (None, generation_id)

    def note(self, until: int, now: int, max_ms: int) -> bool:
        """Keep to a stored pause, unless it is over `max_ms`; return whether it was news."""
        is_news = max(now, self.paused_until) < until <= now + max_ms
        if is_news:
            self.pause(until, probe_at=now + PROBE_MS)
        return is_news

    def next_at(self, now: int) -> int:
        """Return when the next poll may be made."""
        missing = max(0.0, 1.0 - self.tokens)
        refilled_at = now + int(missing / self.rate * 1_000) + 1
        return max(self.paused_until, refilled_at)

    def is_full(self, now: int) -> bool:
        """Whether no token is missing."""
        self.available(now)
        return self.tokens >= self.capacity

    @property
    def is_unused(self) -> bool:
        """Whether at least half of the tokens are left: nobody waits for one."""
        return self.tokens >= max(1.0, self.capacity / 2)


def status_path(models: Mapping[str, Model], generation: Generation) -> str:
    """Return the route at which upstream is asked about a generation."""
    model = models.get(generation.model)
    return model.status_path if model else STATUS_PATH


def pause_max_ms(context: Context) -> int:
    """Return the longest pause that upstream may ask for."""
    deadline_ms = context.settings.deadline_seconds * SECOND
    return min(PAUSE_MAX_MS, max(deadline_ms // PAUSE_SHARE_OF_DEADLINE, SECOND))


def asked_pause_ms(context: Context, value: str | None, now: int) -> int | None:
    """Return the pause that a Retry-After asks for, bounded; None if it asks for none."""
    asked_ms = retry.parse_retry_after(value, now)
    return None if asked_ms is None else min(asked_ms, pause_max_ms(context))


def is_throttled(answer: wire.Answer) -> bool:
    """Whether upstream answered a poll or a submission with 429."""
    if isinstance(answer, wire.Report):
        return False
    return answer.outcome == "throttled" or (answer.outcome, answer.status) == ("put_off", 429)


def pause_ms(context: Context, shared: Budget, generation_id: str, answer: wire.Answer) -> int:
    """Return for how long an answer pauses all requests to upstream."""
    is_general = shared.concerns_all(generation_id, answer)
    return wait_ms(context, answer, context.clock()) if is_general else 0


def wait_ms(context: Context, answer: wire.Answer, now: int) -> int:
    """Return the delay that an answer asks for; THROTTLED_MS for a 429 without one."""
    if isinstance(answer, wire.Report):
        return 0
    asked_ms = asked_pause_ms(context, answer.retry_after, now)
    if is_throttled(answer):
        asked_ms = THROTTLED_MS if asked_ms is None else max(asked_ms, SECOND)
    return min(asked_ms or 0, pause_max_ms(context))
