"""The objects that all parts of a process share: settings, database, client, clock, signals."""

import asyncio
import os
from collections.abc import Callable, Sequence
from weakref import WeakValueDictionary

from msgspec import Struct, field

from service.model.clock import Clock
from service.model.delivery import DueDelivery
from service.settings import Settings
from service.store.database import Database
from service.store.vault import Vault
from service.telemetry.redact import Redactor
from service.upstream import catalogue
from service.upstream.callback_url import CallbackTokens
from service.upstream.client import Client

UPSTREAM = "apiinone"


def _ignore(_news: object) -> None:
    """Do nothing: the worker is another process, which finds the rows itself."""


class Inbox(Struct, frozen=True):
    """Receives committed deliveries in memory, which saves reading their rows."""

    offer: Callable[[Sequence[DueDelivery]], None] = _ignore  # Deliveries that are due now.
    refill: Callable[[str], None] = _ignore  # A subscriber with new deliveries in the database.
    reload: Callable[[str | None], None] = _ignore  # A changed subscriber; None: maybe any.


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
    inbox: Inbox = Inbox()  # The dispatcher's while this process is the worker.

    @property
    def catalogue(self) -> dict[str, catalogue.Model]:
        """The models by id and by page id, loaded on first use."""
        return catalogue.load()
