"""A lane: the deliveries of one subscriber in memory, and which of them may leave now."""

import math
from collections import deque
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Literal

from msgspec import Struct, field

from service.delivery.attempt import Recipient, Result
from service.delivery.receivers import FAILING, PROVEN, UNTRIED, Receiver
from service.delivery.shares import Share
from service.delivery.window import Window
from service.model.attempt import Attempt
from service.model.clock import SECOND
from service.model.delivery import DueDelivery
from service.model.subscriber import Subscriber

READY_MAX = 200  # Deliveries of each kind that a lane holds in memory; others wait in their rows.
READY_BYTES_MAX = 8 * 1024 * 1024  # Of the bodies of one kind together.
BODIES_BYTES_MAX = 64 * 1024 * 1024  # Of all lanes; above it, a lane reads one delivery at a time.
REFILL_BELOW = READY_MAX // 4
RETRY_EVERY = 4  # While first attempts wait too, every fourth attempt that starts is a retry.
# While first attempts wait too, every second attempt that starts is a manual retry; else these come
# before other retries.
MANUAL_EVERY = 2
LATE_MS = 50.0  # A timer that is late by less than this does not slow the rate down.
NEVER = 2**63 - 1  # Later than any time.


class Backlog(Struct, eq=False):
    """A lane's deliveries of one kind: those in memory, and when those in rows are due."""

    # "asked": a person has asked for them; a rest does not hold them up.
    kind: Literal["first", "retries", "asked"] = "first"
    deliveries: deque[DueDelivery] = field(default_factory=deque)
    body_bytes: int = 0
    in_flight: int = 0
    next_due_at: int = NEVER  # When rows that are not in memory are due.


class Bodies(Struct, eq=False):
    """The size of the bodies that all lanes hold in memory, attempts under way included."""

    held_bytes: int = 0


def drop_lost(lanes: dict[str, "Lane"], holds: Callable[[str], bool]) -> None:
    """Forget the lanes that another process has now; attempts that end here are recorded."""
    for lane in [lane for id_, lane in lanes.items() if not holds(id_)]:
        lane.drop_recipient()
        if not (lane.in_flight or lane.is_loading):
            del lanes[lane.subscriber_id]


