"""Receivers: who answers behind the URLs of a tenant, by origin and not by the text of the URL."""

import itertools
from collections.abc import Mapping
from weakref import WeakValueDictionary

from service.delivery.window import Window
from service.model.subscriber import Subscriber

NOTIFY_IN_FLIGHT_MAX = 10  # Attempts to one receiver on account of all `notify_url`s together.


def names_of(subscriber: Subscriber, origin: str) -> tuple[str, ...]:
    """Return the receivers whose rests hold a lane to this origin; the narrowest comes last."""
    return (origin, f"notify {origin}") if subscriber.is_notify else (origin,)


def asked_to_rest(subscriber: Subscriber, origin: str, status_code: int | None) -> str | None:
    """Return the receiver that rests by an answer that throttles; None if only the lane rests."""
    if status_code == 429:
        return origin
    return names_of(subscriber, origin)[-1] if subscriber.is_notify else None


class Receiver:
    """What all lanes to one origin of a tenant share. It lives as long as one of them."""

    __slots__ = ("__weakref__", "above", "noted", "until", "window")

    def __init__(self, above: "Receiver | None" = None) -> None:
        self.above = above  # The origin's, if this one is for its `notify_url`s.
        self.until = 0  # It was asked for: nothing leaves before.
        self.noted = 0  # When that was noted in memory, as Receivers counts.
        # `notify_url`s that differ in their query are one receiver, so they share a window.
        self.window = Window(NOTIFY_IN_FLIGHT_MAX)

    @property
    def slow_until(self) -> int:
        """Until when nothing leaves."""
        return self.until if self.above is None else max(self.until, self.above.until)


class Receivers:
    """The receivers that lanes refer to at the moment. Until when each rests is stored."""

    def __init__(self) -> None:
        self._receivers: WeakValueDictionary[tuple[str, str], Receiver] = WeakValueDictionary()
        self._turns = itertools.count(1)

    def begin_read(self) -> int:
        """Return what `find` takes: what is read from now on may miss what is noted later."""
        return next(self._turns)

    def find(self, tenant: str, rests: Mapping[str, int], turn: int) -> Receiver:
        """Return the narrowest of the receivers, each of which rests as was read since `turn`."""
        receiver: Receiver | None = None
        for name, until in rests.items():
            receiver = self._find(tenant, name, receiver)
            is_older = receiver.noted > turn
            receiver.until = max(receiver.until, until) if is_older else until
        assert receiver is not None
        return receiver

    def rest(self, tenant: str, name: str, until: int) -> None:
        """Let nothing leave to the receiver before `until`, if a lane refers to it."""
        receiver = self._receivers.get((tenant, name))
        if receiver is not None:
            receiver.until = max(receiver.until, until)
            receiver.noted = next(self._turns)

    def _find(self, tenant: str, name: str, above: Receiver | None) -> Receiver:
        receiver = self._receivers.get((tenant, name))
        if receiver is None:
            receiver = self._receivers[tenant, name] = Receiver(above)
        return receiver
