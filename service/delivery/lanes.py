"""A lane: the deliveries of one subscriber in memory, and which of them may leave now."""

import heapq
import itertools
from collections import deque
from collections.abc import Mapping, Sequence

import msgspec

from service.delivery import signing_keys
from service.delivery.webhook.request import Target, parse_target
from service.model.clock import SECOND
from service.model.delivery import Due
from service.model.subscriber import Subscriber
from service.store import stats, subscribers
from service.store.database import Transaction
from service.store.vault import Vault

READY_MAX = 200  # Deliveries of each kind that a lane holds in memory; others wait in their rows.
READY_BYTES_MAX = 8 * 1024 * 1024  # Of bodies, for the same.
RETRY_EVERY = 4  # Where both wait, every fourth to leave is a retry.
FAILING_SHARE = 4  # One slot in so many is never given to a lane that fails.
LATE_MS = 50.0  # A timer that is late by less than this does not slow the rate down.


class Settings(msgspec.Struct, frozen=True):
    """What an attempt needs to know of the subscriber, decrypted and parsed once."""

    subscriber: Subscriber
    target: Target
    headers: Mapping[str, str]
    signer: signing_keys.Signer
    last_attempt_at: int | None = None


class Found(msgspec.Struct, frozen=True):
    """A subscriber as it is stored, its secrets or its tenant's still sealed."""

    subscriber: Subscriber
    sealed_secrets: bytes
    last_attempt_at: int | None


async def find(tx: Transaction, subscriber_id: str) -> Found | None:
    """Read what a lane needs; None if the subscriber was deleted."""
    subscriber = await subscribers.get(tx, subscriber_id)
    if subscriber is None:
        return None
    sealed = subscriber.sealed_secrets
    if subscriber.is_notify:
        sealed = await subscribers.tenant_secrets(tx, subscriber.tenant)
    assert sealed is not None
    paced = subscriber.rate_per_second is not None
    last_at = await stats.last_attempt_at(tx, subscriber_id) if paced else None
    return Found(subscriber, sealed, last_at)


def unsealed(vault: Vault, found: Found) -> Settings:
    """The subscriber with its target parsed, its secrets and headers decrypted."""
    subscriber = found.subscriber
    owner_id = subscriber.tenant if subscriber.is_notify else subscriber.id
    return Settings(
        subscriber=subscriber,
        target=parse_target(subscriber.url),
        headers=signing_keys.unseal_headers(vault, subscriber.sealed_headers, subscriber.id),
        signer=signing_keys.Signer(signing_keys.unseal(vault, found.sealed_secrets, owner_id)),
        last_attempt_at=found.last_attempt_at,
    )


class Ready:
    """First attempts, or retries: those in memory, and when rows that are not are due."""

    __slots__ = ("held", "held_bytes", "in_flight", "next_at", "retries")

    def __init__(self, *, retries: bool) -> None:
        self.retries = retries
        self.held: deque[Due] = deque()
        self.held_bytes = 0
        self.in_flight = 0
        self.next_at: int | None = None

    @property
    def has_room(self) -> bool:
        """True if one more may be held; a body over the limit is held alone."""
        return len(self.held) < READY_MAX and self.held_bytes < READY_BYTES_MAX

    def expect(self, at: int | None) -> None:
        """Rows that are not in memory are due at `at`."""
        if at is not None and (self.next_at is None or at < self.next_at):
            self.next_at = at

    def append(self, due: Due) -> None:
        """Hold one more, at the end."""
        self.held.append(due)
        self.held_bytes += len(due.body)

    def popleft(self) -> Due:
        """The one that waits the longest."""
        due = self.held.popleft()
        self.held_bytes -= len(due.body)
        self.in_flight += 1
        return due

    def clear(self) -> None:
        """Hold nothing; the rows still have it."""
        self.held.clear()
        self.held_bytes = 0


