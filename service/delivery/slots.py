"""The slots: how many attempts all lanes together may have under way, shared fairly.

Slots belong to lanes, lanes to receivers, receivers to tenants, and each level has its share.
"""

import heapq
import itertools

from msgspec import Struct, field

from service.delivery.attempt import Recipient
from service.delivery.lanes import Lane
from service.delivery.window import Window

FAILING_SHARE = 4  # A quarter of the slots is not for lanes that fail.
# How many slots a share may hold for each one that is free. A hanging lane alone takes half of all,
# a hanging tenant four fifths; neither can take the last one.
LANE_WEIGHT, RECEIVER_WEIGHT, TENANT_WEIGHT = 1, 2, 4

_Entry = tuple[int, int, int, "Share"]  # Slots needed, slots held, turn.


class Share(Struct, eq=False):
    """The slots that a lane, a receiver or a tenant holds, and which of its parts wait."""

    key: str
    parent: "Share | None" = None
    weight: int = LANE_WEIGHT
    held: int = 0
    shares: "dict[str, Share]" = field(default_factory=dict)
    lane: Lane | None = None  # While it waits.
    window: Window | None = None  # Of a receiver whose lanes share one.
    queue: list[_Entry] = field(default_factory=list)  # A heap, with outdated entries too.
    entry: _Entry | None = None  # The current one, in the queue of the parent.

    def share(self, key: str, weight: int) -> "Share":
        """Return the part of this share that has the key."""
        if key not in self.shares:
            self.shares[key] = Share(key, self, weight)
        return self.shares[key]

    @property
    def is_full(self) -> bool:
        """True if the receiver has as many attempts under way as its window allows."""
        return self.window is not None and self.held >= self.window.size

    def first(self) -> _Entry | None:
        """Return the entry of the waiting part that needs the fewest slots."""
        queue = self.queue
        while queue and queue[0][3].entry is not queue[0]:
            heapq.heappop(queue)
        return queue[0] if queue else None


class Slots:
    """The attempts that all lanes may have under way, and the lanes that wait for one."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._root = Share("")
        self._reserve = count // FAILING_SHARE
        self._taken: dict[str, Share] = {}  # By delivery.
        self._known: dict[str, tuple[Recipient, Share]] = {}  # By subscriber, while it is used.
        self._waiting = 0  # Lanes.
        # Of lanes, and each once: only `next_waiting` needs to know the places of shares, and most
        # lanes take a slot, wait and free one again in between.
        self._moved: dict[Share, None] = {}
        self._turn = itertools.count()

    @property
    def in_use(self) -> int:
        """How many attempts are under way."""
        return self._root.held

    def are_free_for(self, lane: Lane) -> bool:
        """True if the lane may start another attempt."""
        share = self._share_of(lane)
        receiver = share.parent
        assert receiver is not None
        tenant = receiver.parent
        assert tenant is not None
        needed = max(
            share.held + self._reserve_for(lane),
            receiver.held // RECEIVER_WEIGHT,
            tenant.held // TENANT_WEIGHT,
        )
        is_free = not receiver.is_full and self._is_enough(needed)
        self._drop_unused(share)
        return is_free

    def take(self, lane: Lane, delivery_id: str) -> None:
        """Take a slot for an attempt of the lane."""
        share: Share | None = self._share_of(lane)
        assert share is not None
        self._taken[delivery_id] = share
        self._hold(share, 1)

    def release(self, delivery_id: str) -> None:
        """Free the slot of an attempt."""
        share = self._taken.pop(delivery_id)
        self._hold(share, -1)
        self._drop_unused(share)

    def held_by_receiver(self, delivery_id: str) -> int:
        """Return how many attempts the receiver of a delivery has under way, this one included."""
        receiver = self._taken[delivery_id].parent
        assert receiver is not None
        return receiver.held

    def wait(self, lane: Lane) -> None:
        """Queue the lane until enough slots are free for it, its receiver and its tenant."""
        if lane.waiting:
            share = self._share_of(lane)
            self._waiting += share.lane is None
            share.lane = lane
            self._moved[share] = None

    def next_waiting(self) -> Lane | None:
        """Take the next lane with enough free slots; those that hold the fewest come first."""
        for share in self._moved:  # Who came first has the first turn.
            self._place(share)
        self._moved.clear()
        share = self._root
        while entry := share.first():
            if share is self._root and not self._is_enough(entry[0]):
                return None
            share = entry[3]
        lane = share.lane
        if lane is not None:
            share.lane = None
            self._moved[share] = None
            self._waiting -= 1
            self._drop_unused(share)
        return lane

    def _is_enough(self, needed: int) -> bool:
        return self.count - self._root.held > needed

    def _reserve_for(self, lane: Lane | None) -> int:
        return self._reserve if lane is not None and lane.failing_since is not None else 0

    def _share_of(self, lane: Lane) -> Share:
        recipient = lane.recipient
        assert recipient is not None
        known = self._known.get(lane.subscriber_id)
        if known is not None and known[0] is recipient:
            return known[1]
        share = self._find_share(lane, recipient)
        self._known[lane.subscriber_id] = recipient, share
        return share

    def _find_share(self, lane: Lane, recipient: Recipient) -> Share:
        subscriber, origin = recipient.subscriber, recipient.target.origin
        tenant = self._root.share(subscriber.tenant, TENANT_WEIGHT)
        key = f"notify {origin}" if subscriber.is_notify else origin
        receiver = tenant.share(key, RECEIVER_WEIGHT)
        if subscriber.is_notify:
            receiver.window = lane.window
        return receiver.share(subscriber.id, LANE_WEIGHT)

    def _hold(self, share: Share, change: int) -> None:
        each: Share | None = share
        while each is not None:
            each.held += change
            each = each.parent
        if self._waiting:  # Else no share has a place, or it is among those that moved.
            self._moved[share] = None

    def _place(self, share: Share) -> None:
        """Move the share and those above it to where they now belong in their queues."""
        while (parent := share.parent) is not None:
            held, entry, needed = share.held, share.entry, None
            if share.lane is not None:
                needed = held + self._reserve_for(share.lane)
            elif share.queue and (first := share.first()) and not share.is_full:
                needed = max(held // share.weight, first[0])
            if needed is None:
                share.entry = None
            elif entry is None or entry[0] != needed or entry[1] != held:
                share.entry = (needed, held, next(self._turn), share)
                heapq.heappush(parent.queue, share.entry)
                if len(parent.queue) > 2 * len(parent.shares) + 64:
                    parent.queue = [e for e in parent.queue if e[3].entry is e]
                    heapq.heapify(parent.queue)
            share = parent

    def _drop_unused(self, share: Share) -> None:
        """Forget shares that hold nothing and wait for nothing."""
        while (parent := share.parent) and not (share.held or share.shares or share.lane):
            share.entry = None
            del parent.shares[share.key]
            self._known.pop(share.key, None)  # Nothing, unless it is a lane's.
            share = parent
