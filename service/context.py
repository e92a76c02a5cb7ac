"""The objects that all parts of a process share: settings, database, client, clock, signals."""

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Literal, Protocol
from weakref import WeakValueDictionary

from msgspec import Struct, field

from service.model.clock import Clock
from service.model.delivery import DueDelivery
from service.settings import Settings
from service.store.database import Database
from service.store.shards import shard_of
from service.store.vault import Vault
from service.telemetry.redact import Redactor
from service.upstream import catalogue
from service.upstream.callback_url import CallbackTokens
from service.upstream.client import Client

UPSTREAM = "apiinone"


class Lanes(Protocol):
    """What receives committed deliveries in memory: the dispatcher of a session."""

    def offer(self, due: Sequence[DueDelivery]) -> None:
        """Take deliveries that are due now."""

    def refill(self, subscriber_id: str) -> None:
        """Read the rows of a subscriber with new deliveries in the database."""

    def reload(self, subscriber_id: str) -> None:
        """Read a changed subscriber again."""

    def reload_tenant(self, tenant: str, origin: str | None = None) -> None:
        """Read again what all subscribers of a tenant have in common, or those at an origin."""


class Inbox:
    """Hands committed deliveries to the session that works now, which saves reading their rows.

    The session is looked up when the commit has happened, not when its unit began: nothing reaches
    one that is over. Other processes hear of what they work on, and find the rows themselves.
    """

    def __init__(self, is_ours: Callable[[str], bool]) -> None:
        self._is_ours = is_ours  # Tells other processes of what is theirs.
        self.lanes: Lanes | None = None

    def offer(self, due: Sequence[DueDelivery]) -> None:
        """Hand over deliveries that are due now."""
        ours = [delivery for delivery in due if self._is_ours(delivery.subscriber_id)]
        if self.lanes is not None and ours:
            self.lanes.offer(ours)

    def refill(self, subscriber_id: str) -> None:
        """Tell of a subscriber with new deliveries in the database."""
        if self._is_ours(subscriber_id) and self.lanes is not None:
            self.lanes.refill(subscriber_id)

    def reload(self, subscriber_id: str) -> None:
        """Tell of a changed subscriber."""
        if self.lanes is not None:
            self.lanes.reload(subscriber_id)

    def reload_tenant(self, tenant: str, origin: str | None = None) -> None:
        """Tell that a tenant's secret has changed, or until when an origin rests."""
        if self.lanes is not None:
            self.lanes.reload_tenant(tenant, origin)


class Signals(Struct, frozen=True):
    """Events that wake the worker's loops before their next due time."""

    submit: asyncio.Event = field(default_factory=asyncio.Event)
    poll: asyncio.Event = field(default_factory=asyncio.Event)
    deadline: asyncio.Event = field(default_factory=asyncio.Event)
    replay: asyncio.Event = field(default_factory=asyncio.Event)


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
    # By generation: set once it is terminal; an entry goes with the last request that waits for it.
    waiters: WeakValueDictionary[str, asyncio.Event] = field(default_factory=WeakValueDictionary)
    # The requests with an `Idempotency-Key` that run in this process, by tenant and key.
    claims: dict[tuple[str, str], bytes] = field(default_factory=dict)
    role: Literal["web", "worker", "both"] = "web"  # What this process does: serve, work, or both.
    watching: asyncio.Task[None] | None = None  # Looks for outcomes that others recorded.
    stopping: asyncio.Event = field(default_factory=asyncio.Event)  # Set: nothing may wait.

    # Shards of what was committed here, and is due where they are held: a drive tries to take them.
    elsewhere: set[int] = field(default_factory=set)
    inbox: Inbox = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.inbox = Inbox(self._is_ours)

    def tell(self, loop: asyncio.Event, id_: str) -> None:
        """After a commit: wake the loop that works on what has this id, in whichever process."""
        if self._is_ours(id_):
            loop.set()

    def _is_ours(self, id_: str) -> bool:
        if not (is_ours := self.database.hand_over(id_)):
            self.elsewhere.add(shard_of(id_))
        return is_ours

    @property
    def catalogue(self) -> dict[str, catalogue.Model]:
        """The models by id and by page id, loaded on first use."""
        return catalogue.load()
