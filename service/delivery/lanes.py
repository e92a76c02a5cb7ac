"""A lane: the deliveries of one subscriber in memory, and which of them may leave now."""

import math
from collections import deque
from collections.abc import Set as AbstractSet
from functools import partial

from msgspec import Struct, field

from service.context import Context
from service.delivery.attempt import Recipient, read_recipient
from service.delivery.receivers import Receiver, Receivers
from service.delivery.window import Window
from service.model.attempt import Attempt
from service.model.clock import SECOND
from service.model.delivery import DueDelivery
from service.model.subscriber import Subscriber
from service.store import deliveries

READY_MAX = 200  # Deliveries of each kind that a lane holds in memory; others wait in their rows.
READY_BYTES_MAX = 8 * 1024 * 1024  # All their bodies together.
BODIES_BYTES_MAX = 64 * 1024 * 1024  # In all lanes; above it a lane reads one at a time.
REFILL_BELOW = READY_MAX // 4
RETRY_EVERY = 4  # While both kinds wait, every fourth attempt that starts is a retry.
ASKED_EVERY = 2  # And every second one is what a person asked for, while that waits.
LATE_MS = 50.0  # A timer that is late by less than this does not slow the rate down.


class Backlog(Struct, eq=False):
    """A lane's first attempts, or its retries: those in memory, and when others are due."""

    is_retries: bool
    is_manual: bool = False  # Those that a person asked for: a rest does not hold them.
    deliveries: deque[DueDelivery] = field(default_factory=deque)
    body_bytes: int = 0
    in_flight: int = 0
    next_due_at: int | None = None  # When rows that are not in memory are due.

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


class Bodies(Struct, eq=False):
    """The bodies that all lanes hold in memory, those under way included."""

    held_bytes: int = 0

    @property
    def are_full(self) -> bool:
        """True if a lane may hold no more than the next delivery of each kind."""
        return self.held_bytes >= BODIES_BYTES_MAX


