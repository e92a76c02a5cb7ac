"""The slots: how many attempts all lanes together may have under way, shared fairly.

Slots belong to lanes, lanes to receivers, receivers to tenants, and each level has its share. To
take and free a slot only counts. Who has the next turn is found out where somebody waits.
"""

from heapq import heapify, heappop, heappush
from weakref import WeakValueDictionary

from service.delivery.lanes import Lane
from service.delivery.shares import PUSHES, Entry, Share

FAILING_SHARE = 4  # A quarter of the slots is not for lanes that fail.
# How many slots a share may hold for each one that is free. A hanging lane alone takes half of all,
# a hanging tenant four fifths; neither can take the last one.
LANE_WEIGHT, RECEIVER_WEIGHT, TENANT_WEIGHT = 1, 2, 4


class Slots:
    """The attempts that all lanes may have under way, and the lanes that wait for one."""

    def __init__(self, count: int) -> None:
        self.count = self.free = count
        self._root = Share()
        self._reserve = count // FAILING_SHARE
        self._taken: dict[str, Share] = {}  # By delivery.
        # Lanes, receivers and tenants, as long as a lane refers to them or holds a slot.
        self._shares: WeakValueDictionary[tuple[str, ...], Share] = WeakValueDictionary()
        self.waiting: dict[Share | None, Lane] = {}
        # Of lanes, and each once: only `next_waiting` needs to know the places of shares, and most
        # lanes take a slot, wait and free one again in between.
        self._moved: dict[Share, None] = {}
        self._turn = 0

    @property
    def in_use(self) -> int:
        """How many attempts are under way."""
        return self.count - self.free

    def are_free_for(self, lane: Lane) -> bool:
        """True if the lane may start another attempt."""
        share = lane.share or self._find_share(lane)
        receiver = share.parent
        assert receiver is not None
        tenant = receiver.parent
        assert tenant is not None
        reserve = 0 if lane.failing_since is None else self._reserve
        window, free = receiver.window, self.free
        return (
            free > share.held // LANE_WEIGHT + reserve
            and free > receiver.held // RECEIVER_WEIGHT
            and free > tenant.held // TENANT_WEIGHT
            and (window is None or receiver.held < window.size)
        )

    def take(self, lane: Lane, delivery_id: str) -> None:
        """Take a slot for an attempt of the lane."""
        share = lane.share or self._find_share(lane)
        self._taken[delivery_id] = share
        self._hold(share, 1)

    def release(self, delivery_id: str) -> None:
        """Free the slot of an attempt."""
        self._hold(self._taken.pop(delivery_id), -1)

    def held_by_receiver(self, delivery_id: str) -> int:
        """Return how many attempts the receiver of a delivery has under way, this one included."""
        receiver = self._taken[delivery_id].parent
        assert receiver is not None
        return receiver.held

    def wait(self, lane: Lane) -> None:
        """Queue the lane until enough slots are free for it, its receiver and its tenant."""
        share = lane.share or self._find_share(lane)
        self.waiting[share] = lane
        self._moved[share] = None

    def next_waiting(self) -> Lane | None:
        """Take the next lane with enough free slots; those that hold the fewest come first."""
        if not (self.waiting or self._moved) or not self.free:
            return None
        for moved in self._moved:  # Who came first has the first turn.
            self._place(moved)
        self._moved.clear()
        queue = self._root.queue
        if not queue or queue[0][0] >= self.free:
            return None
        while queue:
            share = queue[0][3]
            queue = share.queue
        share.entry = None  # If it waits again, it has another turn.
        self._moved[share] = None
        return self.waiting.pop(share)

    def _find_share(self, lane: Lane) -> Share:
        assert lane.recipient is not None
        subscriber, origin = lane.recipient.subscriber, lane.recipient.target.origin
        key = f"notify {origin}" if subscriber.is_notify else origin
        tenant = self._part(self._root, TENANT_WEIGHT, subscriber.tenant)
        receiver = self._part(tenant, RECEIVER_WEIGHT, subscriber.tenant, key)
        if subscriber.is_notify:
            receiver.window = lane.window
        lane.share = self._part(receiver, LANE_WEIGHT, subscriber.tenant, key, subscriber.id)
        return lane.share

    def _part(self, parent: Share, weight: int, *key: str) -> Share:
        share = self._shares.get(key)
        if share is None:
            share = self._shares[key] = Share(parent, weight)
        return share

    def _hold(self, share: Share, change: int) -> None:
        self.free -= change
        each: Share | None = share
        while each is not None:
            each.held += change
            each = each.parent
        if self.waiting:  # Else no share has a place.
            self._moved[share] = None

    def _place(self, share: Share) -> None:
        """Move the share of a lane, and those that it is a part of, to where they now belong."""
        needed: int | None = None
        if (lane := self.waiting.get(share)) is not None:
            needed = share.held + (0 if lane.failing_since is None else self._reserve)
        while (parent := share.parent) is not None:
            entry, held, queue = share.entry, share.held, parent.queue
            if needed is None:
                share.entry = None
            elif entry is None or entry[0] != needed or entry[1] != held:
                self._turn += 1
                share.entry = (needed, held, self._turn, share)
                heappush(queue, share.entry)
                parent.pushes_left -= 1
                if not parent.pushes_left:
                    queue = _drop_outdated(parent)
            while queue and queue[0][3].entry is not queue[0]:
                heappop(queue)
            # What the parent needs follows from the first of its parts.
            needed, window = None, parent.window
            if queue and (window is None or parent.held < window.size):
                needed = max(parent.held // parent.weight, queue[0][0])
            share = parent


def _drop_outdated(share: Share) -> list[Entry]:
    """Return the queue of a share without outdated entries, which are half of it at most."""
    share.queue = [entry for entry in share.queue if entry[3].entry is entry]
    heapify(share.queue)
    share.pushes_left = PUSHES + len(share.queue)
    return share.queue
