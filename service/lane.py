"""A lane: the deliveries of one subscriber in memory, and which of them may leave now."""

from collections import deque
from collections.abc import Mapping

import msgspec

from service.clock import SECOND
from service.exchange import Target
from service.model import Due, Subscriber
from service.signers import Signer

READY_MAX = 200  # Deliveries a lane holds in memory; the others wait in their rows.


class Settings(msgspec.Struct, frozen=True):
    """What an attempt needs to know of the subscriber, decrypted and parsed once."""

    subscriber: Subscriber
    target: Target
    headers: Mapping[str, str]
    signer: Signer


class Lane:
    """One subscriber's queue. A lane that hangs costs its own slots and nobody else's."""

    __slots__ = (
        "failing_since",
        "first",
        "in_flight",
        "known",
        "loading",
        "next_at",
        "next_send_at",
        "probing",
        "queued",
        "retries",
        "retries_in_flight",
        "settings",
        "settled",
        "slow_until",
        "subscriber_id",
        "wake_at",
    )

    def __init__(self, subscriber_id: str) -> None:
        self.subscriber_id = subscriber_id
        self.settings: Settings | None = None
        self.first: deque[Due] = deque()
        self.retries: deque[Due] = deque()
        self.known: set[str] = set()  # In memory: ready, under way, or being recorded.
        self.in_flight = 0
        self.retries_in_flight = 0
        self.next_at: int | None = None  # When rows that are not in memory are due.
        self.next_send_at = 0
        self.slow_until = 0
        self.wake_at: int | None = None
        self.failing_since: int | None = None
        self.probing = False
        self.loading = False
        self.settled: set[str] = set()  # Recorded while rows were read: the rows read are older.
        self.queued = False  # It waits for one of the slots that all lanes share.

    def use(self, settings: Settings) -> None:
        """Take the subscriber's current settings."""
        self.settings = settings
        self.slow_until = max(self.slow_until, settings.subscriber.slow_until or 0)
        self.failing_since = settings.subscriber.failing_since
        self.probing = settings.subscriber.probing

    @property
    def is_open(self) -> bool:
        """True if deliveries may leave at all."""
        return self.settings is not None and self.settings.subscriber.status == "active"

    @property
    def is_idle(self) -> bool:
        """True if nothing is in memory, and nothing is known to wait in rows."""
        return not self.known and self.next_at is None and not self.loading

    @property
    def cap(self) -> int:
        """How many attempts may be under way: one, while a re-enabled subscriber is probed."""
        assert self.settings is not None
        return 1 if self.probing else self.settings.subscriber.max_in_flight

    def take_in(self, due: Due) -> bool:
        """Hold a delivery in memory; False if it is there already or there is no room."""
        queue = self.retries if due.attempt_count else self.first
        if due.id in self.known or len(queue) >= READY_MAX:
            return False
        self.known.add(due.id)
        queue.append(due)
        return True

    def clear(self) -> None:
        """Forget what has not left yet; the rows still have it."""
        for queue in (self.first, self.retries):
            self.known.difference_update(due.id for due in queue)
            queue.clear()

    def blocked_until(self, now: int) -> int | None:
        """When a rate or a receiver's plea lets the next one go; None if it may go now."""
        until = max(self.slow_until, self.next_send_at)
        return until if until > now else None

    def take_next(self, now: int) -> Due | None:
        """The next delivery that may leave at `now`: first attempts have slots of their own."""
        if not self.is_open or self.in_flight >= self.cap or self.blocked_until(now) is not None:
            return None
        if self.first:
            due = self.first.popleft()
        elif self.retries and self.retries_in_flight < self._retry_cap():
            due = self.retries.popleft()
        else:
            return None
        self.in_flight += 1
        self.retries_in_flight += bool(due.attempt_count)
        self._pace(now)
        return due

    def release(self, due: Due) -> None:
        """An attempt has ended and is recorded."""
        self.in_flight -= 1
        self.retries_in_flight -= bool(due.attempt_count)
        self.known.discard(due.id)
        if self.loading:
            self.settled.add(due.id)

    def _retry_cap(self) -> int:
        return self.cap if self.cap == 1 else self.cap - max(1, self.cap // 4)

    def _pace(self, now: int) -> None:
        assert self.settings is not None
        rate = self.settings.subscriber.rate_per_second
        if rate:
            self.next_send_at = max(now, self.next_send_at) + int(SECOND / rate)
