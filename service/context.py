"""The objects that all parts of a process share: settings, database, client, clock, signals."""

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, Protocol
from weakref import WeakValueDictionary

from msgspec import Struct, field

from service.model.clock import Clock
from service.model.delivery import DueDelivery
from service.settings import Settings
from service.store.shards import shard_of
from service.store.turns import Turns
from service.store.vault import Vault
from service.store.writes import Database
from service.telemetry.redact import Redactor
from service.upstream import catalogue
from service.upstream.callback_url import CallbackTokens
from service.upstream.client import Client

UPSTREAM = "apiinone"


class Lanes(Protocol):
    """The methods of a session's dispatcher that receive committed deliveries and changes."""

    def offer(self, due: Sequence[DueDelivery]) -> None:
        """Take deliveries that are due now."""

    def refill(self, subscriber_id: str) -> None:
        """Read a subscriber's new deliveries from the database."""

    def reload(self, subscriber_id: str) -> None:
        """Read a changed subscriber again."""

    def reload_tenant(self, tenant: str, origin: str | None = None) -> None:
        """Read a tenant's subscribers and signing secret again, or only those at an origin."""


class Inbox:
    """Hands committed deliveries to the session that works now, which saves reading their rows.

    It looks the session up after the commit, not when the unit begins: a session that is over gets
    no delivery. A process that holds the shard of a delivery is notified, and reads the row.
    """

    def __init__(self, hand_over: Callable[[str], bool]) -> None:
        self._hand_over = hand_over  # `Context.hand_over`.
        self.lanes: Lanes | None = None

    def offer(self, due: Sequence[DueDelivery]) -> None:
        """Hand over deliveries that are due now."""
        ours = [delivery for delivery in due if self._hand_over(delivery.subscriber_id)]
        if self.lanes is not None and ours:
            self.lanes.offer(ours)

    def refill(self, subscriber_id: str) -> None:
        """Hand over a subscriber that has new deliveries in the database."""
        if self._hand_over(subscriber_id) and self.lanes is not None:
            self.lanes.refill(subscriber_id)

    def reload(self, subscriber_id: str) -> None:
        """Announce that a subscriber has changed."""
        if self.lanes is not None:
            self.lanes.reload(subscriber_id)

    def reload_tenant(self, tenant: str, origin: str | None = None) -> None:
        """Announce that a tenant's secret has changed, or the rest of the receiver at an origin."""
        if self.lanes is not None:
            self.lanes.reload_tenant(tenant, origin)


class Signals(Struct, frozen=True):
    """Events that wake the worker's loops before their next due time."""

    submit: asyncio.Event = field(default_factory=asyncio.Event)
    poll: asyncio.Event = field(default_factory=asyncio.Event)
    deadline: asyncio.Event = field(default_factory=asyncio.Event)
    replay: asyncio.Event = field(default_factory=asyncio.Event)


async def wait_for(signal: asyncio.Event, seconds: float) -> None:
    """Wait until `signal` is set, at most for `seconds`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await signal.wait()


class Context(Struct, kw_only=True):
    """The shared objects of one process."""

    settings: Settings
    database: Database
    client: Client
    tokens: CallbackTokens
    vault: Vault
    redactor: Redactor
    clock: Clock
    jitter: Callable[[], float]
    random_bytes: Callable[[int], bytes] = os.urandom
    signals: Signals = field(default_factory=Signals)
    # By generation id: set once it is terminal. An entry lives as long as a request waits for it.
    waiters: WeakValueDictionary[str, asyncio.Event] = field(default_factory=WeakValueDictionary)
    # SHA-256 of each request with an `Idempotency-Key` that runs here, by (tenant, key).
    claims: dict[tuple[str, str], bytes] = field(default_factory=dict)
    # For large callbacks that are shown: to redact one takes long.
    redactions: Turns = field(default_factory=partial(Turns, 1))
    role: Literal["web", "worker", "both"] = "web"  # What this process does: serve, work, or both.
    watching: asyncio.Task[None] | None = None  # Looks for other processes' outcomes.
    stopping: asyncio.Event = field(default_factory=asyncio.Event)  # Set: nothing may wait.

    # Shards for which this process committed due work that no session of it took; a drive tries to
    # take them.
    missed_shards: set[int] = field(default_factory=set)
    inbox: Inbox = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.inbox = Inbox(self.hand_over)

    def tell(self, signal: asyncio.Event, id_: str) -> None:
        """After a commit, wake the loop that works on this id's shard, in whichever process."""
        if self.hand_over(id_):
            signal.set()

    def hand_over(self, id_: str) -> bool:
        """Return whether this process holds the id's shard; else notify the process that does."""
        is_here = self.database.hand_over(id_)
        # A session that only waits for requests to end takes nothing, and may end at any moment.
        if not is_here or self.inbox.lanes is None:
            self.missed_shards.add(shard_of(id_))
        return is_here

    @property
    def catalogue(self) -> dict[str, catalogue.Model]:
        """The models by id and by page id, loaded on first use."""
        return catalogue.load()
