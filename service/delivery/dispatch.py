"""The dispatcher decides which lane makes an attempt now, and stores how each attempt went."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence

from msgspec.structs import replace

from service.context import Context
from service.delivery import health
from service.delivery.attempt import Recipient, Result, attempt
from service.delivery.lanes import NEVER, Bodies, Lane
from service.delivery.loading import TROUBLE_RETRY_MS, Loads
from service.delivery.receivers import Receivers
from service.delivery.slots import Slots
from service.delivery.tally import Tally
from service.delivery.target import Sender, SenderClosed
from service.delivery.timers import Timers
from service.delivery.unrecorded import Unrecorded
from service.model.clock import MINUTE
from service.model.delivery import DueDelivery
from service.model.errors import StorageError
from service.store.deliveries import DueTimes, next_due_times
from service.store.subscribers import Changes

LANES_MAX = 10_000  # Lanes with nothing to do soon are dropped when there are more.
# A lane whose rows are due later is only in its rows. A look each minute finds it in time.
SOON_MS = 2 * MINUTE
SCAN_LANES = 500  # Lanes in one read, so that other reads get their turn in between.

_Next = tuple[Lane, Recipient, DueDelivery]  # An attempt that has its slot.


class Dispatcher:
    """Every lane of this process, and the slots that they share. It is the inbox's `Lanes`."""

    def __init__(self, context: Context, sender: Sender) -> None:
        self.context = context
        self.sender = sender
        self.lanes: dict[str, Lane] = {}
        self.bodies = Bodies()
        self.receivers = Receivers()
        self.slots = Slots(context.settings.max_in_flight)
        self.loads = Loads(context, self.receivers)
        self.tests = Counter[str]()  # Test deliveries under way, by subscriber.
        self.attempted = 0
        self.is_open = False  # True while this process has the right to work.
        self.on_timer: Callable[[], None] = lambda: None
        self._lanes_max = LANES_MAX
        self.timers = Timers()
        self._tasks: set[asyncio.Task[None]] = set()
        self.unrecorded = Unrecorded()
        self._tally = Tally(context)

    # Called by the inbox.

    def offer(self, due: Sequence[DueDelivery]) -> None:
        """Take deliveries that were just committed and are due now."""
        now = self.context.clock()
        for delivery in due:
            lane = self._lane(delivery.subscriber_id)
            lane.tenant = delivery.tenant
            # The delivery must not overtake older ones that are due and only in their rows.
            has_older = lane.is_loading or lane.first_attempts.next_due_at <= now
            if delivery.ordered or has_older or not lane.hold(delivery):
                lane.expect(now, None)
            self._pump(lane, now)

    def refill(self, subscriber_id: str) -> None:
        """Read the subscriber's deliveries again, if this process works on them.

        Some are new, were made due, or may go on.
        """
        if self.is_open and self.context.database.holds(subscriber_id):
            lane, now = self._lane(subscriber_id), self.context.clock()
            lane.read_again |= lane.held_ids
            lane.expect(now, now)
            self._pump(lane, now)

    def reload(self, subscriber_id: str) -> None:
        """Read the subscriber again: it was changed."""
        if self.context.database.holds(subscriber_id):
            self._reload([self._lane(subscriber_id)], even_idle=True)

    def reload_tenant(self, tenant: str, origin: str | None = None) -> None:
        """Read the tenant's subscribers again, only those at the origin if one is given."""
        self.receivers.note_change(tenant)  # For lanes that are being read now.
        self._reload(
            lane
            for lane in list(self.lanes.values())
            if (known := lane.recipient) is not None
            and lane.tenant == tenant
            and origin in (None, known.target.origin)
        )

    def reload_changed(self, changes: Changes) -> None:
        """Read again the subscribers that this or another process has changed."""
        for tenant in changes.tenants:
            self.reload_tenant(tenant)
        ids = self.lanes if changes.is_all else changes.ids
        self._reload([lane for id_ in ids if (lane := self.lanes.get(id_))])

    def _reload(self, lanes: Iterable[Lane], *, even_idle: bool = False) -> None:
        now = self.context.clock()
        for lane in lanes:
            has_work = even_idle or not lane.is_empty_until(now + SOON_MS)
            lane.drop_recipient()
            if has_work:  # Else it is read once it has some.
                lane.expect(now, now)
                self._set_timer(now, lane.subscriber_id)

    # Called by the worker.

    async def scan(self) -> int:
        """Find the lanes with pending deliveries; keep those with work soon; return how many."""
        count, last_id = 0, ""
        while page := await self.context.database.read(next_due_times, last_id, SCAN_LANES):
            count, last_id = count + len(page), page[-1].subscriber_id
            for times in page:
                self._expect(times)
        return count

    def _expect(self, times: DueTimes) -> None:
        """Note when deliveries are due, for a lane that is in memory or has work soon."""
        at = min(at for at in (times.first_at, times.retry_at) if at is not None)
        is_soon = at <= self.context.clock() + SOON_MS and times.status in ("active", None)
        if is_soon or times.subscriber_id in self.lanes:
            lane = self._lane(times.subscriber_id)
            lane.expect(times.first_at, times.retry_at)
            self._set_timer(at, lane.subscriber_id)

    async def run_due(self, now: int) -> int | None:
        """Start the attempts and records that are due by `now`; return when to call it next."""
        self.record_again(now)
        if self._tally.is_due(now):
            self._spawn(self._tally.store())
        for subscriber_id in self.timers.take_due(now):
            if (lane := self.lanes.get(subscriber_id)) is not None:
                self._pump(lane, now)
        return self.timers.next_at

    def record_again(self, now: int) -> None:
        """Begin to store again the results that could not be stored and are due by `now`."""
        for each in self.unrecorded.take(now):
            self._spawn(self._record_again(*each))

    async def settle(self) -> None:
        """Wait until no attempt is under way or about to start; store the statistics."""
        await self._tally.store()  # First, as the caller may not wait for an attempt that hangs.
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._tally.store()

    @property
    def is_settled(self) -> bool:
        """True if no attempt or read is under way, and no result is still to be stored."""
        return not (self._tasks or self._tally.counts or self.unrecorded)

    async def close(self) -> None:
        """Cancel attempts under way without recording them, and drop all lanes: rows stay due."""
        self.is_open = False
        for task in (tasks := list(self._tasks)):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self.lanes.clear()
        self.timers.clear()
        self.loads.clear()
        self.unrecorded.clear()
        self.slots = Slots(self.slots.count)

    # Lanes.

    def _lane(self, subscriber_id: str) -> Lane:
        lane = self.lanes.get(subscriber_id)
        if lane is None:
            if len(self.lanes) >= self._lanes_max:
                self._drop_idle_lanes()
                self._lanes_max = max(LANES_MAX, 2 * len(self.lanes))
            lane = self.lanes[subscriber_id] = Lane(subscriber_id, self.bodies)
        return lane

    def _drop_idle_lanes(self) -> None:
        soon_at = self.context.clock() + SOON_MS
        self.lanes = {i: lane for i, lane in self.lanes.items() if not lane.is_idle_until(soon_at)}

    def _set_timer(self, at: int, subscriber_id: str = "") -> None:
        """Have `run_due` called at `at`: to pump a lane, or to store results or statistics."""
        if self.timers.set(at, subscriber_id):
            self.on_timer()

    def _pump(self, lane: Lane, now: int) -> None:
        """Start every attempt of the lane that may leave now, and plan the next ones."""
        while next_attempt := self._take(lane, now):
            self._spawn(self._run(*next_attempt))
        self._look_ahead(lane, now)

    def _take(self, lane: Lane, now: int, *, has_slot: bool = False) -> _Next | None:
        """Take the lane's next delivery with a slot for it; None if none may leave now."""
        if not (self.is_open and self.context.database.holds(lane.subscriber_id)):
            return None
        backlog = lane.next_backlog(now)
        if backlog is None:
            return None
        if not (has_slot or self.slots.are_free_for(lane)):
            self.slots.wait(lane)
            return None
        due = lane.pop(backlog, now)
        self.slots.take(lane, due.id)
        assert lane.recipient is not None
        return lane, lane.recipient, due

    def _look_ahead(self, lane: Lane, now: int) -> None:
        """Read more rows, or set a timer for when the lane may go on."""
        if not (self.is_open and self.context.database.holds(lane.subscriber_id)):
            return
        if lane.recipient is None:
            self._load(lane, now)
        if not lane.is_open:
            return
        to_read, next_at = lane.plan(now)
        if to_read:
            self._load(lane, now)
        if next_at != NEVER:
            self._set_timer(next_at, lane.subscriber_id)

    def _load(self, lane: Lane, now: int) -> None:
        """Queue a read of the lane's subscriber or rows; a lane has one read at a time."""
        if now < lane.next_read_at:
            self._set_timer(lane.next_read_at, lane.subscriber_id)
        elif self.loads.add(lane):
            self._spawn(self.loads.run(self._after_read))

    def _after_read(self, lane: Lane) -> None:
        """Pump a lane that was read, or could not be."""
        if lane.is_over:
            self.lanes.pop(lane.subscriber_id, None)
        else:
            self._pump(lane, self.context.clock())

    # Attempts.

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, lane: Lane, recipient: Recipient, due: DueDelivery) -> None:
        """Make an attempt, then reuse its slot for attempts of any lane, while one may leave."""
        following: _Next | None = lane, recipient, due
        while following is not None:
            lane, recipient, due = following
            try:
                result = await attempt(self.context, self.sender, recipient, due)
                self.attempted += 1
                if result.rest is not None:
                    rest = self.receivers.note(result.rest, recipient.target.origin)
                    result = replace(result, rest=rest)
                self._learn(lane, recipient, result)
            except (SenderClosed, asyncio.CancelledError):
                self._abandon(lane, due)
                return
            except Exception:  # noqa: BLE001  a delivery that fails must not keep its slot
                now: int | None = await self._put_off(lane, due)
            else:
                now = await self._record(lane, result, result.ended_at)
            following = None if now is None else self._reuse_slot(lane, now)

    def _reuse_slot(self, lane: Lane, now: int) -> _Next | None:
        """Return the next attempt for the slot of one that ended; lanes that wait come first."""
        following: _Next | None = None
        started_count = lane.started_count
        while waiting := self.slots.next_waiting():
            following = following or self._take(waiting, now, has_slot=True)
            self._pump(waiting, now)
        if lane.share not in self.slots.waiting:
            following = following or self._take(lane, now)
            self._pump(lane, now)
        elif lane.started_count == started_count:  # It still waits: the loop started none of its.
            self._look_ahead(lane, now)
        return following

    def _learn(self, lane: Lane, recipient: Recipient, result: Result) -> None:
        """Adapt the lane's window and its receiver's standing to how the attempt went."""
        present, standing = lane.recipient or recipient, lane.receiver.standing
        if present.subscriber.url != recipient.subscriber.url:
            return  # The URL was changed since: another receiver has answered.
        in_flight = self.slots.held_in_window(result.due.id)
        lane.learn(result.record.attempt, result.ended_at, in_flight=in_flight)
        if lane.recipient is not None and lane.receiver.standing != standing:
            self.slots.update_share(lane)

    async def _record_again(self, lane: Lane, result: Result) -> None:
        if (now := await self._record(lane, result, self.context.clock())) is not None:
            self.pump_waiting(now)
            self._pump(lane, now)

    async def _record(self, lane: Lane, result: Result, now: int) -> int | None:
        """Store an attempt, free its slot, and return the time afterwards.

        None if this task was cancelled, or if the database fails: then the slot stays taken, and
        the record is tried again later.
        """
        due, slots = result.due, self.slots
        try:
            is_idle = not lane.waiting and 2 * slots.free > slots.count
            await health.record(self.context, lane, result, now, may_wait=is_idle)
            lane.expect_after(result, now)
            if (count_at := self._tally.add(result.record, now)) is not None:
                self._set_timer(count_at)
        except StorageError as error:
            self._set_timer(self.unrecorded.add(lane, result, now, error))
            return None
        except asyncio.CancelledError:
            self._abandon(lane, due)
            return None
        except Exception:  # noqa: BLE001  this record can never be stored
            return await self._put_off(lane, due)
        else:
            self.unrecorded.note_stored()
            if result.rest is not None:
                self.receivers.note_stored(result.rest)
            self._release(lane, due)
        return self.context.clock()

    async def _put_off(self, lane: Lane, due: DueDelivery) -> int:
        """Make a delivery that cannot be worked due later; free its slot, and return the time."""
        await health.put_off(self.context, due, self._read_later(lane))
        self._release(lane, due)
        return self.context.clock()

    def _abandon(self, lane: Lane, due: DueDelivery) -> None:
        """Drop a delivery whose attempt was broken off: its row is still due, and is read again."""
        self._release(lane, due)
        self._set_timer(self._read_later(lane), lane.subscriber_id)

    def _read_later(self, lane: Lane) -> int:
        """Plan to read the lane's rows again after TROUBLE_RETRY_MS; return when."""
        at = self.context.clock() + TROUBLE_RETRY_MS
        lane.expect(at, at)
        return at

    def pump_waiting(self, now: int) -> None:
        """Let lanes that waited for slots go on, now that some are free."""
        while waiting := self.slots.next_waiting():
            self._pump(waiting, now)

    def _release(self, lane: Lane, due: DueDelivery) -> None:
        lane.release(due)
        self.slots.release(due.id)
