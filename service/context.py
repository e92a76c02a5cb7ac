"""What the verbs are given: settings, database, upstream, secrets, clock, and whom to wake."""

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from service.model.clock import Clock
from service.model.delivery import Due
from service.model.generation import CALLBACK_GRACE_MS, Generation
from service.settings import Settings
from service.store.sqlite.database import Database
from service.store.vault import Vault
from service.upstream import catalogue
from service.upstream.callback_url import CallbackTokens
from service.upstream.client import Client

UPSTREAM = "apiinone"


def _nobody(_due: Sequence[Due]) -> None:
    """Nobody delivers in this process: the rows wait for one that does."""


@dataclass(slots=True)
class Wakes:
    """Who sleeps until there is work. Rows are what survives; these only make it fast."""

    submit: asyncio.Event = field(default_factory=asyncio.Event)
    poll: asyncio.Event = field(default_factory=asyncio.Event)
    deadline: asyncio.Event = field(default_factory=asyncio.Event)
    deliver: Callable[[Sequence[Due]], None] = _nobody
    look: Callable[[str], None] = lambda _subscriber_id: None
    reload: Callable[[str | None], None] = lambda _subscriber_id: None
    replay: asyncio.Event = field(default_factory=asyncio.Event)
    submitting: dict[str, asyncio.Task[Generation]] = field(default_factory=dict)
    ended: dict[str, set[asyncio.Event]] = field(default_factory=dict)

    def nobody(self) -> None:
        """Have nothing handed over: another process may deliver from now on."""
        self.deliver = _nobody
        self.look = self.reload = lambda _subscriber_id: None

    def end(self, generation_id: str) -> None:
        """Wake whoever waits for the generation's outcome."""
        for event in self.ended.pop(generation_id, ()):
            event.set()


@dataclass(frozen=True, slots=True)
class Context:
    """One process's parts, put together in app.py."""

    settings: Settings
    database: Database
    client: Client
    tokens: CallbackTokens
    vault: Vault
    clock: Clock
    jitter: Callable[[], float]
    random_bytes: Callable[[int], bytes] = os.urandom
    wakes: Wakes = field(default_factory=Wakes)

    @property
    def catalogue(self) -> catalogue.Catalogue:
        """The models that upstream sells, read when they are first asked for."""
        return catalogue.load()

    def callback_url(self, generation_id: str, nonce: str, deadline_at: int) -> str | None:
        """Where upstream calls back about the generation; None where there is no public URL."""
        if self.settings.public_url is None:
            return None
        token = self.tokens.mint(generation_id, nonce, deadline_at + CALLBACK_GRACE_MS)
        return f"{self.settings.public_url}/callbacks/{UPSTREAM}/{token}"
