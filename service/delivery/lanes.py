"""A lane: the deliveries of one subscriber in memory, and which of them may leave now."""

import math
from collections import deque

from service.delivery.recipient import Recipient
from service.delivery.window import Window
from service.model.attempt import Attempt
from service.model.clock import SECOND
from service.model.delivery import DueDelivery
from service.model.subscriber import Subscriber

READY_MAX = 200  # Deliveries of each kind that a lane holds in memory; others wait in their rows.
READY_BYTES_MAX = 8 * 1024 * 1024  # Of their bodies.
REFILL_BELOW = READY_MAX // 4
RETRY_EVERY = 4  # Where first attempts and retries wait, every fourth to leave is a retry.
LATE_MS = 50.0  # A timer that is late by less than this does not slow the rate down.


class Backlog:
    """A lane's first attempts, or its retries: those in memory, and when others are due."""

    __slots__ = ("body_bytes", "deliveries", "in_flight", "is_retries", "next_due_at")

    def __init__(self, *, is_retries: bool) -> None:
        self.is_retries = is_retries
        self.deliveries: deque[DueDelivery] = deque()
        self.body_bytes = 0
        self.in_flight = 0
        self.next_due_at: int | None = None  # Of rows that are not in memory.

    @property
    def has_room(self) -> bool:
        """True if one more may be held; a body over the limit is held alone."""
        return len(self.deliveries) < READY_MAX and self.body_bytes < READY_BYTES_MAX

    def expect(self, at: int | None) -> None:
        """Note that rows that are not in memory are due at `at`."""
        if at is not None and (self.next_due_at is None or at < self.next_due_at):
            self.next_due_at = at

    def is_due(self, now: int) -> bool:
        """True if rows that are not in memory are due."""
        return self.next_due_at is not None and self.next_due_at <= now

    def append(self, due: DueDelivery) -> None:
        """Hold one more, at the end."""
        self.deliveries.append(due)
        self.body_bytes += len(due.body)

    def popleft(self) -> DueDelivery:
        """Take the one that waits the longest; it is in flight from now on."""
        due = self.deliveries.popleft()
        self.body_bytes -= len(due.body)
        self.in_flight += 1
        return due

    def clear(self) -> None:
        """Hold nothing; the rows are still due."""
        self.deliveries.clear()
        self.body_bytes = 0


