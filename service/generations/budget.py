"""How often upstream may be asked: the rate, and the pause after a 429."""

from collections.abc import Mapping
from typing import Literal

from service.context import Context
from service.delivery import retry
from service.model.clock import MINUTE, SECOND
from service.model.generation import Generation
from service.store import generations
from service.store.database import Transaction
from service.upstream import wire
from service.upstream.catalogue import STATUS_PATH, Model

THROTTLED_MS = 5 * SECOND  # The pause after a 429 without Retry-After.
PAUSE_MAX_MS = 5 * MINUTE
PAUSE_SHARE_OF_DEADLINE = 10  # No pause is longer than a tenth of the time to the deadline.
AHEAD_MS = MINUTE  # How far a clock may have been ahead when a time was noted.
PROBE_MS = MINUTE  # While everything is paused, one request of each kind a minute goes through.
Kind = Literal["poll", "submission"]


class Budget:
    """A token bucket with a token for each poll, and the pause that a 429 asks for.

    The pause holds for submissions, too. None lasts longer than `pause_max_ms`: if it seems to,
    the clock was set back since.
    """

    def __init__(
        self,
        rate_per_second: float,
        capacity: float | None = None,
        pause_max_ms: int = PAUSE_MAX_MS,
    ) -> None:
        self.rate = self._whole_rate = rate_per_second
        self.capacity = capacity or max(1.0, rate_per_second)
        self.tokens = self.capacity
        self.updated_at = 0
        self.pause_max_ms = pause_max_ms
        self._paused_until = 0
        self._probe_at: dict[Kind, int] = {"poll": 0, "submission": 0}
        self.is_shared = False  # Whether each poll is taken from a row that all processes share.
        self._throttled_id: str | None = None  # The last generation throttled by a body alone.

    def available(self, now: int) -> int:
        """Return how many polls may be made at `now`."""
        self.refill(now)
        return 0 if self.is_paused(now) else max(0, int(self.tokens))

    def refill(self, now: int) -> None:
        """Add the tokens of the time since the last call."""
        passed_ms = max(now - self.updated_at, 0)
        self.tokens = min(self.capacity, self.tokens + passed_ms * self.rate / 1_000)
        self.updated_at = now

    def is_paused(self, now: int) -> bool:
        """Whether upstream asked for no requests at `now`."""
        return is_pause(self._paused_until, now, self.pause_max_ms)

    def take_share(self, share: float, now: int) -> None:
        """Keep to a share of the whole rate: other processes have the rest."""
        self.refill(now)
        self.rate = self._whole_rate * share
        self.capacity = max(1.0, self.rate)
        self.tokens = min(self.tokens, self.capacity)

    def may_probe(self, now: int) -> bool:
        """Whether one poll may be made although everything is paused."""
        return self.is_paused(now) and self.probe_at("poll", now) <= now and self.tokens >= 1

    def probe_at(self, kind: Kind, now: int) -> int:
        """Return when a request of this kind may be made during the pause, or after it."""
        at = self._probe_at[kind]
        return min(at, self._paused_until) if at <= now + PROBE_MS + AHEAD_MS else now

    def note_probe(self, kind: Kind, now: int) -> None:
        """Let the next request of this kind that is made during a pause wait for a minute."""
        self._probe_at[kind] = now + PROBE_MS

    def spend(self) -> None:
        """Take one token."""
        self.tokens -= 1
        self.note_probe("poll", self.updated_at)

    def begin_turn(self, now: int) -> None:
        """Begin with at most one token: other processes have polled meanwhile.

        Each process leaves one token to the next one: its turn ends only once `debt_seconds` is 0.
        """
        self.refill(now)
        self.tokens = min(self.tokens, 1.0)

    def debt_seconds(self, now: int) -> float:
        """Return for how long a turn has to go on until it leaves one token."""
        self.refill(now)
        return max(0.0, 1.0 - self.tokens) / self.rate

    def pause(self, until: int, now: int) -> None:
        """Allow no request before `until`, as after a 429, but for probes from in a minute on."""
        if not self.is_paused(now):
            self._paused_until = 0
            self._probe_at = dict.fromkeys(self._probe_at, now + PROBE_MS)
        self._paused_until = max(self._paused_until, until)

    def note_answer(self, generation_id: str, answer: wire.Answer) -> bool:
        """Note an answer; return whether it throttles all requests to upstream.

        The HTTP status 429 does. A body's code may be about its task alone: it takes the codes of
        two generations, and no report about another one in between.
        """
        other_id, is_of_body = self._throttled_id, answer.throttled_by == "body"
        if answer.throttled_by is None:
            if isinstance(answer, wire.Report) and generation_id != other_id:
                self._throttled_id = None
            return False
        if is_of_body:
            self._throttled_id = generation_id
        return not is_of_body or other_id not in (None, generation_id)

    def note(self, until: int, now: int) -> bool:
        """Keep to a stored pause; return whether it was news."""
        ends_at = self._paused_until if self.is_paused(now) else now
        is_news = ends_at < until and is_pause(until, now, self.pause_max_ms)
        if is_news:
            self.pause(until, now)
        return is_news

    def next_at(self, now: int) -> int:
        """Return when the next poll may be made, a probe during a pause included."""
        missing = max(0.0, 1.0 - self.tokens)
        refilled_at = now + int(missing / self.rate * 1_000) + 1
        return max(self.probe_at("poll", now), refilled_at) if self.is_paused(now) else refilled_at

    def is_full(self, now: int) -> bool:
        """Whether no token is missing."""
        self.refill(now)
        return self.tokens >= self.capacity

    @property
    def is_unused(self) -> bool:
        """Whether at least half of the tokens are left: nobody waits for one."""
        return self.tokens >= max(1.0, self.capacity / 2)


def is_pause(until: int, now: int, max_ms: int) -> bool:
    """Whether there is a pause until then. If it would be too long, the clock was set back."""
    return now < until <= now + max_ms + AHEAD_MS


def status_path(models: Mapping[str, Model], generation: Generation) -> str:
    """Return the path at which upstream is asked about a generation."""
    model = models.get(generation.model)
    return model.status_path if model else STATUS_PATH


def pause_max_ms(context: Context) -> int:
    """Return the longest pause that upstream may ask for."""
    deadline_ms = context.settings.deadline_seconds * SECOND
    return min(PAUSE_MAX_MS, max(deadline_ms // PAUSE_SHARE_OF_DEADLINE, SECOND))


async def store_pause(tx: Transaction, context: Context, pause_ms: int) -> None:
    """Store a pause for other processes and restarts."""
    latest = tx.now + pause_max_ms(context) + AHEAD_MS
    await generations.put_pause(tx, tx.now + pause_ms, latest)


def pause_after(context: Context, budget: Budget, generation_id: str, answer: wire.Answer) -> int:
    """Note an answer; return for how long it pauses all requests to upstream, in milliseconds."""
    is_general = budget.note_answer(generation_id, answer)
    return wait_ms(context, answer, context.clock()) if is_general else 0


def wait_ms(context: Context, answer: wire.Answer, now: int) -> int:
    """Return the delay that an answer asks for, bounded; THROTTLED_MS for a 429 without one."""
    asked_ms = retry.parse_retry_after(answer.retry_after, now)
    if answer.throttled_by is not None:
        asked_ms = THROTTLED_MS if asked_ms is None else max(asked_ms, SECOND)
    return min(asked_ms or 0, pause_max_ms(context))
