"""The slots: how many attempts all lanes together may have under way, shared fairly.

Slots belong to lanes, lanes to receivers, receivers to tenants, and each level has its share. The
receivers of a tenant that have not answered with 2xx, or are doubted, are a part of it, and those
that fail are a part of this part. Taking and freeing a slot only changes counts: which lane is next
is computed only when a lane waits.
"""

from heapq import heapify, heappop, heappush
from weakref import WeakValueDictionary

from service.delivery.lanes import Lane
from service.delivery.receivers import FAILING, UNTRIED
from service.delivery.shares import PUSHES, Entry, Share

FAILING_SHARE = 4  # A quarter of the slots is not for lanes that fail.
# How many slots a share may hold for each one that is free. A hanging lane alone takes half of all,
# a hanging tenant four fifths; neither can take the last one.
LANE_WEIGHT, RECEIVER_WEIGHT, TENANT_WEIGHT = 1, 2, 4
# Parts of a tenant, each within the one before it; a receiver's standing says how many it is in.
# Receivers that have not answered leave slots to those that have, failing ones also to new ones.
PARTS = (("unproven", 2), ("failing", 1))


class Slots:
    """The attempts that all lanes may have under way, and the lanes that wait for one."""

    def __init__(self, count: int) -> None:
        self.count = self.free = count
        self._root = Share(weight=count + 1)  # Of all slots, none has to stay free.
        self._taken: dict[str, Share] = {}  # By delivery id.
        # Lanes, receivers and tenants, as long as a lane refers to them or holds a slot.
        self._shares: WeakValueDictionary[tuple[str, ...], Share] = WeakValueDictionary()
        self.waiting: dict[Share, Lane] = {}
        # Shares whose entries may be outdated, each once: only `next_waiting` needs entries, and
        # most lanes take a slot, wait and free one again in between.
        self._outdated: dict[Share, None] = {}
        self._sequence = 0

    @property
    def in_use(self) -> int:
        """How many attempts are under way."""
        return self.count - self.free

    def are_free_for(self, lane: Lane) -> bool:
        """True if the lane may start another attempt."""
        share = lane.share
        if share is None or lane.receiver.is_doubted():
            share = self.update_share(lane)
        return self._is_free_for(share)

    def _is_free_for(self, share: Share) -> bool:
        each: Share | None = share
        while each is not None and each.has_room(self.free):
            each = each.parent
        return each is None

    def take(self, lane: Lane, delivery_id: str) -> None:
        """Take a slot for an attempt of the lane."""
        share = lane.share or self.update_share(lane)
        self._taken[delivery_id] = share
        self._hold(share, 1)

    def release(self, delivery_id: str) -> None:
        """Free the slot of an attempt."""
        self._hold(self._taken.pop(delivery_id), -1)

    def held_in_window(self, delivery_id: str) -> int:
        """Return how many attempts share the window of a delivery's attempt, itself included."""
        share = self._taken[delivery_id]
        receiver = share.parent
        assert receiver is not None
        return share.held if receiver.window is None else receiver.held

    def wait(self, lane: Lane) -> None:
        """Queue the lane until enough slots are free for it, its receiver and its tenant."""
        share = lane.share or self.update_share(lane)
        self.waiting[share] = lane
        if _is_placed(share, 0):  # It took again the slot that it freed.
            self._outdated.pop(share, None)
        else:
            self._outdated[share] = None

    def next_waiting(self) -> Lane | None:
        """Take the next lane with enough free slots; those that hold the fewest come first."""
        if not (self.waiting or self._outdated) or not self.free:
            return None
        while (share := self._next_share()) is not None:
            lane = self.waiting[share]
            if lane.share is not share:
                # It was dropped or read again since: what it then holds waits anew.
                del self.waiting[share]
                self._outdated[share] = None
            elif lane.receiver.is_doubted():
                self.update_share(lane)  # It waits on, among untried receivers.
            else:
                if share not in self._outdated:
                    self._end_turn(share)
                return self.waiting.pop(share)
        return None

    def _end_turn(self, share: Share) -> None:
        """Have the share and its parents queue at the end if they wait again."""
        self._outdated[share] = None
        each: Share | None = share
        while each is not None:
            each.entry, each = None, each.parent

    def _next_share(self) -> Share | None:
        """Return the share of the lane that has the next turn, if enough slots are free for it."""
        if len(self.waiting) == 1:  # It needs no place among others.
            [alone] = self.waiting
            return alone if self._is_free_for(alone) else None
        if len(self._outdated) == 1:
            [moved] = self._outdated
            if self._is_still_first(moved):
                return moved
        self._place_outdated()
        share, first = self._root, _first_of(self._root)
        if first is None or first[0] >= self.free:
            return None
        while first is not None:
            share = first[3]
            first = _first_of(share)
        return share

    def _is_still_first(self, share: Share) -> bool:
        """True if a share that has just freed a slot gets it again; no other share has moved.

        It is so with most slots. The share then holds as many as before, and needs no new entry.
        """
        if share not in self.waiting or not _is_placed(share, -1):
            return False
        needed, each = 0, share
        while (parent := each.parent) is not None:
            needed = max(needed, each.held // each.weight, each.reserve)
            first = _first_of(parent)
            if each.has_used_window:
                return False
            if first is not None and first[3] is not each and first[:2] <= (needed, each.held):
                return False
            each = parent
        return needed < self.free

    def update_share(self, lane: Lane) -> Share:
        """Return the lane's share, moved with its slots to the part of its receiver's standing."""
        assert lane.recipient is not None
        if lane.receiver.is_doubted():
            lane.receiver.standing = UNTRIED
        subscriber, origin = lane.recipient.subscriber, lane.recipient.target.origin
        path, name = [subscriber.tenant], origin
        part = self._share_at(self._root, TENANT_WEIGHT, *path)
        for each, weight in PARTS[: lane.receiver.standing]:
            path.append(each)
            part = self._share_at(part, weight, *path)
        if lane.receiver.standing == FAILING:
            part.reserve = self.count // FAILING_SHARE
        if subscriber.is_notify:  # Those of an origin have one window and one standing.
            path, name = [subscriber.tenant], f"notify {origin}"
        receiver = self._share_at(part, RECEIVER_WEIGHT, *path, name)
        receiver.window = lane.receiver.window
        lane.share = self._share_at(receiver, LANE_WEIGHT, subscriber.tenant, name, subscriber.id)
        return lane.share

    def _share_at(self, parent: Share, weight: int, *key: str) -> Share:
        share = self._shares.get(key)
        if share is None:
            share = self._shares[key] = Share(parent, weight)
        elif share.parent is not parent:
            self._move(share, parent)
        return share

    def _move(self, share: Share, parent: Share) -> None:
        """Move a share, with its slots and its waiting lanes, to another parent."""
        held, old = share.held, share.parent
        assert old is not None
        self._hold(share, -held)
        share.parent, share.entry = parent, None
        self._hold(share, held)
        self._outdated[old] = None

    def _hold(self, share: Share, change: int) -> None:
        self.free -= change
        each: Share | None = share
        while each is not None:
            each.held += change
            each = each.parent
        if self.waiting:  # Else no share needs an entry.
            self._outdated[share] = None

    def _place_outdated(self) -> None:
        """Give new entries to the shares that moved, then to their parents, level by level.

        A share is placed once for all of its parts that moved at one level, and again for those
        that are deeper.
        """
        shares, self._outdated = self._outdated, {}  # The first that moved has the first turn.
        while shares:
            parents: dict[Share, None] = {}
            for share in shares:
                if share.parent is not None:
                    self._place(share, share.parent)
                    parents[share.parent] = None
            shares = parents

    def _place(self, share: Share, parent: Share) -> None:
        """Give a share an entry that is up to date, or none if no lane of it may be next."""
        held = share.held
        needed = max(held // share.weight, share.reserve)
        if share not in self.waiting:
            first = None if share.has_used_window else _first_of(share)
            if first is None:
                share.entry = None
                return
            needed = max(needed, first[0])
        entry = share.entry
        if entry is None or entry[0] != needed or entry[1] != held:
            self._sequence += 1
            share.entry = (needed, held, self._sequence, share)
            heappush(parent.queue, share.entry)
            parent.pushes_left -= 1
            if not parent.pushes_left:
                _drop_outdated(parent)


def _is_placed(share: Share, change: int) -> bool:
    """True if the share and its parents hold as many slots as their entries say, plus `change`."""
    each = share
    while (parent := each.parent) is not None:
        if each.entry is None or each.held != each.entry[1] + change:
            return False
        each = parent
    return True


def _first_of(share: Share) -> Entry | None:
    """Return the entry of the part that has the next turn; drop outdated entries before it."""
    queue = share.queue
    while queue and queue[0][3].entry is not queue[0]:
        heappop(queue)
    return queue[0] if queue else None


def _drop_outdated(share: Share) -> None:
    """Remove the outdated entries from the queue of a share; they are about half of it at most."""
    share.queue = [entry for entry in share.queue if entry[3].entry is entry]
    heapify(share.queue)
    share.pushes_left = PUSHES + len(share.queue)