class Lane:
    """The queue of one subscriber, with its own pace and its own limits.

    Attributes:
        recipient: None until it is read, and again after the subscriber was changed.
        is_open: whether the subscriber is known and active.
        in_flight: how many attempts are under way or being stored.
        held_ids: the deliveries in memory: waiting, in flight or being stored.
        recorded_while_loading: stored since the current read of rows began, which may be older.
        revision: grows when the subscriber was changed, so that an older read is dropped.
        turn: how many attempts have left.
        wake_at: when the dispatcher looks at the lane next.

    """

    __slots__ = (
        "failing_since",
        "first_attempts",
        "held_ids",
        "in_flight",
        "is_loading",
        "is_open",
        "next_send_at",
        "probing",
        "recipient",
        "recorded_while_loading",
        "retries",
        "revision",
        "slow_until",
        "subscriber_id",
        "turn",
        "wake_at",
        "window",
    )

    def __init__(self, subscriber_id: str) -> None:
        self.subscriber_id = subscriber_id
        self.recipient: Recipient | None = None
        self.is_open = False
        self.in_flight = 0
        self.first_attempts = Backlog(is_retries=False)
        self.retries = Backlog(is_retries=True)
        self.held_ids: set[str] = set()
        self.recorded_while_loading: set[str] = set()
        self.is_loading = False
        self.revision = 0
        self.turn = 0
        self.window = Window()
        self.next_send_at = 0.0
        self.slow_until = 0
        self.wake_at: int | None = None
        self.failing_since: int | None = None
        self.probing = False

    # The subscriber.

    def set_recipient(self, recipient: Recipient) -> None:
        """Use the subscriber as it is stored now; drop what is held if it is not active."""
        subscriber = recipient.subscriber
        self.recipient = recipient
        self.is_open = subscriber.status == "active"
        self.window.set_limit(subscriber.max_in_flight)
        self.pause_until(subscriber.slow_until)
        self.failing_since, self.probing = subscriber.failing_since, subscriber.probing
        if subscriber.rate_per_second and recipient.last_attempt_at is not None:
            next_at = recipient.last_attempt_at + SECOND / subscriber.rate_per_second
            self.next_send_at = max(self.next_send_at, next_at)
        if not self.is_open:
            self.drop_waiting()

    def set_health(self, subscriber: Subscriber) -> None:
        """Take over what an attempt changed; after a successful probe the window starts anew."""
        if self.probing and not subscriber.probing:
            self.window = Window(subscriber.max_in_flight)
        self.failing_since, self.probing = subscriber.failing_since, subscriber.probing

    def pause_until(self, at: int | None) -> None:
        """Let nothing leave before `at`, as the receiver asked."""
        self.slow_until = max(self.slow_until, at or 0)

    def drop_recipient(self) -> None:
        """Forget the subscriber and what waits: the rows have it, and may have changed."""
        self.drop_waiting()
        self.recipient, self.is_open = None, False

    def drop_waiting(self) -> None:
        """Drop what has not left yet, and every read of rows under way."""
        for backlog in (self.first_attempts, self.retries):
            self.held_ids.difference_update(due.id for due in backlog.deliveries)
            backlog.clear()
        self.revision += 1

    # What the lane has.

    @property
    def waiting(self) -> int:
        """How many deliveries are held until they may leave."""
        return len(self.first_attempts.deliveries) + len(self.retries.deliveries)

    @property
    def is_idle(self) -> bool:
        """True if nothing is in memory, and no rows are known to be due."""
        backlogs = (self.first_attempts, self.retries)
        has_rows = any(backlog.next_due_at is not None for backlog in backlogs)
        return not (self.held_ids or has_rows or self.is_loading)

    @property
    def cap(self) -> int:
        """How many attempts may be under way: one while a re-enabled subscriber is probed."""
        return 1 if self.probing else self.window.size

    # Rows.

    def expect(self, first_at: int | None, retry_at: int | None) -> None:
        """Note when rows that are not in memory are due: first attempts, and retries."""
        self.first_attempts.expect(first_at)
        self.retries.expect(retry_at)

    def has_older_rows(self, now: int) -> bool:
        """True if rows that are not in memory are due, which new deliveries must not overtake."""
        return self.is_loading or self.first_attempts.is_due(now)

    def hold(self, due: DueDelivery) -> bool:
        """Hold a delivery in memory; False if it is held already, or has to wait in its row."""
        backlog = self._backlog_of(due)
        is_closed = self.recipient is not None and not self.is_open
        if is_closed or due.id in self.held_ids or not backlog.has_room:
            return False
        self.held_ids.add(due.id)
        backlog.append(due)
        return True

    def to_refill(self, now: int) -> list[Backlog]:
        """Return the backlogs that should be refilled from the database now."""
        below = min(self.cap, REFILL_BELOW)
        return [
            backlog
            for backlog in (self.first_attempts, self.retries)
            if backlog.is_due(now) and len(backlog.deliveries) < below and backlog.has_room
        ]

    def next_due_at(self, now: int) -> int | None:
        """Return when rows that are not in memory will be due next."""
        backlogs = (self.first_attempts, self.retries)
        times = [at for backlog in backlogs if (at := backlog.next_due_at) and at > now]
        return min(times, default=None)

    def end_loading(self) -> None:
        """Note that no read of rows is under way."""
        self.is_loading = False
        self.recorded_while_loading.clear()

    # What leaves.

    def blocked_until(self, now: int) -> int | None:
        """Return until when a rate or the receiver lets nothing leave; None if something may."""
        until = max(self.slow_until, math.ceil(self.next_send_at))
        return until if until > now else None

    def pop_next(self, now: int) -> DueDelivery | None:
        """Take the next delivery that may leave; retries cannot take every place."""
        if not self.is_open or self.in_flight >= self.cap:
            return None
        if now < self.slow_until or now < self.next_send_at:
            return None
        backlog = self._next_backlog()
        if backlog is None:
            return None
        self.turn += 1
        self.in_flight += 1
        self._pace(now)
        return backlog.popleft()

    def learn(self, attempt: Attempt, now: int) -> None:
        """Open or close the window by an attempt that has just ended, and is still in flight."""
        code = attempt.status_code
        if code is None or code == 429 or code >= 500:
            self.window.failed(started_at=attempt.started_at, now=now)
        else:
            self.window.answered(
                attempt.duration_ms,
                started_at=attempt.started_at,
                now=now,
                in_flight=self.in_flight,
            )

    def release(self, due: DueDelivery) -> None:
        """Let go of a delivery whose attempt is stored."""
        self._backlog_of(due).in_flight -= 1
        self.in_flight -= 1
        self.held_ids.discard(due.id)
        if self.is_loading:
            self.recorded_while_loading.add(due.id)

    def _backlog_of(self, due: DueDelivery) -> Backlog:
        return self.retries if due.attempt_count else self.first_attempts

    def _next_backlog(self) -> Backlog | None:
        has_first = bool(self.first_attempts.deliveries)
        if self.retries.deliveries and self.retries.in_flight < self._retry_cap():
            is_retry_turn = self.turn % RETRY_EVERY == RETRY_EVERY - 1
            return self.retries if is_retry_turn or not has_first else self.first_attempts
        return self.first_attempts if has_first else None

    def _retry_cap(self) -> int:
        return self.cap if self.cap == 1 else self.cap - max(1, self.cap // 4)

    def _pace(self, now: int) -> None:
        assert self.recipient is not None
        rate = self.recipient.subscriber.rate_per_second
        if rate:
            on_time = now - self.next_send_at <= LATE_MS
            self.next_send_at = (self.next_send_at if on_time else now) + SECOND / rate