class Lane:
    """One subscriber's queue. A lane that hangs costs its own slots and nobody else's."""

    __slots__ = (
        "failing_since",
        "first",
        "known",
        "loading",
        "next_send_at",
        "probing",
        "retries",
        "revision",
        "settings",
        "settled",
        "slow_until",
        "subscriber_id",
        "taken",
        "waits",
        "wake_at",
    )

    def __init__(self, subscriber_id: str) -> None:
        self.subscriber_id = subscriber_id
        self.settings: Settings | None = None
        self.first = Ready(retries=False)
        self.retries = Ready(retries=True)
        self.known: set[str] = set()  # In memory: ready, under way, or being recorded.
        self.settled: set[str] = set()  # Recorded while rows were read: the rows read are older.
        self.revision = 0  # Of what is stored, as far as this lane was told.
        self.taken = 0
        self.next_send_at = 0.0
        self.slow_until = 0
        self.wake_at: int | None = None
        self.failing_since: int | None = None
        self.probing = False
        self.loading = False
        self.waits: int | None = None  # For so many of the slots that all lanes share.

    def use(self, settings: Settings) -> None:
        """Take the subscriber's current settings."""
        subscriber = settings.subscriber
        self.settings = settings
        self.slow_until = max(self.slow_until, subscriber.slow_until or 0)
        self.failing_since = subscriber.failing_since
        self.probing = subscriber.probing
        if subscriber.rate_per_second and settings.last_attempt_at is not None:
            next_at = settings.last_attempt_at + SECOND / subscriber.rate_per_second
            self.next_send_at = max(self.next_send_at, next_at)
        if not self.is_open:
            self.forget()

    def forget(self) -> None:
        """Drop what has not left yet: it may be out of date, and the rows still have it."""
        for ready in (self.first, self.retries):
            self.known.difference_update(due.id for due in ready.held)
            ready.clear()
        self.revision += 1

    @property
    def in_flight(self) -> int:
        """How many attempts are under way or being recorded."""
        return self.first.in_flight + self.retries.in_flight

    @property
    def waiting(self) -> int:
        """How many deliveries are held until they may leave."""
        return len(self.first.held) + len(self.retries.held)

    @property
    def is_open(self) -> bool:
        """True if deliveries may leave at all."""
        return self.settings is not None and self.settings.subscriber.status == "active"

    def is_behind(self, now: int) -> bool:
        """True if rows wait that are not in memory: what is new must not overtake them."""
        next_at = self.first.next_at
        return self.loading or (next_at is not None and next_at <= now)

    @property
    def is_idle(self) -> bool:
        """True if nothing is in memory, and nothing is known to wait in rows."""
        waits = self.first.next_at is not None or self.retries.next_at is not None
        return not self.known and not waits and not self.loading

    @property
    def cap(self) -> int:
        """How many attempts may be under way: one, while a re-enabled subscriber is probed."""
        assert self.settings is not None
        return 1 if self.probing else self.settings.subscriber.max_in_flight

    def take_in(self, due: Due) -> bool:
        """Hold a delivery in memory; False if it is there already, or must wait in its row."""
        ready = self.retries if due.attempt_count else self.first
        closed = self.settings is not None and not self.is_open
        if closed or due.id in self.known or not ready.has_room:
            return False
        self.known.add(due.id)
        ready.append(due)
        return True

    def expect(self, first_at: int | None, retry_at: int | None) -> None:
        """Rows that are not in memory are due then."""
        self.first.expect(first_at)
        self.retries.expect(retry_at)

    def blocked_until(self, now: int) -> int | None:
        """When a rate or a receiver's plea lets the next one go; None if it may go now."""
        until = max(self.slow_until, -int(-self.next_send_at // 1))
        return until if until > now else None

    def take_next(self, now: int) -> Due | None:
        """The next delivery that may leave at `now`: first attempts have slots of their own."""
        if not self.is_open or self.in_flight >= self.cap or self.blocked_until(now) is not None:
            return None
        ready = self._turn()
        if ready is None:
            return None
        self.taken += 1
        self._pace(now)
        return ready.popleft()

    def release(self, due: Due) -> None:
        """An attempt has ended and is recorded."""
        (self.retries if due.attempt_count else self.first).in_flight -= 1
        self.known.discard(due.id)
        if self.loading:
            self.settled.add(due.id)

    def hungry(self, now: int) -> Sequence[Ready]:
        """The kinds whose rows are due and of which too few are in memory."""
        return [
            ready
            for ready in (self.first, self.retries)
            if ready.next_at is not None and ready.next_at <= now and len(ready.held) < self.cap
        ]

    def next_at(self, now: int) -> int | None:
        """When rows will be due next."""
        times = [r.next_at for r in (self.first, self.retries) if r.next_at and r.next_at > now]
        return min(times, default=None)

    def _turn(self) -> Ready | None:
        retry = bool(self.retries.held) and self.retries.in_flight < self._retry_cap()
        if self.first.held and not (retry and self.taken % RETRY_EVERY == RETRY_EVERY - 1):
            return self.first
        return self.retries if retry else None

    def _retry_cap(self) -> int:
        return self.cap if self.cap == 1 else self.cap - max(1, self.cap // 4)

    def _pace(self, now: int) -> None:
        assert self.settings is not None
        rate = self.settings.subscriber.rate_per_second
        if rate:
            on_time = now - self.next_send_at <= LATE_MS
            self.next_send_at = (self.next_send_at if on_time else now) + SECOND / rate


class Slots:
    """The attempts that all lanes together may have under way.

    A lane takes one more only while more are free than it holds: so lanes that hang never take
    the last ones, however many each may have. And some are only for lanes that do not fail.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.taken = 0
        self._reserve = count // FAILING_SHARE
        self._waiting: list[tuple[int, int, Lane]] = []  # By what they need, then in turn.
        self._turn = itertools.count()

    def needed(self, lane: Lane) -> int:
        """How many must be free for the lane to take one more."""
        return lane.in_flight + 1 + (self._reserve if lane.failing_since is not None else 0)

    def are_free_for(self, lane: Lane) -> bool:
        """True if the lane may take one more."""
        return self.count - self.taken >= self.needed(lane)

    def wait(self, lane: Lane) -> None:
        """Have the lane served when enough slots are free."""
        needed = self.needed(lane)
        if lane.waiting and (lane.waits is None or needed < lane.waits):
            lane.waits = needed
            heapq.heappush(self._waiting, (needed, next(self._turn), lane))

    def next_waiting(self) -> Lane | None:
        """The lane that is served now, no longer waiting; those that hold the fewest come first."""
        while self._waiting and self._waiting[0][0] <= self.count - self.taken:
            needed, _, lane = heapq.heappop(self._waiting)
            if lane.waits == needed:  # Else it waits for fewer by now, in another place.
                lane.waits = None
                return lane
        return None

    def forget(self) -> None:
        """Nobody waits any more."""
        for _, _, lane in self._waiting:
            lane.waits = None
        self._waiting.clear()
