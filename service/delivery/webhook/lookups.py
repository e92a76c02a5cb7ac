"""Lookups of names: which one gets a thread next, so that a dead name delays no other.

A thread that waits for a name server cannot be interrupted. Names are therefore told apart by their
last lookup: quick ones, new ones of which nothing is known, and suspect ones, whose lookup failed
or was slow. Each kind has its own places, and no tenant can take all the places of a kind.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from service.delivery.target import SenderClosed, SendError

PLACES = 64  # Of each kind of name: its lookups under way at once, each in a thread.
KINDS = 3
SLOW_SECONDS = 0.5  # A lookup that takes longer makes its name suspect, until one is quick.
NAMES_MAX = 10_000  # Of quick names, and of suspect ones; the longest unused are forgotten first.
WAIT_SECONDS = 60.0  # The longest wait for a place; it is not part of the attempt's time.

Lookup = Callable[[str, int], Awaitable[Sequence[str]]]
Addresses = asyncio.Future[Sequence[str]]
_Name = tuple[str, int]  # Host and port.


class _Wait(msgspec.Struct, eq=False):
    """A tenant's wait for a place; all its attempts that need the name share it."""

    tenant: str
    name: _Name
    started: asyncio.Future[Addresses]
    attempts: int = 0


class Kind:
    """The places of one kind of name: the tenants that hold them or wait for them."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.held = Counter[str]()  # By tenant.
        self.waiting: dict[str, dict[_Name, _Wait]] = {}  # By tenant, the latest wait at the end.

    def is_free_for(self, tenant: str) -> bool:
        """True while the free places outnumber those that the tenant holds."""
        return self.places - self.held.total() > self.held[tenant]

    def take(self, tenant: str) -> None:
        """Take a place for the tenant."""
        self.held[tenant] += 1

    def give_back(self, tenant: str) -> None:
        """Free a place of the tenant."""
        self.held[tenant] -= 1
        if not self.held[tenant]:
            del self.held[tenant]

    def next_waiting(self) -> _Wait | None:
        """Take the next wait that has a place; tenants that hold the fewest come first.

        Of a tenant the latest comes first. If names hang, more may come than places are freed: in
        turn, each would then get its place when its time is nearly over.
        """
        allowed = filter(self.is_free_for, self.waiting)
        tenant = min(allowed, key=self.held.__getitem__, default=None)
        if tenant is None:
            return None
        waits = self.waiting.pop(tenant)
        _, wait = waits.popitem()
        if waits:
            self.waiting[tenant] = waits  # At the end, behind the other tenants.
        return wait

    def drop(self, wait: _Wait) -> None:
        """Drop a wait that no attempt needs any more."""
        waits = self.waiting.get(wait.tenant, {})
        if waits.get(wait.name) is wait:
            del waits[wait.name]
            if not waits:
                del self.waiting[wait.tenant]


class _Run(msgspec.Struct, eq=False):
    """A lookup under way."""

    tenant: str
    kind: Kind
    began: float
    addresses: Addresses
    timer: asyncio.TimerHandle | None = None


class Lookups:
    """Lookups by `lookup`, each name once at a time, at most `places` of a kind at once."""

    def __init__(
        self,
        lookup: Lookup,
        *,
        places: int = PLACES,
        slow_seconds: float = SLOW_SECONDS,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lookup = lookup
        self._slow_seconds = slow_seconds
        self._now = now
        self._kinds = self._quick, self._new, self._suspect = [Kind(places) for _ in range(KINDS)]
        # By what their last lookup was, the longest unused first.
        self._quick_names: dict[str, None] = {}
        self._suspect_names: dict[str, None] = {}
        self._runs: dict[_Name, _Run] = {}
        self._overlong: dict[_Name, _Run] = {}  # Slow ones that hold a place of another kind.
        self._is_closed = False

    async def start(self, host: str, port: int, tenant: str) -> Addresses:
        """Wait for a place, at most WAIT_SECONDS; return the lookup of the name once it runs."""
        name = host, port
        if self._is_closed:
            raise SenderClosed
        if name in self._runs:
            return self._runs[name].addresses
        kind = self._kind_of(host)
        if tenant not in kind.waiting and kind.is_free_for(tenant):
            return self._run(name, tenant, kind)
        started: asyncio.Future[Addresses] = asyncio.get_running_loop().create_future()
        waits = kind.waiting.setdefault(tenant, {})
        wait = waits.setdefault(name, _Wait(tenant, name, started))
        wait.attempts += 1
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                return await asyncio.shield(wait.started)
        except TimeoutError as error:
            reason = f"for {WAIT_SECONDS:.0f} s the lookups of other names took all places"
            raise SendError("dns_failed", f"{host} was not looked up: {reason}.") from error
        finally:
            wait.attempts -= 1
            if not wait.attempts:
                kind.drop(wait)

    def close(self) -> None:
        """Start no more lookups; whoever waits for one gets SenderClosed."""
        self._is_closed = True
        for kind in self._kinds:
            waits = [wait for waits in kind.waiting.values() for wait in waits.values()]
            kind.waiting.clear()
            for wait in waits:
                wait.started.set_exception(SenderClosed())
        for run in self._runs.values():
            if run.timer:
                run.timer.cancel()

    def _kind_of(self, host: str) -> Kind:
        if host in self._quick_names:
            return self._quick
        return self._suspect if host in self._suspect_names else self._new

    def _run(self, name: _Name, tenant: str, kind: Kind) -> Addresses:
        kind.take(tenant)
        addresses = asyncio.ensure_future(self._lookup(*name))
        run = self._runs[name] = _Run(tenant, kind, self._now(), addresses)
        if kind is not self._suspect:
            loop = asyncio.get_running_loop()
            run.timer = loop.call_later(self._slow_seconds, self._set_apart, name)
        addresses.add_done_callback(lambda _: self._finish(name))
        return addresses

    def _set_apart(self, name: _Name) -> None:
        """Make the name of a lookup that takes long suspect; its place follows once it can."""
        self._remember(name[0], is_quick=False)
        self._overlong[name] = self._runs[name]
        self._hand_on()

    def _finish(self, name: _Name) -> None:
        run = self._runs.pop(name)
        self._overlong.pop(name, None)
        if run.timer:
            run.timer.cancel()
        has_failed = run.addresses.cancelled() or run.addresses.exception() is not None
        is_slow = self._now() - run.began >= self._slow_seconds
        self._remember(name[0], is_quick=not (has_failed or is_slow))
        run.kind.give_back(run.tenant)
        self._hand_on()

    def _remember(self, host: str, *, is_quick: bool) -> None:
        self._quick_names.pop(host, None)
        self._suspect_names.pop(host, None)
        names = self._quick_names if is_quick else self._suspect_names
        names[host] = None
        if len(names) > NAMES_MAX:
            del names[next(iter(names))]

    def _hand_on(self) -> None:
        """Give free places away.

        Quick names get theirs back from a lookup that hangs before anything else. Suspect names
        come before lookups of new ones that hang, as new names may come without end.
        """
        self._move(self._quick)
        self._start(self._suspect)
        self._move(self._new)
        self._start(self._quick)
        self._start(self._new)

    def _move(self, kind: Kind) -> None:
        """Count slow lookups of a kind among the suspect ones, as far as there is room."""
        for name, run in list(self._overlong.items()):
            if run.kind is kind and self._suspect.is_free_for(run.tenant):
                del self._overlong[name]
                kind.give_back(run.tenant)
                self._suspect.take(run.tenant)
                run.kind = self._suspect

    def _start(self, kind: Kind) -> None:
        while not self._is_closed and (wait := kind.next_waiting()):
            run = self._runs.get(wait.name)
            addresses = run.addresses if run else self._run(wait.name, wait.tenant, kind)
            wait.started.set_result(addresses)
