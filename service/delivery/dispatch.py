"""Deliver: signed attempts by lane, each recorded with its outcome in the commit stream."""

import asyncio
import heapq
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Protocol

import msgspec

from service.context import Context
from service.delivery import formats, health
from service.delivery.attempt import Conclusion, conclude, note
from service.delivery.lanes import READY_MAX, Lane, Settings, Slots, find, unsealed
from service.delivery.webhook.request import Answer, SendError, Target
from service.model.attempt import Attempt
from service.model.clock import MINUTE, SECOND
from service.model.delivery import Due
from service.model.errors import StorageError
from service.model.event import Event
from service.model.ids import new_id
from service.model.subscriber import Subscriber
from service.store import deliveries
from service.store.database import Transaction
from service.store.deliveries import Recorded
from service.telemetry import log, metrics

_log = log.get()
LANES_MAX = 10_000  # Lanes with nothing to do are dropped when there are more.
STORAGE_RETRY_MS = SECOND
TROUBLE_RETRY_MS = MINUTE  # A lane that cannot be worked at all, as when its secret is unreadable.


class Send(Protocol):
    """How one webhook leaves: sender.py, or proxied.py through an outgoing proxy."""

    async def send(
        self, target: Target, headers: Mapping[str, str], body: bytes, deadline_seconds: float
    ) -> Answer:
        """POST the body; the answer, or SendError."""
        ...


class Outcome(msgspec.Struct, frozen=True):
    """An attempt that has ended, on its way into the database. It keeps its slot until then."""

    lane: Lane
    due: Due
    conclusion: Conclusion
    recorded: Recorded


