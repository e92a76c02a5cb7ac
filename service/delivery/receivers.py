"""Receivers: who answers behind the URLs of a tenant, and until when each asked for a rest.

A receiver is an origin, not the text of a URL. All lanes to an origin are one wide receiver. Within
it, all `notify_url`s together are one narrow receiver, and each other lane is one.
"""

import itertools
from collections.abc import Mapping
from weakref import WeakSet, WeakValueDictionary

from msgspec import Struct, field
from msgspec.structs import replace

from service.delivery.window import Window
from service.model.clock import MINUTE
from service.model.subscriber import Subscriber

# A receiver's standing. PROVEN: its last attempt was answered with 2xx. UNTRIED: it had none, or is
# doubted (`is_doubted`). FAILING: its last attempt failed.
PROVEN, UNTRIED, FAILING = range(3)
SHARED_REST_MAX_MS = MINUTE  # A longer rest holds up only the lane that got it.
ANSWERED_MS = MINUTE  # If another receiver answered so lately, the origin does not throttle all.
NOTIFY_IN_FLIGHT_MAX = 10  # Attempts under way to all `notify_url`s of one origin together.


def names_of(subscriber: Subscriber, origin: str) -> tuple[str, str]:
    """Return the names of the receivers whose rests hold up a lane; the narrow one comes last.

    All names begin with the origin, so that a search for it finds the rests of all its receivers.
    """
    return origin, f"{origin} {'notify' if subscriber.is_notify else subscriber.id}"


class Rest(Struct, frozen=True):
    """A rest that an answer asked for: until when no attempt to a receiver starts."""

    tenant: str
    receiver: str
    until: int
    since: int  # When the answer came.
    is_throttled: bool = False  # By 429: the origin may count the requests to all its URLs.


class Origin(Struct, eq=False):
    """What the last attempts say of an origin, whichever lane made them."""

    failed_from: int = 0  # When the latest of the failed attempts began.
    answered_by: str = ""  # The receiver that answered last, and when; and when another one did.
    answered_at: int = 0
    other_answered_at: int = 0

    def note_answer(self, receiver: str, now: int) -> None:
        """Note that a receiver at the origin has answered."""
        if receiver != self.answered_by:
            self.answered_by, self.other_answered_at = receiver, self.answered_at
        self.answered_at = now

    def has_another_answered(self, receiver: str, since: int) -> bool:
        """True if another receiver at the origin has answered since then."""
        is_last = receiver == self.answered_by
        return (self.other_answered_at if is_last else self.answered_at) >= since


class Receiver(Struct, eq=False, weakref=True):
    """What all lanes to a receiver share. It lives as long as one of them."""

    wider: "Receiver | None" = None
    window: Window | None = None  # Only for `notify_url`s, which share it.
    name: str = ""
    origin: Origin = field(default_factory=Origin)  # The same one for all receivers at it.
    narrower: "WeakSet[Receiver] | None" = None  # Of a wide receiver.
    standing: int = UNTRIED  # Used only of narrow receivers: their lanes have slots by it.
    answered_at: int = 0
    # Until when this receiver or the wider one rests; kept here, since each attempt reads it.
    rest_until: int = 0
    stored_until: int = 0
    stored_version: int = 0  # Of `Receivers`, when the latest rest was stored.
    unstored: set[Rest] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.wider is None:
            self.narrower = WeakSet()
        else:
            assert self.wider.narrower is not None
            self.wider.narrower.add(self)
            self.origin, self.rest_until = self.wider.origin, self.wider.rest_until

    # The standing. An origin that hangs fails all its lanes: one failed attempt is enough to doubt
    # its other receivers. Each is moved when its turn comes, as there may be thousands.

    def note_answer(self, now: int) -> None:
        """Note an answer: attempts at the origin that failed before say nothing any more."""
        self.answered_at = max(now, self.origin.failed_from)
        self.origin.note_answer(self.name, now)

    def note_failure(self, started_at: int) -> None:
        """Note a failed attempt: its origin may be the cause."""
        self.origin.failed_from = max(started_at, self.origin.failed_from)

    def is_doubted(self) -> bool:
        """True if it is PROVEN, but an attempt at its origin failed that began after its answer."""
        return self.origin.failed_from > self.answered_at and self.standing == PROVEN

    # The rest.

    def set_stored(self, until: int, version: int) -> None:
        """Take over the end of the rest that a read has found; the read began at `version`."""
        is_older = self.stored_version > version
        self.stored_until = max(self.stored_until, until) if is_older else until
        self.spread()

    def note(self, rest: Rest) -> None:
        """Rest as an answer asked for, whatever is read before that rest is stored."""
        # Some may never be stored; those that are over by now say nothing any more.
        self.unstored = {rest, *(each for each in self.unstored if each.until > rest.since)}
        self.spread()

    def note_stored(self, rest: Rest, version: int) -> None:
        """Note that a rest is stored since `version`."""
        self.unstored.discard(rest)
        self.stored_until = max(self.stored_until, rest.until)
        self.stored_version = version
        self.spread()

    def spread(self) -> None:
        """Update `rest_until`, here and in the narrower receivers."""
        wider_until = 0 if self.wider is None else self.wider.rest_until
        until = max(wider_until, self.stored_until, *(rest.until for rest in self.unstored))
        if until != self.rest_until:
            self.rest_until = until
            for each in self.narrower or ():
                each.spread()


