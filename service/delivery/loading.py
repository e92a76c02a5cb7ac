"""Loading reads what a lane lacks in memory: its subscriber, and due deliveries."""

from collections import deque
from collections.abc import Callable, Iterable

from service.context import Context
from service.delivery.attempt import read_recipient
from service.delivery.lanes import NEVER, Backlog, Lane
from service.delivery.receivers import Receivers
from service.model.clock import MINUTE, SECOND
from service.model.errors import StorageError
from service.store import deliveries, stats
from service.telemetry import log

_log = log.get()
STORAGE_RETRY_MS = SECOND
# For a lane or a delivery that cannot be worked, as when a secret is unreadable.
TROUBLE_RETRY_MS = MINUTE
LOADS_MAX = 8  # Reads of lanes under way; lanes that wait for a read have turns by tenant.


class Loads:
    """The lanes that are to be read: a few at once, and in turn by tenant.

    So a tenant that has many lanes, or changes them all the time, delays no other.
    """

    def __init__(self, context: Context, receivers: Receivers) -> None:
        self._context = context
        self._receivers = receivers
        self._under_way = 0
        self._waiting: dict[str, deque[Lane]] = {}  # By tenant; the first tenant is next.

    def add(self, lane: Lane) -> bool:
        """Queue the lane, unless it is queued or being read; return whether to call `run`."""
        if lane.is_loading:
            return False
        lane.is_loading = True
        self._waiting.setdefault(lane.tenant, deque()).append(lane)
        if self._under_way >= LOADS_MAX:
            return False
        self._under_way += 1
        return True

    async def run(self, go_on: Callable[[Lane], None]) -> None:
        """Read lanes until none waits; call `go_on` for each."""
        try:
            while lane := self._take():
                await self._read(lane)
                lane.is_loading = False
                lane.recorded_while_loading.clear()
                go_on(lane)
        finally:
            self._under_way -= 1

    def clear(self) -> None:
        """Forget the lanes that wait."""
        self._waiting.clear()

    def _take(self) -> Lane | None:
        """Return the lane to read next, and move its tenant behind the other ones."""
        if not self._waiting:
            return None
        tenant = next(iter(self._waiting))
        lanes = self._waiting.pop(tenant)
        lane = lanes.popleft()
        if lanes:
            self._waiting[tenant] = lanes
        return lane

    async def _read(self, lane: Lane) -> None:
        if not self._context.database.holds(lane.subscriber_id):
            # Its shard was lost meanwhile; once that has come back, a look finds it again.
            lane.drop_recipient()
            lane.is_over = not lane.in_flight
            return
        lane.is_unread = False
        try:
            await load(self._context, self._receivers, lane)
        except StorageError as error:
            lane.is_unread = True
            _log.warning("lane.unread", subscriber_id=lane.subscriber_id, error=str(error))
            lane.put_off_reads(self._context.clock() + STORAGE_RETRY_MS)
        except Exception:  # noqa: BLE001  one lane's trouble must not end the others
            _log.exception("lane.failed", subscriber_id=lane.subscriber_id)
            lane.put_off_reads(self._context.clock() + TROUBLE_RETRY_MS)


async def load(context: Context, receivers: Receivers, lane: Lane) -> None:
    """Read the lane's subscriber, or else rows that are due.

    One call at a time for each lane: `lane.is_loading` is set meanwhile.
    """
    if lane.recipient is not None:
        for backlog in lane.plan(context.clock())[0]:
            await _refill(context, lane, backlog)
        return
    revision, version = lane.revision, receivers.begin_read()
    recipient = await context.database.read(read_recipient, context.vault, lane.subscriber_id)
    is_old = recipient is not None and receivers.is_old(recipient.subscriber.tenant, version)
    if is_old or lane.revision != revision:
        return  # Changed meanwhile: it is read again.
    if recipient is not None:
        receiver = receivers.find(recipient.subscriber, recipient.rests, version)
        lane.set_recipient(recipient, receiver)
        return
    lane.drop_waiting()
    # A batch in each turn: the lane is read again until no delivery is pending.
    cancel = context.database.write(deliveries.cancel, lane.subscriber_id, tenant=lane.tenant)
    lane.is_over = not await cancel


async def _refill(context: Context, lane: Lane, backlog: Backlog) -> None:
    """Fetch deliveries that are due and not in memory."""
    if lane.recipient is None or not lane.room_in(backlog):
        return  # Changed meanwhile: the subscriber is read first, or rows once there is room.
    backlog.next_due_at = NEVER
    subscriber = lane.recipient.subscriber
    is_manual = backlog.kind == "asked"
    if is_manual and subscriber.ordered:
        return
    lane.recorded_while_loading.clear()  # The rows that are read now include what was stored.
    revision = lane.revision
    # A person may have asked for a delivery that waits already: it is read again as a manual one.
    held_ids = frozenset[str]() if is_manual else frozenset(lane.held_ids)
    if lane.generation_ids:
        held_ids |= lane.generation_ids
    due, next_at = await context.database.read(
        deliveries.fetch_due,
        subscriber.id,
        lane.room_in(backlog),
        backlog.kind,
        subscriber.ordered,
        held_ids,
    )
    last_attempt_at: int | None = None
    if subscriber.rate_per_second:  # A test that another process made counts, too.
        last_attempt_at = await context.database.read(stats.last_attempt_at, subscriber.id)
    if lane.revision != revision:
        return  # The deliveries may have been canceled meanwhile; they are read again.
    lane.continue_rate(last_attempt_at)
    if is_manual and due:
        ids = {d.id for d in due}
        lane.take_out(ids)
        lane.read_again |= lane.held_ids & ids
        if ids <= lane.held_ids:  # A read would return them again until one of them ends.
            next_at = None
    skipped = lane.recorded_while_loading | lane.held_ids
    refused = [d for d in due if d.id not in skipped and not lane.hold(d)]
    next_at = context.clock() if refused else NEVER if next_at is None else next_at
    backlog.next_due_at = min(backlog.next_due_at, next_at)


def held_up_until(lanes: Iterable[Lane], now: int) -> int | None:
    """Return the first time at which a lane with work may go on that is held up for a moment.

    By a rate or a rest, or since the database failed while the lane was read. A lane in trouble is
    not held up: whoever ticks until nothing is due or held up would never end.
    """
    times = (_held_up_until(lane, now) for lane in lanes)
    return min((at for at in times if at is not None), default=None)


def _held_up_until(lane: Lane, now: int) -> int | None:
    if lane.is_unread and now < lane.next_read_at:
        return lane.next_read_at
    has_work = lane.waiting or any(backlog.next_due_at <= now for backlog in lane.backlogs)
    return lane.blocked_until(now) if lane.is_open and has_work else None