class Deliverer:
    """Every lane of this process and the slots that they share."""

    def __init__(self, context: Context, sender: Send) -> None:
        self.context = context
        self.sender = sender
        self.lanes: dict[str, Lane] = {}
        self.slots = Slots(context.settings.max_in_flight)
        self.attempted = 0
        self.is_open = False  # Until this process is the one that works.
        self.on_timer: Callable[[], None] = lambda: None
        self._lanes_max = LANES_MAX
        self._timers: list[tuple[int, str]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._unrecorded: list[Outcome] = []
        self._record_at = 0

    def offer(self, due: Sequence[Due]) -> None:
        """Take what was just committed, without asking the database for it."""
        now = self.context.clock()
        for delivery in due:
            lane = self._lane(delivery.subscriber_id)
            if delivery.ordered or lane.is_behind(now) or not lane.take_in(delivery):
                lane.expect(now, None)
            self._pump(lane)

    def look(self, subscriber_id: str) -> None:
        """Rows of the subscriber are due, or will be, that were not handed over."""
        lane, now = self._lane(subscriber_id), self.context.clock()
        lane.expect(now, now)
        self._pump(lane)

    def reload(self, subscriber_id: str | None) -> None:
        """A subscriber was changed, or any may have been: read settings and rows again."""
        now = self.context.clock()
        lanes = self.lanes.values() if subscriber_id is None else [self._lane(subscriber_id)]
        for lane in list(lanes):
            lane.forget()
            lane.settings = None
            lane.slow_until = 0
            lane.expect(now, now)
            self._wake(lane, now)

    async def scan(self) -> None:
        """Learn which lanes have rows that wait, after a start or another process's commit."""
        for subscriber_id, waits in (await self.context.database.read(deliveries.lanes)).items():
            lane = self._lane(subscriber_id)
            lane.expect(waits.first_at, waits.retry_at)
            self._wake(lane, min(at for at in (waits.first_at, waits.retry_at) if at is not None))

    async def run_due(self, now: int) -> int | None:
        """Fetch and start what is due by `now`; when to come again."""
        if self._unrecorded and now >= self._record_at:
            again, self._unrecorded = self._unrecorded, []
            for outcome in again:
                self._spawn(self._record(outcome))
        while self._timers and self._timers[0][0] <= now:
            _, subscriber_id = heapq.heappop(self._timers)
            lane = self.lanes.get(subscriber_id)
            if lane is None or (lane.wake_at is not None and lane.wake_at > now):
                continue
            lane.wake_at = None
            self._pump(lane)
        times = [at for at, _ in self._timers[:1]]
        return min([*times, self._record_at] if self._unrecorded else times, default=None)

    async def settle(self) -> None:
        """Wait until nothing is under way or about to be."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def forget(self) -> None:
        """Drop what is in memory and not under way: another process may work from now on."""
        self._timers.clear()
        self.slots.forget()
        for lane in self.lanes.values():
            lane.forget()
            lane.settings = lane.wake_at = lane.first.next_at = lane.retries.next_at = None
        self._drop_idle_lanes()

    def waiting(self) -> int:
        """How many deliveries are held in memory for a slot."""
        return sum(lane.waiting for lane in self.lanes.values())

    async def attempt(
        self, settings: Settings, due: Due
    ) -> tuple[Attempt, Conclusion, Mapping[str, str], bytes]:
        """One signed attempt, not recorded: what came of it, and the headers and body sent."""
        context, now = self.context, self.context.clock()
        began = time.perf_counter()
        headers: dict[str, str] = {}
        body = due.body
        result: Answer | SendError
        try:
            form = formats.form(settings.subscriber.payload, due.body)
            body, headers = form.body, _headers(settings, due, form, now)
            seconds_max = context.settings.attempt_timeout_seconds
            result = await self.sender.send(settings.target, headers, body, seconds_max)
        except SendError as error:
            result = error
        except Exception as error:  # noqa: BLE001  it counts, or it would be due for ever
            _log.exception("attempt.broken", delivery_id=due.id)
            result = SendError("internal_error", f"It could not be sent: {type(error).__name__}.")
        seconds = time.perf_counter() - began
        attempt = note(new_id("att", now), due, now, round(seconds * 1_000), result)
        conclusion = conclude(
            settings.subscriber, attempt, result, context.clock(), context.jitter()
        )
        _count(attempt, due, conclusion, seconds)
        return attempt, conclusion, headers, body

    async def test(self, subscriber: Subscriber, event: Event) -> tuple[Attempt, dict[str, object]]:
        """Send an event to one subscriber now, once; the attempt, and exactly what was sent."""
        found = await self.context.database.read(find, subscriber.id)
        assert found is not None
        settings = unsealed(self.context.vault, found)
        due = deliveries.new_due(event, subscriber, self.context.clock(), "test")
        attempt, conclusion, headers, body = await self.attempt(settings, due)
        status = "delivered" if conclusion.status == "delivered" else "dead"
        recorded = self._recorded(settings, due, attempt, Conclusion(word="test", status=status))
        await self.context.database.write(deliveries.insert_ended, due, recorded)
        shown = {**headers, **dict.fromkeys(settings.headers, "[redacted]")}
        return attempt, {"url": subscriber.url, "headers": shown, "body": body.decode()}

    def _lane(self, subscriber_id: str) -> Lane:
        lane = self.lanes.get(subscriber_id)
        if lane is None:
            if len(self.lanes) >= self._lanes_max:
                self._drop_idle_lanes()
                self._lanes_max = max(LANES_MAX, 2 * len(self.lanes))
            lane = self.lanes[subscriber_id] = Lane(subscriber_id)
        return lane

    def _drop_idle_lanes(self) -> None:
        for lane in [lane for lane in self.lanes.values() if lane.is_idle]:
            del self.lanes[lane.subscriber_id]

    def _wake(self, lane: Lane, at: int) -> None:
        """Look at the lane at `at`."""
        if lane.wake_at is None or at < lane.wake_at:
            lane.wake_at = at
            heapq.heappush(self._timers, (at, lane.subscriber_id))
            if self._timers[0][0] == at:
                self.on_timer()

    def _pump(self, lane: Lane) -> None:
        """Start what may leave the lane now, and see to what comes after it."""
        if not self.is_open:
            return
        if lane.settings is None:
            self._read(lane, self._load(lane))
            return
        now = self.context.clock()
        while self.slots.are_free_for(lane):
            due = lane.take_next(now)
            if due is None:
                break
            self.slots.taken += 1
            self._spawn(self._run(lane, lane.settings, due))
        else:
            self.slots.wait(lane)
        self._look_ahead(lane, now)

    def _look_ahead(self, lane: Lane, now: int) -> None:
        if not lane.is_open:
            return
        blocked_until = lane.blocked_until(now)
        hungry = lane.hungry(now)
        if blocked_until is not None and (lane.waiting or hungry):
            self._wake(lane, blocked_until)
        elif hungry:
            self._read(lane, self._refill(lane))
        next_at = lane.next_at(now)
        if next_at is not None:
            self._wake(lane, next_at)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _read(self, lane: Lane, work: Coroutine[None, None, None]) -> None:
        """Read something for the lane; one thing at a time."""
        if lane.loading:
            work.close()
            return
        lane.loading = True
        self._spawn(self._reading(lane, work))

    async def _reading(self, lane: Lane, work: Coroutine[None, None, None]) -> None:
        again_ms = None
        try:
            await work
        except StorageError as error:
            again_ms = STORAGE_RETRY_MS
            _log.warning("lane.unread", subscriber_id=lane.subscriber_id, error=str(error))
        except Exception:  # noqa: BLE001  one lane's trouble must not end the others
            again_ms = TROUBLE_RETRY_MS
            _log.exception("lane.failed", subscriber_id=lane.subscriber_id)
        lane.loading = False
        lane.settled.clear()
        if again_ms is not None:
            at = self.context.clock() + again_ms
            lane.expect(at, at)
            self._wake(lane, at)
        elif self.lanes.get(lane.subscriber_id) is lane:
            self._pump(lane)

    async def _load(self, of: Lane) -> None:
        """Read the subscriber; if it was deleted, what it is still owed is canceled."""
        revision = of.revision
        found = await self.context.database.read(find, of.subscriber_id)
        if of.revision != revision:
            return  # Changed meanwhile: read again.
        if found is not None:
            of.use(unsealed(self.context.vault, found))
            return
        of.forget()
        while await self.context.database.write(
            deliveries.cancel, of.subscriber_id, deliveries.CANCEL_BATCH
        ):
            pass
        self.lanes.pop(of.subscriber_id, None)

    async def _refill(self, lane: Lane) -> None:
        """Fetch rows that are due and not in memory yet."""
        if lane.settings is None:
            return  # Changed meanwhile: it is read again first.
        ordered = lane.settings.subscriber.ordered
        for ready in lane.hungry(self.context.clock()):
            ready.next_at = None
            lane.settled.clear()  # What was recorded before this read is in the rows it reads.
            revision, known = lane.revision, frozenset(lane.known)
            fetched = await self.context.database.read(
                deliveries.due, lane.subscriber_id, READY_MAX, ready.retries, ordered, known
            )
            now = self.context.clock()
            if lane.revision != revision:
                return  # What was read may have been canceled meanwhile; it is read again.
            fresh = [d for d in fetched.due if not (d.id in lane.known or d.id in lane.settled)]
            refused = [d for d in fresh if not lane.take_in(d)]
            ready.expect(now if refused or fetched.more else fetched.next_at)

    async def _run(self, lane: Lane, settings: Settings, due: Due) -> None:
        attempt, conclusion, _, _ = await self.attempt(settings, due)
        self.attempted += 1
        recorded = self._recorded(settings, due, attempt, conclusion)
        await self._record(Outcome(lane, due, conclusion, recorded))

    async def _record(self, outcome: Outcome) -> None:
        """Store an outcome, then free its slot; while the database fails, the slot is held."""
        lane, conclusion = outcome.lane, outcome.conclusion
        now = self.context.clock()
        try:
            await self._store(outcome)
            lane.expect(None, conclusion.due_at)
            if outcome.recorded.ordered:
                lane.expect(now, now)
        except StorageError as error:
            _log.error("attempt.unrecorded", delivery_id=outcome.due.id, error=str(error))
            self._unrecorded.append(outcome)
            self._record_at = now + STORAGE_RETRY_MS
            self.on_timer()
            return
        except Exception:  # noqa: BLE001  the same; its row is still due
            _log.exception("attempt.unrecorded", delivery_id=outcome.due.id)
            lane.expect(now + TROUBLE_RETRY_MS, now + TROUBLE_RETRY_MS)
        lane.release(outcome.due)
        self.slots.taken -= 1
        while waiting := self.slots.next_waiting():
            self._pump(waiting)
        self._pump(lane)

    async def _store(self, outcome: Outcome) -> None:
        """One commit for the attempt and, where it changes, the subscriber's standing."""
        lane, conclusion, database = outcome.lane, outcome.conclusion, self.context.database
        if not health.changed(lane, conclusion, self.context.clock()):
            await database.write_batched(deliveries.record, outcome.recorded)
            return
        after = await database.write(_record_and_follow, self.context, outcome)
        if after is not None:
            lane.failing_since, lane.probing = after.failing_since, after.probing
        lane.slow_until = max(lane.slow_until, conclusion.slow_until or 0)

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


async def _record_and_follow(
    tx: Transaction, context: Context, outcome: Outcome
) -> Subscriber | None:
    await deliveries.record(tx, [outcome.recorded])
    return await health.follow(tx, context, outcome.due.subscriber_id, outcome.conclusion)


def _headers(settings: Settings, due: Due, form: formats.Form, now: int) -> dict[str, str]:
    """What a webhook carries; its own names win over the subscriber's."""
    return {
        **settings.headers,
        "content-type": "application/json",
        "user-agent": "genhook",
        **form.headers,
        "webhook-id": due.event_id,
        "webhook-timestamp": str(now // SECOND),
        "webhook-signature": settings.signer.header(due.event_id, now, form.body),
    }


def _count(attempt: Attempt, due: Due, conclusion: Conclusion, seconds: float) -> None:
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