class Receivers:
    """The receivers that lanes refer to at the moment; versions number reads and changes."""

    def __init__(self) -> None:
        self._receivers: WeakValueDictionary[tuple[str, str], Receiver] = WeakValueDictionary()
        self._versions = itertools.count(1)
        self._changed: dict[str, int] = {}  # By tenant: the version of its last change.

    def note_change(self, tenant: str) -> None:
        """Note that reads of the tenant's subscribers that began before are outdated."""
        self._changed[tenant] = next(self._versions)

    def is_old(self, tenant: str, version: int) -> bool:
        """True if a read of the tenant's subscribers that began at `version` is outdated."""
        return self._changed.get(tenant, 0) > version

    def begin_read(self) -> int:
        """Return the version of a read that begins now, which `find` and `is_old` take."""
        return next(self._versions)

    def find(self, subscriber: Subscriber, rests: Mapping[str, int], version: int) -> Receiver:
        """Return the narrow receiver; take over the `rests` of a read that began at `version`."""
        receiver: Receiver | None = None
        for name, until in rests.items():
            wider, key = receiver, (subscriber.tenant, name)
            receiver = self._receivers.get(key)
            if receiver is None:
                is_shared = wider is not None and subscriber.is_notify
                window = Window(NOTIFY_IN_FLIGHT_MAX) if is_shared else None
                receiver = self._receivers[key] = Receiver(wider, window, name)
            receiver.set_stored(until, version)
        assert receiver is not None
        return receiver

    def note(self, rest: Rest, origin: str) -> Rest:
        """Let the receiver rest that asked for it; return the rest to store, perhaps widened."""
        rest = self._widen(rest, origin) if rest.is_throttled else rest
        if (receiver := self._receivers.get((rest.tenant, rest.receiver))) is not None:
            receiver.note(rest)
        return rest

    def _widen(self, rest: Rest, origin: str) -> Rest:
        """Return the rest of a throttled receiver as a rest of its whole origin.

        An origin may count the requests to all of its URLs. But the rest stays as it is if another
        receiver of it has answered lately, or if it is long: a hostile one could stop the others.
        """
        whole = self._receivers.get((rest.tenant, origin))
        is_long = rest.until - rest.since > SHARED_REST_MAX_MS
        lately = rest.since - ANSWERED_MS
        if whole is None or is_long or whole.origin.has_another_answered(rest.receiver, lately):
            return rest
        return replace(rest, receiver=origin)

    def note_stored(self, rest: Rest) -> None:
        """Note that the rest is stored."""
        if (receiver := self._receivers.get((rest.tenant, rest.receiver))) is not None:
            receiver.note_stored(rest, next(self._versions))