class Lane(Struct, eq=False):
    """The queue of one subscriber, with its own pace and its own limits."""

    subscriber_id: str
    bodies: Bodies = field(default_factory=Bodies)  # Shared with the other lanes.
    recipient: Recipient | None = None  # None until it is read, and after a change.
    is_open: bool = False  # Whether the subscriber is known and active.
    failing_since: int | None = None
    last_failed_at: int | None = None
    probing: bool = False
    first_attempts: Backlog = field(default_factory=partial(Backlog, is_retries=False))
    retries: Backlog = field(default_factory=partial(Backlog, is_retries=True))
    manual_retries: Backlog = field(
        default_factory=partial(Backlog, is_retries=True, is_manual=True)
    )
    held_ids: set[str] = field(default_factory=set)  # Waiting, in flight or being stored.
    read_again: set[str] = field(default_factory=set)  # Held ones that may have been changed.
    in_flight: int = 0  # Attempts that are under way or being stored.
    turn: int = 0  # Attempts that have started.
    window: Window = field(default_factory=Window)
    receiver: Receiver = field(default_factory=Receiver)
    next_send_at: float = 0.0
    slow_until: int = 0  # No attempt starts before: the receiver asked for that.
    wake_at: int | None = None  # When the dispatcher looks at the lane next.
    is_loading: bool = False
    # Stored since the current read of rows began, which may be older.
    recorded_while_loading: set[str] = field(default_factory=set)
    revision: int = 0  # Grows when the subscriber was changed, so that an older read is dropped.

    # The subscriber.

    def set_recipient(self, recipient: Recipient, receiver: Receiver) -> None:
        """Use the subscriber as it is stored now; drop what is held if it is not active."""
        subscriber = recipient.subscriber
        self.recipient, self.receiver = recipient, receiver
        self.is_open = subscriber.status == "active"
        if subscriber.is_notify:
            self.window = receiver.window
        else:
            self.window.set_limit(subscriber.max_in_flight)
        self._take_health(subscriber)
        if subscriber.rate_per_second and recipient.last_attempt_at is not None:
            next_at = recipient.last_attempt_at + SECOND / subscriber.rate_per_second
            self.next_send_at = max(self.next_send_at, next_at)
        if not self.is_open:
            self.drop_waiting()

    def set_health(self, subscriber: Subscriber) -> None:
        """Take over what an attempt changed; after a successful probe the window starts anew."""
        if self.probing and not subscriber.probing and not subscriber.is_notify:
            self.window = Window(subscriber.max_in_flight)
        self._take_health(subscriber)

    def _take_health(self, subscriber: Subscriber) -> None:
        self.slow_until = max(self.slow_until, subscriber.slow_until or 0)
        self.failing_since, self.probing = subscriber.failing_since, subscriber.probing
        self.last_failed_at = subscriber.last_failed_at

    def drop_recipient(self) -> None:
        """Forget the subscriber and what waits: the rows have it, and may have changed."""
        self.drop_waiting()
        self.recipient, self.is_open = None, False

    def drop_waiting(self) -> None:
        """Drop what has not left yet, and every read of rows under way."""
        for backlog in self.backlogs:
            self.held_ids.difference_update(due.id for due in backlog.deliveries)
            self.read_again &= self.held_ids
            self.bodies.held_bytes -= backlog.body_bytes
            backlog.deliveries.clear()
            backlog.body_bytes = 0
        self.revision += 1

    # What the lane has.

    @property
    def backlogs(self) -> tuple[Backlog, ...]:
        """What the lane has, each kind apart."""
        return self.first_attempts, self.retries, self.manual_retries

    @property
    def waiting(self) -> int:
        """How many deliveries are held until they may leave."""
        count = len(self.first_attempts.deliveries) + len(self.retries.deliveries)
        return count + len(self.manual_retries.deliveries)

    def is_idle_until(self, at: int) -> bool:
        """True if nothing is in memory, and no rows are known to be due by `at` that may leave."""
        if self.held_ids or self.is_loading:
            return False
        is_closed = self.recipient is not None and not self.is_open
        return is_closed or not any(backlog.is_due(at) for backlog in self.backlogs)

    @property
    def cap(self) -> int:
        """How many attempts may be under way: one while a re-enabled subscriber is probed."""
        return 1 if self.probing else self.window.size

    # Rows.

    def expect(self, first_at: int | None, retry_at: int | None) -> None:
        """Note when rows that are not in memory are due: first attempts, and retries."""
        self.first_attempts.expect(first_at)
        self.retries.expect(retry_at)
        for at in (first_at, retry_at):  # What a person asked for may be either.
            self.manual_retries.expect(at)

    def hold(self, due: DueDelivery) -> bool:
        """Hold a delivery in memory; False if it is held already, or has to wait in its row."""
        backlog = self._backlog_of(due)
        is_closed = self.recipient is not None and not self.is_open
        if is_closed or due.id in self.held_ids or not self.room_in(backlog):
            return False
        self.bodies.held_bytes += len(due.body)
        self.held_ids.add(due.id)
        backlog.deliveries.append(due)
        backlog.body_bytes += len(due.body)
        return True

    def take_out(self, ids: AbstractSet[str]) -> None:
        """Drop deliveries that wait as the schedule's: a person has asked for them since."""
        for backlog in (self.first_attempts, self.retries):
            for due in [due for due in backlog.deliveries if due.id in ids]:
                backlog.deliveries.remove(due)
                backlog.body_bytes -= len(due.body)
                self.bodies.held_bytes -= len(due.body)
                self.held_ids.discard(due.id)

    def to_refill(self, now: int) -> list[Backlog]:
        """Return the backlogs that should be refilled from the database now."""
        below = min(self.cap, REFILL_BELOW)
        return [
            backlog
            for backlog in self.backlogs
            if backlog.is_due(now) and len(backlog.deliveries) < below and self.room_in(backlog)
        ]

    def room_in(self, backlog: Backlog) -> int:
        """Return how many more deliveries may be held; their bodies' sizes are not known yet."""
        if not backlog.has_room:
            return 0
        if self.bodies.are_full:
            return 0 if backlog.deliveries else 1
        return READY_MAX - len(backlog.deliveries)

    def next_due_at(self, now: int) -> int | None:
        """Return when rows that are not in memory will be due next."""
        times = [at for backlog in self.backlogs if (at := backlog.next_due_at) and at > now]
        return min(times, default=None)

    # What leaves.

    def blocked_until(self, now: int) -> int | None:
        """Return until when a rate or the receiver lets nothing leave; None if something may.

        What a person asked for leaves while the receiver rests, too.
        """
        until = math.ceil(self.next_send_at)
        if not self.manual_retries.deliveries:
            until = max(until, self.rests_until)
        return until if until > now else None

    @property
    def rests_until(self) -> int:
        """Until when the receiver asked for a rest, which may be over."""
        return max(self.slow_until, self.receiver.slow_until)

    def pop_next(self, now: int) -> DueDelivery | None:
        """Take the next delivery that may leave; retries cannot take every slot."""
        if self.recipient is None or not self.is_open:
            return None
        if self.in_flight >= self.cap or self.blocked_until(now) is not None:
            return None
        backlog = self._choose_backlog(now)
        if backlog is None:
            return None
        self.turn += 1
        self.in_flight += 1
        rate = self.recipient.subscriber.rate_per_second
        if rate:
            on_time = now - self.next_send_at <= LATE_MS
            self.next_send_at = (self.next_send_at if on_time else now) + SECOND / rate
        backlog.in_flight += 1
        due = backlog.deliveries.popleft()
        backlog.body_bytes -= len(due.body)
        return due

    def learn(self, attempt: Attempt, now: int, *, in_flight: int) -> None:
        """Open or close the window by an attempt that has just ended, and is still in flight.

        in_flight: of all lanes that share the window, this attempt included.
        """
        code = attempt.status_code
        if code is None or code == 429 or code >= 500:
            self.window.failed(attempt.started_at, now)
        else:
            self.window.answered(
                attempt.duration_ms, attempt.started_at, now=now, in_flight=in_flight
            )

    def release(self, due: DueDelivery) -> None:
        """Let go of a delivery whose attempt is stored."""
        self._backlog_of(due).in_flight -= 1
        self.in_flight -= 1
        self.held_ids.discard(due.id)
        self.bodies.held_bytes -= len(due.body)
        self.read_again.discard(due.id)
        if self.is_loading:
            self.recorded_while_loading.add(due.id)

    def _backlog_of(self, due: DueDelivery) -> Backlog:
        if due.trigger == "manual" and not due.ordered:  # With an order, it waits its turn.
            return self.manual_retries
        return self.retries if due.attempt_count else self.first_attempts

    def _choose_backlog(self, now: int) -> Backlog | None:
        in_flight = self.retries.in_flight + self.manual_retries.in_flight
        has_slot = in_flight < max(1, self.cap - max(1, self.cap // 4))
        first = self.first_attempts if self.first_attempts.deliveries else None
        if self.rests_until > now:  # It holds all but what a person asked for.
            return self.manual_retries if self.manual_retries.deliveries and has_slot else None
        if has_slot and self.manual_retries.deliveries and not (first and self.turn % ASKED_EVERY):
            return self.manual_retries
        is_retry_turn = self.turn % RETRY_EVERY == RETRY_EVERY - 1
        if has_slot and self.retries.deliveries and (is_retry_turn or not first):
            return self.retries
        return first


async def load(context: Context, receivers: Receivers, lane: Lane) -> bool:
    """Read the lane's subscriber, or else rows that are due; False if the subscriber is deleted.

    One call at a time for each lane: `lane.is_loading` is set meanwhile.
    """
    if lane.recipient is not None:
        for backlog in lane.to_refill(context.clock()):
            if backlog.is_manual or lane.blocked_until(context.clock()) is None:
                await _refill(context, lane, backlog)
        return True
    revision, turn = lane.revision, receivers.begin_read()
    recipient = await context.database.read(read_recipient, context.vault, lane.subscriber_id)
    if lane.revision != revision:
        return True  # Changed meanwhile: it is read again.
    if recipient is not None:
        tenant = recipient.subscriber.tenant
        lane.set_recipient(recipient, receivers.find(tenant, recipient.rests, turn))
        return True
    lane.drop_waiting()
    while await context.database.write(deliveries.cancel, lane.subscriber_id):
        pass
    return False


async def _refill(context: Context, lane: Lane, backlog: Backlog) -> None:
    """Fetch deliveries that are due and not in memory."""
    if lane.recipient is None or not lane.room_in(backlog):
        return  # Changed meanwhile: it is read first, or when there is room again.
    backlog.next_due_at = None
    if backlog.is_manual and lane.recipient.subscriber.ordered:
        return
    lane.recorded_while_loading.clear()  # The rows that are read now include what was stored.
    revision = lane.revision
    # One that waits may have been asked for since: it is read again, and takes the other's place.
    held_ids = frozenset[str]() if backlog.is_manual else frozenset(lane.held_ids)
    due, next_at = await context.database.read(
        deliveries.fetch_due,
        lane.subscriber_id,
        lane.room_in(backlog),
        None if backlog.is_manual else backlog.is_retries,
        lane.recipient.subscriber.ordered,
        held_ids,
    )
    if lane.revision != revision:
        return  # What was read may have been canceled meanwhile; it is read again.
    if backlog.is_manual and due:
        lane.take_out({d.id for d in due})
        lane.read_again |= lane.held_ids & {d.id for d in due}
    skipped = lane.recorded_while_loading | lane.held_ids
    refused = [d for d in due if d.id not in skipped and not lane.hold(d)]
    backlog.expect(context.clock() if refused else next_at)
