"""Receivers: who answers behind the URLs of a tenant, and until when each asked for a rest.

A receiver is an origin, not the text of a URL. All lanes to it are one receiver, and within it the
`notify_url`s are one, and each other lane is one.
"""

import itertools
from collections.abc import Mapping
from weakref import WeakSet, WeakValueDictionary

from msgspec import Struct

from service.delivery.window import Window
from service.model.subscriber import Subscriber

# How a receiver stands: its last attempt was answered with 2xx; there was none yet, or others that
# began later have failed at its origin; or its last one failed.
PROVEN, UNTRIED, FAILING = range(3)
NOTIFY_IN_FLIGHT_MAX = 10  # Attempts to one receiver on account of all `notify_url`s together.


def names_of(subscriber: Subscriber, origin: str) -> tuple[str, str]:
    """Return the receivers whose rests hold a lane to this origin; the narrower comes last.

    All names of an origin begin with it, so that a rest of any of them is found by it.
    """
    return origin, f"{origin} {'notify' if subscriber.is_notify else subscriber.id}"


class Rest(Struct, frozen=True):
    """What an answer asked for: until when nothing leaves to a receiver."""

    tenant: str
    receiver: str
    until: int
    since: int  # When it was asked for.


class Origin(Struct, eq=False):
    """What the last attempts say of an origin, whichever lane made them."""

    failed_from: int = 0  # When the latest began of those that have failed.


class Receiver:
    """What all lanes to a receiver share. It lives as long as one of them."""

    __slots__ = (
        *("__weakref__", "slow_until", "standing", "window", "origin", "narrower", "_wider"),
        *("_answered_at", "_latest_turn", "_stored_until", "_unstored"),
    )

    def __init__(self, wider: "Receiver | None" = None, window: Window | None = None) -> None:
        # Nothing leaves before, on account of this one or of the wider one. It is kept up to date
        # here, as each attempt asks for it.
        self.slow_until = 0
        self.standing = UNTRIED  # Of the narrower one, whose lanes have their slots by it.
        self._answered_at = 0
        self.origin: Origin = Origin() if wider is None else wider.origin
        self.window = window  # Only for `notify_url`s, which share it.
        self._wider = wider
        self.narrower: WeakSet[Receiver] | None = None
        if wider is None:
            self.narrower = WeakSet()
        elif wider.narrower is not None:
            wider.narrower.add(self)
            self.slow_until = wider.slow_until
        self._stored_until = 0
        self._unstored: set[Rest] = set()
        self._latest_turn = 0  # When the latest was stored, as Receivers counts.

    # How it stands. An origin that hangs fails all its lanes: one that failed there is enough to
    # doubt the others. Each is moved when its turn comes, as there may be thousands.

    def note_answer(self, now: int) -> None:
        """Note that it has answered, after whatever failed at its origin before."""
        self._answered_at = max(now, self.origin.failed_from)

    def note_failure(self, started_at: int) -> None:
        """Note that an attempt has failed, and that the trouble may be the origin's."""
        self.origin.failed_from = max(started_at, self.origin.failed_from)

    def is_doubted(self) -> bool:
        """True if it stands as proven, but an attempt failed at its origin that began later."""
        return self.origin.failed_from > self._answered_at and self.standing == PROVEN

    # Its rest.

    def set_stored(self, until: int, turn: int) -> None:
        """Take over what a read has found that began at `turn`."""
        is_older = self._latest_turn > turn
        self._stored_until = max(self._stored_until, until) if is_older else until
        self.spread()

    def note(self, rest: Rest) -> None:
        """Rest, whatever is read before that is stored."""
        self._unstored.add(rest)
        self.spread()

    def settle(self, rest: Rest, turn: int) -> None:
        """Note that a rest is stored since `turn`."""
        self._unstored.discard(rest)
        self._stored_until = max(self._stored_until, rest.until)
        self._latest_turn = turn
        self.spread()

    def spread(self) -> None:
        """Note until when nothing leaves, here and at what is narrower."""
        wider_until = 0 if self._wider is None else self._wider.slow_until
        until = max(wider_until, self._stored_until, *(rest.until for rest in self._unstored))
        if until != self.slow_until:
            self.slow_until = until
            for each in self.narrower or ():
                each.spread()


class Receivers:
    """The receivers that lanes refer to at the moment. Until when each rests is stored."""

    def __init__(self) -> None:
        self._receivers: WeakValueDictionary[tuple[str, str], Receiver] = WeakValueDictionary()
        self._turns = itertools.count(1)
        self._changed: dict[str, int] = {}  # By tenant: when something of all its lanes changed.

    def note_change(self, tenant: str) -> None:
        """Note that what was read for the tenant until now may be old."""
        self._changed[tenant] = next(self._turns)

    def is_old(self, tenant: str, turn: int) -> bool:
        """True if what a read has found that began at `turn` may have changed since."""
        return self._changed.get(tenant, 0) > turn

    def begin_read(self) -> int:
        """Return what `find` takes: what is read from now on may miss what is stored later."""
        return next(self._turns)

    def find(self, subscriber: Subscriber, rests: Mapping[str, int], turn: int) -> Receiver:
        """Return the narrower of the receivers, each of which rests as was read since `turn`."""
        receiver: Receiver | None = None
        for name, until in rests.items():
            receiver = self._find(subscriber, name, receiver)
            receiver.set_stored(until, turn)
        assert receiver is not None
        return receiver

    def note(self, rest: Rest) -> None:
        """Let the receiver rest that asked for it, if a lane refers to it; it is not stored yet."""
        if (receiver := self._receivers.get((rest.tenant, rest.receiver))) is not None:
            receiver.note(rest)

    def settle(self, rest: Rest) -> None:
        """Note that the rest is stored."""
        if (receiver := self._receivers.get((rest.tenant, rest.receiver))) is not None:
            receiver.settle(rest, next(self._turns))

    def _find(self, subscriber: Subscriber, name: str, wider: Receiver | None) -> Receiver:
        key = subscriber.tenant, name
        receiver = self._receivers.get(key)
        if receiver is None:
            is_shared = wider is not None and subscriber.is_notify
            window = Window(NOTIFY_IN_FLIGHT_MAX) if is_shared else None
            receiver = self._receivers[key] = Receiver(wider, window)
        return receiver