class Lane(Struct, eq=False):
    """The queue of one subscriber, with its own pace and its own limits."""

    subscriber_id: str
    bodies: Bodies = field(default_factory=Bodies)  # Shared with the other lanes.
    tenant: str = ""  # Empty until it is known.
    recipient: Recipient | None = None  # None until it is read, and after a change.
    is_open: bool = False  # Whether the subscriber is known and active.
    failing_since: int | None = None
    last_failed_at: int | None = None
    probing: bool = False
    first_attempts: Backlog = field(default_factory=Backlog)
    retries: Backlog = field(default_factory=partial(Backlog, "retries"))
    manual_retries: Backlog = field(default_factory=partial(Backlog, "asked"))
    backlogs: tuple[Backlog, ...] = ()  # The three above.
    waiting: int = 0  # Deliveries that are held until they may leave.
    held_ids: set[str] = field(default_factory=set)  # Waiting, in flight or being stored.
    # Of an `ordered` subscriber: the generations with a delivery in `held_ids`, one each.
    generation_ids: set[str] = field(default_factory=set)
    read_again: set[str] = field(default_factory=set)  # Held ids whose rows may have changed.
    in_flight: int = 0  # Attempts that are under way or being stored.
    started_count: int = 0  # Of attempts; it decides which kind is next.
    window: Window = field(default_factory=Window)
    receiver: Receiver = field(default_factory=Receiver)
    share: Share | None = None  # The lane's share of the slots, once it is looked up.
    rate: float | None = None  # The subscriber's rate, to which `next_send_at` keeps.
    sent_at: int = 0  # When the last attempt left, whatever the rate was.
    next_send_at: float = 0.0
    is_loading: bool = False  # Its subscriber or rows are being read, or the read is queued.
    next_read_at: int = 0  # After a read that failed; 0 once the subscriber was changed.
    is_unread: bool = False  # Whether the database failed at the last read.
    # Its shard was lost, or its subscriber was deleted and no delivery to it is pending.
    is_over: bool = False
    # Deliveries whose attempts were stored during the current read, which may show them as before.
    recorded_while_loading: set[str] = field(default_factory=set)
    revision: int = 0  # Grows with each change, so that a read that began before it is dropped.

    def __post_init__(self) -> None:
        self.backlogs = self.first_attempts, self.retries, self.manual_retries

    # The subscriber.

    def set_recipient(self, recipient: Recipient, receiver: Receiver) -> None:
        """Use the subscriber as it is stored now; drop waiting deliveries if it is not active."""
        subscriber = recipient.subscriber
        is_moved = receiver.origin is not self.receiver.origin
        self.recipient, self.receiver, self.share = recipient, receiver, None
        self.tenant = subscriber.tenant
        self.is_open = subscriber.status == "active"
        if receiver.window is not None:
            self.window = receiver.window
        elif is_moved:
            self.window = Window(subscriber.max_in_flight)
        else:
            self.window.set_limit(subscriber.max_in_flight)
        self._take_health(subscriber)
        if subscriber.failing_since is not None:
            receiver.standing = FAILING
        elif not subscriber.is_notify:  # Enabled again, or another URL: no failure is known.
            receiver.standing = min(receiver.standing, UNTRIED)
        if subscriber.rate_per_second != self.rate:  # The old rate may ask for a long pause.
            self.rate = subscriber.rate_per_second
            self.next_send_at = self.sent_at + SECOND / self.rate if self.rate else 0.0
        self.continue_rate(recipient.last_attempt_at)
        if not self.is_open:
            self.drop_waiting()

    def continue_rate(self, last_attempt_at: int | None) -> None:
        """Keep to the rate after the last stored attempt, which may be another process's."""
        if self.rate and last_attempt_at is not None:
            next_at = last_attempt_at + SECOND / self.rate
            if next_at > self.next_send_at + LATE_MS:  # Else this lane made it, a little late.
                self.next_send_at = next_at

    def set_health(self, subscriber: Subscriber) -> None:
        """Take over the health that an attempt changed; a successful probe resets the window."""
        if self.probing and not subscriber.probing and not subscriber.is_notify:
            self.window = Window(subscriber.max_in_flight)
        self._take_health(subscriber)

    def _take_health(self, subscriber: Subscriber) -> None:
        self.failing_since, self.probing = subscriber.failing_since, subscriber.probing
        self.last_failed_at = subscriber.last_failed_at

    def drop_recipient(self) -> None:
        """Forget the subscriber and the waiting deliveries: their rows may have changed.

        Without a share, the lane has no turn for a slot, whatever it holds until it is read again.
        """
        self.drop_waiting()
        self.recipient, self.share, self.is_open, self.next_read_at = None, None, False, 0

    def drop_waiting(self) -> None:
        """Drop the waiting deliveries, and the result of a read under way."""
        for backlog in self.backlogs:
            self.held_ids.difference_update(due.id for due in backlog.deliveries)
            self.generation_ids.difference_update(due.generation_id for due in backlog.deliveries)
            self.read_again &= self.held_ids
            self.bodies.held_bytes -= backlog.body_bytes
            backlog.deliveries.clear()
            backlog.body_bytes = 0
        self.waiting = 0
        self.revision += 1

    # What the lane has.

    def is_idle_until(self, at: int) -> bool:
        """True if no delivery is in memory, and none that may leave is known to be due by `at`."""
        if self.recipient is not None and not self.is_open:
            return not (self.held_ids or self.is_loading)
        return self.is_empty_until(at)

    def is_empty_until(self, at: int) -> bool:
        """True if no delivery is in memory, and none is known to be due by `at`."""
        is_due = any(backlog.next_due_at <= at for backlog in self.backlogs)
        return not (self.held_ids or self.is_loading or is_due)

    # Rows.

    def expect(self, first_at: int | None, retry_at: int | None) -> None:
        """Note when rows that are not in memory are due: first attempts, and retries."""
        first_at = NEVER if first_at is None else first_at
        retry_at = NEVER if retry_at is None else retry_at
        # A manual retry may have had no attempt before: it is then due as a first attempt.
        manual_at = min(first_at, retry_at)
        for backlog, at in zip(self.backlogs, (first_at, retry_at, manual_at), strict=True):
            backlog.next_due_at = min(backlog.next_due_at, at)

    def put_off_reads(self, at: int) -> None:
        """Read nothing before `at`, however many deliveries come: a read failed."""
        self.next_read_at = at
        self.expect(at, at)

    def hold(self, due: DueDelivery) -> bool:
        """Hold a delivery in memory; False if it is held already or has to wait in its row."""
        backlog = self._backlog_of(due)
        is_closed = self.recipient is not None and not self.is_open
        if is_closed or due.id in self.held_ids or not self.room_in(backlog):
            return False
        size = len(due.body)
        self.bodies.held_bytes += size
        self.held_ids.add(due.id)
        if due.ordered and due.generation_id is not None:
            self.generation_ids.add(due.generation_id)
        self.waiting += 1
        backlog.deliveries.append(due)
        backlog.body_bytes += size
        return True

    def take_out(self, ids: AbstractSet[str]) -> None:
        """Drop waiting deliveries of the schedule for which a person has asked since."""
        for backlog in (self.first_attempts, self.retries):
            for due in [due for due in backlog.deliveries if due.id in ids]:
                backlog.deliveries.remove(due)
                backlog.body_bytes -= len(due.body)
                self.bodies.held_bytes -= len(due.body)
                self.held_ids.discard(due.id)
                self.waiting -= 1

    def room_in(self, backlog: Backlog) -> int:
        """Return how many more deliveries may be read; their sizes are known only afterwards.

        A body over the limit is held alone. Once all lanes together are full, each holds no more
        than the next delivery of each kind.
        """
        count = len(backlog.deliveries)
        if backlog.body_bytes >= READY_BYTES_MAX:
            return 0
        if self.bodies.held_bytes >= BODIES_BYTES_MAX:
            return 0 if count else 1
        return READY_MAX - count

    def plan(self, now: int) -> tuple[list[Backlog], int]:
        """Return the backlogs to refill from the database now, and when to look at the lane next.

        NEVER if the lane waits for nothing but slots and new deliveries.
        """
        to_read: list[Backlog] = []
        next_at, size = NEVER, self.window.size
        below = 1 if self.probing else min(size, REFILL_BELOW)
        for backlog in self.backlogs:
            if backlog.next_due_at > now:
                next_at = min(next_at, backlog.next_due_at)
            elif len(backlog.deliveries) < below and self.room_in(backlog):
                to_read.append(backlog)
        if self.waiting or to_read:
            until = self.blocked_until(now)
            if until is not None:
                next_at = min(next_at, until)
                to_read = [backlog for backlog in to_read if backlog.kind == "asked"]
        return to_read, next_at

    # What leaves.

    def blocked_until(self, now: int) -> int | None:
        """Return until when the rate or the receiver's rest lets no attempt start; None if one may.

        Manual retries leave while the receiver rests, too.
        """
        until = math.ceil(self.next_send_at) if self.next_send_at > now else now
        if not self.manual_retries.deliveries:
            until = max(until, self.receiver.rest_until)
        return until if until > now else None

    def next_backlog(self, now: int) -> Backlog | None:
        """Return the backlog that the next attempt comes from; None if none may start.

        Retries cannot take every slot, unless there is only one.
        """
        cap = 1 if self.probing else self.window.size
        is_ready = self.waiting and self.is_open and self.next_send_at <= now
        if not is_ready or self.in_flight >= cap:
            return None
        first, manual = self.first_attempts, self.manual_retries
        # A rest holds up all but manual retries.
        is_resting = self.receiver.rest_until > now
        if not (is_resting or manual.deliveries or self.retries.deliveries):
            return first
        has_first = bool(first.deliveries) and not is_resting
        if self.retries.in_flight + manual.in_flight >= max(1, cap - max(1, cap // 4)):
            return first if has_first else None
        if manual.deliveries and not (has_first and self.started_count % MANUAL_EVERY):
            return manual
        is_retry_turn = self.started_count % RETRY_EVERY == RETRY_EVERY - 1
        if self.retries.deliveries and not is_resting and (is_retry_turn or not has_first):
            return self.retries
        return first if has_first else None

    def pop(self, backlog: Backlog, now: int) -> DueDelivery:
        """Take the next delivery of the backlog, whose attempt starts now."""
        self.started_count += 1
        self.in_flight += 1
        self.waiting -= 1
        self.sent_at = now
        if self.rate:
            on_time = now - self.next_send_at <= LATE_MS
            self.next_send_at = (self.next_send_at if on_time else now) + SECOND / self.rate
        backlog.in_flight += 1
        due = backlog.deliveries.popleft()
        backlog.body_bytes -= len(due.body)
        return due

    def learn(self, attempt: Attempt, now: int, *, in_flight: int) -> None:
        """Judge the receiver and its window by an attempt that has ended, but still has its slot.

        in_flight: attempts of all lanes that share the window, this one included.
        """
        receiver, code = self.receiver, attempt.status_code
        receiver.standing = PROVEN if attempt.error_code is None else FAILING
        if code is None or code == 429 or code >= 500:
            receiver.note_failure(attempt.started_at)
            self.window.failed(attempt.started_at, now)
        else:
            receiver.note_answer(now)
            self.window.answered(
                attempt.duration_ms, attempt.started_at, now=now, in_flight=in_flight
            )

    def expect_after(self, result: Result, now: int) -> None:
        """Note when the deliveries are due that an attempt has changed; it was just stored."""
        if result.record.ordered or result.due.id in self.read_again:
            # The next event of its generation may be due, or a retry that was asked for.
            self.expect(now, now)
        elif result.consequence.due_at is not None:
            self.expect(None, result.consequence.due_at)

    def release(self, due: DueDelivery) -> None:
        """Forget a delivery whose attempt has ended."""
        self._backlog_of(due).in_flight -= 1
        self.in_flight -= 1
        self.held_ids.discard(due.id)
        self.bodies.held_bytes -= len(due.body)
        if due.ordered:
            self.generation_ids.discard(due.generation_id)
        if self.read_again:
            self.read_again.discard(due.id)
        if self.is_loading:
            self.recorded_while_loading.add(due.id)

    def _backlog_of(self, due: DueDelivery) -> Backlog:
        if due.trigger == "manual" and not due.ordered:  # If `ordered`, it waits its turn.
            return self.manual_retries
        return self.retries if due.attempt_count else self.first_attempts
