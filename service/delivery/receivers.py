"""Receivers: who answers behind the URLs of a tenant, by origin and not by the text of the URL."""

from collections.abc import Iterable
from weakref import WeakValueDictionary

from service.delivery.target import parse_target
from service.delivery.window import Window
from service.model.subscriber import Subscriber

NOTIFY_IN_FLIGHT_MAX = 10  # Attempts to one receiver on account of all `notify_url`s together.
RESTING_MAX = 10_000  # Receivers that are remembered while they rest; the oldest are forgotten.


class Receiver:
    """What all lanes to one origin of a tenant share. It lives as long as one of them."""

    __slots__ = ("__weakref__", "slow_until", "window")

    def __init__(self) -> None:
        self.slow_until = 0  # It answered 429: nothing leaves before.
        # `notify_url`s that differ in their query are one receiver, so they share a window.
        self.window = Window(NOTIFY_IN_FLIGHT_MAX)


class Receivers:
    """The receivers that lanes refer to at the moment, and those that rest."""

    def __init__(self) -> None:
        self._receivers: WeakValueDictionary[tuple[str, str], Receiver] = WeakValueDictionary()
        self._resting: dict[Receiver, None] = {}

    def find(self, subscriber: Subscriber, origin: str) -> Receiver:
        """Return the receiver of the subscriber, whose URL has this origin."""
        key = subscriber.tenant, origin
        receiver = self._receivers.get(key)
        if receiver is None:
            receiver = self._receivers[key] = Receiver()
        if subscriber.is_notify:  # Its row stores until when the receiver asked to wait.
            self.rest(receiver, subscriber.slow_until or 0)
        return receiver

    def restore(self, rests: Iterable[tuple[str, str, int]]) -> None:
        """Let receivers rest as is stored, each by tenant, URL and time, and no others."""
        self._resting.clear()
        for receiver in self._receivers.values():
            receiver.slow_until = 0
        for tenant, url, until in rests:
            key = tenant, parse_target(url).origin
            receiver = self._receivers.get(key) or Receiver()
            self._receivers[key] = receiver
            self.rest(receiver, until)

    def rest(self, receiver: Receiver, until: int) -> None:
        """Let nothing leave to the receiver before `until`, though its lanes may be dropped."""
        if until > receiver.slow_until:
            receiver.slow_until = until
            self._resting.pop(receiver, None)  # So that the oldest stay first.
            self._resting[receiver] = None
            if len(self._resting) > RESTING_MAX:
                del self._resting[next(iter(self._resting))]
