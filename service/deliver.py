"""Deliver: signed attempts by lane, each recorded with its outcome in the commit stream."""

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Protocol

from service import log, metrics, signers, standing
from service.clock import SECOND
from service.context import Context
from service.errors import StorageError
from service.exchange import Answer, SendError, Target, parse_target
from service.ids import new_id
from service.lane import READY_MAX, Lane, Settings
from service.model import Attempt, Due, Event, Subscriber
from service.outcomes import Conclusion, conclude, note
from service.store import deliveries, subscribers
from service.store.database import Transaction
from service.store.deliveries import Recorded

_log = log.get()
LANES_MAX = 10_000
STORAGE_RETRY_MS = SECOND


class Send(Protocol):
    """How one webhook leaves: sender.py, or proxied.py through an outgoing proxy."""

    async def send(
        self, target: Target, headers: Mapping[str, str], body: bytes, deadline_seconds: float
    ) -> Answer:
        """POST the body; the answer, or SendError."""
        ...


class Deliverer:
    """Every lane of this process and the slots that they share."""

    def __init__(self, context: Context, sender: Send) -> None:
        self.context = context
        self.sender = sender
        self.lanes: dict[str, Lane] = {}
        self.in_flight = 0
        self.attempted = 0
        self.is_open = False  # Until this process is the one that works.
        self._timers: list[tuple[int, str]] = []
        self._waiting: deque[Lane] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._storage = asyncio.Event()
        self._unrecorded = 0
        self.on_timer: Callable[[], None] = lambda: None

    def offer(self, due: Sequence[Due]) -> None:
        """Take what was just committed, without asking the database for it."""
        for delivery in due:
            lane = self._lane(delivery.subscriber_id)
            if delivery.ordered or not lane.take_in(delivery):
                self._wake_lane(lane, self.context.clock(), rows=delivery.id not in lane.known)
            self._pump(lane)

    def look(self, subscriber_id: str) -> None:
        """Rows of the subscriber are due that were not handed over."""
        lane = self._lane(subscriber_id)
        self._wake_lane(lane, self.context.clock(), rows=True)
        self._pump(lane)

    def reload(self, subscriber_id: str | None) -> None:
        """A subscriber was changed, or any may have been: read settings and rows again."""
        lanes = self.lanes.values() if subscriber_id is None else [self._lane(subscriber_id)]
        for lane in list(lanes):
            lane.clear()
            lane.settings = None
            lane.slow_until = 0
            self._wake_lane(lane, self.context.clock(), rows=True)

    async def scan(self) -> None:
        """Learn which lanes have rows that wait, after a start or another process's commit."""
        for subscriber_id, due_at in (await self.context.database.read(deliveries.lanes)).items():
            self._wake_lane(self._lane(subscriber_id), due_at, rows=True)

    async def run_due(self, now: int) -> int | None:
        """Fetch and start what is due by `now`; when to come again."""
        self._storage.set()
        self._storage.clear()
        while self._timers and self._timers[0][0] <= now:
            _, subscriber_id = heapq.heappop(self._timers)
            lane = self.lanes.get(subscriber_id)
            if lane is None or (lane.wake_at is not None and lane.wake_at > now):
                continue
            lane.wake_at = None
            self._pump(lane)
        next_at = self._timers[0][0] if self._timers else None
        if self._unrecorded:
            return min(now + STORAGE_RETRY_MS, next_at or now + STORAGE_RETRY_MS)
        return next_at

    async def settle(self) -> None:
        """Wait until nothing is under way or about to be."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def attempt(
        self, settings: Settings, due: Due
    ) -> tuple[Attempt, Conclusion, Mapping[str, str]]:
        """One signed attempt, not recorded: what came of it, and the headers that were sent."""
        context, now = self.context, self.context.clock()
        headers = {
            **settings.headers,
            "content-type": "application/json",
            "user-agent": "genhook",
            "webhook-id": due.event_id,
            "webhook-timestamp": str(now // SECOND),
            "webhook-signature": settings.signer.header(due.event_id, now, due.body),
        }
        began = time.perf_counter()
        result: Answer | SendError
        try:
            result = await self.sender.send(
                settings.target, headers, due.body, context.settings.attempt_timeout_seconds
            )
        except SendError as error:
            result = error
        seconds = time.perf_counter() - began
        attempt = note(new_id("att", now), due, now, round(seconds * 1_000), result)
        conclusion = conclude(
            settings.subscriber, attempt, result, context.clock(), context.jitter()
        )
        metrics.attempts.add(1, conclusion.word)
        metrics.attempt_seconds.observe(seconds, conclusion.word)
        _log.info(
            "attempt",
            delivery_id=due.id,
            event_id=due.event_id,
            subscriber_id=due.subscriber_id,
            number=attempt.number,
            outcome=conclusion.word,
            status_code=attempt.status_code,
            error=attempt.error_code,
            duration_ms=attempt.duration_ms,
        )
        return attempt, conclusion, headers

    async def test(self, subscriber: Subscriber, event: Event) -> tuple[Attempt, dict[str, object]]:
        """Send an event to one subscriber now, once; the attempt, and exactly what was sent."""
        found = await self.context.database.read(_load, subscriber.id)
        assert found is not None
        settings = open_subscriber(self.context, *found)
        due = deliveries.new_due(event, subscriber, self.context.clock(), "test")
        attempt, conclusion, headers = await self.attempt(settings, due)
        status = "delivered" if conclusion.status == "delivered" else "dead"
        recorded = self._recorded(settings, due, attempt, Conclusion(word="test", status=status))
        await self.context.database.write(deliveries.insert_ended, due, recorded)
        shown = {**headers, **dict.fromkeys(settings.headers, "[redacted]")}
        sent: dict[str, object] = {
            "url": subscriber.url,
            "headers": shown,
            "body": due.body.decode(),
        }
        return attempt, sent

    def _lane(self, subscriber_id: str) -> Lane:
        lane = self.lanes.get(subscriber_id)
        if lane is None:
            if len(self.lanes) >= LANES_MAX:
                self._drop_idle_lanes()
            lane = self.lanes[subscriber_id] = Lane(subscriber_id)
        return lane

    def waiting(self) -> int:
        """How many deliveries are held in memory for a slot."""
        return sum(len(lane.first) + len(lane.retries) for lane in self.lanes.values())

    def _drop_idle_lanes(self) -> None:
        for lane in [lane for lane in self.lanes.values() if lane.is_idle]:
            del self.lanes[lane.subscriber_id]

    def _wake_lane(self, lane: Lane, at: int, *, rows: bool) -> None:
        """Look at the lane at `at`; `rows`: because rows will be due that are not in memory."""
        if rows and (lane.next_at is None or at < lane.next_at):
            lane.next_at = at
        if lane.wake_at is None or at < lane.wake_at:
            lane.wake_at = at
            heapq.heappush(self._timers, (at, lane.subscriber_id))
            if self._timers[0][0] == at:
                self.on_timer()

    def _pump(self, lane: Lane) -> None:
        """Start what may leave the lane now, and see to what comes after it."""
        if not self.is_open:
            return
        now = self.context.clock()
        if lane.settings is None:
            self._spawn(lane, self._load(lane))
            return
        while self.in_flight < self.context.settings.max_in_flight:
            due = lane.take_next(now)
            if due is None:
                break
            self.in_flight += 1
            task = asyncio.create_task(self._run(lane, lane.settings, due))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            if not lane.queued and (lane.first or lane.retries):
                lane.queued = True
                self._waiting.append(lane)
        self._look_ahead(lane, now)

    def _look_ahead(self, lane: Lane, now: int) -> None:
        if not lane.is_open:
            return
        blocked_until = lane.blocked_until(now)
        if blocked_until is not None and (lane.first or lane.retries or lane.next_at is not None):
            self._wake_lane(lane, blocked_until, rows=False)
        elif lane.next_at is not None and lane.next_at > now:
            self._wake_lane(lane, lane.next_at, rows=False)
        elif lane.next_at is not None and len(lane.retries) + len(lane.first) < lane.cap:
            self._spawn(lane, self._refill(lane))

    def _spawn(self, lane: Lane, work: Coroutine[None, None, None]) -> None:
        if lane.loading:
            work.close()
            return
        lane.loading = True
        task = asyncio.create_task(self._guard(lane, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, lane: Lane, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001  one lane's trouble must not end the others
            _log.error("lane.failed", subscriber_id=lane.subscriber_id, error=repr(error))
            self._wake_lane(lane, self.context.clock() + STORAGE_RETRY_MS, rows=True)
        finally:
            lane.loading = False
            lane.settled.clear()
        if lane.settings is not None:
            self._pump(lane)

    async def _load(self, lane: Lane) -> None:
        """Read the subscriber; a lane without one has nothing more to deliver."""
        found = await self.context.database.read(_load, lane.subscriber_id)
        if found is None:
            lane.clear()
            self.lanes.pop(lane.subscriber_id, None)
            return
        lane.use(open_subscriber(self.context, *found))

    async def _refill(self, lane: Lane) -> None:
        """Fetch rows that are due and not in memory yet."""
        assert lane.settings is not None
        lane.next_at = None
        limit = READY_MAX + len(lane.known)
        due, later_at = await self.context.database.read(
            deliveries.due, lane.subscriber_id, limit, lane.settings.subscriber.ordered
        )
        fresh = [d for d in due if d.id not in lane.known and d.id not in lane.settled]
        refused = [d for d in fresh if not lane.take_in(d)]
        if refused or len(due) >= limit:
            lane.next_at = self.context.clock()
        elif later_at is not None:
            self._wake_lane(lane, later_at, rows=True)

    async def _run(self, lane: Lane, settings: Settings, due: Due) -> None:
        try:
            attempt, conclusion, _ = await self.attempt(settings, due)
            self.attempted += 1
            await self._record(lane, settings, due, attempt, conclusion)
        finally:
            lane.release(due)
            self.in_flight -= 1
            self._pump(lane)
            self._serve_waiting()

    async def _record(
        self, lane: Lane, settings: Settings, due: Due, attempt: Attempt, conclusion: Conclusion
    ) -> None:
        """Store the outcome; while the database fails, hold the slot and try again."""
        recorded = self._recorded(settings, due, attempt, conclusion)
        while True:
            try:
                await self.context.database.write_batched(deliveries.record, recorded)
                await self._follow(lane, conclusion)
                break
            except StorageError as error:
                _log.error("attempt.unrecorded", delivery_id=due.id, error=str(error))
                self._unrecorded += 1
                self.on_timer()
                await self._storage.wait()
                self._unrecorded -= 1
        if conclusion.due_at is not None:
            self._wake_lane(lane, conclusion.due_at, rows=True)
        elif settings.subscriber.ordered:
            self._wake_lane(lane, self.context.clock(), rows=True)

    def _recorded(
        self, settings: Settings, due: Due, attempt: Attempt, conclusion: Conclusion
    ) -> Recorded:
        return Recorded(
            tenant=due.tenant,
            subscriber_id=due.subscriber_id,
            generation_id=due.generation_id,
            ordered=settings.subscriber.ordered,
            status=conclusion.status,
            due_at=conclusion.due_at,
            delivered_at=self.context.clock() if conclusion.status == "delivered" else None,
            last_error=attempt.error_message,
            attempt=attempt,
        )

    async def _follow(self, lane: Lane, conclusion: Conclusion) -> None:
        """What an outcome says about the subscriber itself: failing, slow, disabled, well again."""
        if not standing.changed(lane, conclusion, self.context.clock()):
            return
        after = await self.context.database.write(
            standing.follow, self.context, lane.subscriber_id, conclusion
        )
        if after is not None:
            lane.failing_since, lane.probing = after.failing_since, after.probing
        lane.slow_until = max(lane.slow_until, conclusion.slow_until or 0)

    def _serve_waiting(self) -> None:
        while self._waiting and self.in_flight < self.context.settings.max_in_flight:
            lane = self._waiting.popleft()
            lane.queued = False
            self._pump(lane)


async def _load(tx: Transaction, subscriber_id: str) -> tuple[Subscriber, bytes | None] | None:
    subscriber = await subscribers.get(tx, subscriber_id)
    if subscriber is None:
        return None
    if subscriber.is_notify:
        return subscriber, await subscribers.tenant_secrets(tx, subscriber.tenant)
    return subscriber, subscriber.sealed_secrets


def open_subscriber(context: Context, subscriber: Subscriber, sealed: bytes | None) -> Settings:
    """The subscriber with its target parsed, its secrets and headers decrypted."""
    assert sealed is not None
    owner = subscriber.tenant if subscriber.is_notify else subscriber.id
    return Settings(
        subscriber=subscriber,
        target=parse_target(subscriber.url),
        headers=signers.unseal_headers(context.vault, subscriber.sealed_headers, subscriber.id),
        signer=signers.Signer(signers.unseal(context.vault, sealed, owner)),
    )
