"""Lookups of names: which one gets a thread next, so that a dead name delays no other.

A thread that waits for a name server cannot be interrupted. Names that failed or were slow lately
therefore wait apart, for one half of the places, and no tenant can take all of either half.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from service.delivery.target import SenderClosed, SendError

PLACES = 128  # Lookups under way at once, each in a thread; one half is for suspect names.
SLOW_SECONDS = 0.5  # A lookup that takes longer makes its name suspect.
SUSPECT_SECONDS = 30.0  # How long a name that failed or was slow waits apart.
SUSPECTS_MAX = 10_000  # Names that are remembered; the oldest are forgotten first.
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


class Half:
    """One half of the places: the tenants that hold or await them. It has no clock or threads."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.held = Counter[str]()  # By tenant.
        self.waiting: dict[str, dict[_Name, _Wait]] = {}  # By tenant, each in turn.

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
        """Take the next wait that has a place; tenants that hold the fewest come first."""
        allowed = filter(self.is_free_for, self.waiting)
        tenant = min(allowed, key=self.held.__getitem__, default=None)
        if tenant is None:
            return None
        waits = self.waiting.pop(tenant)
        wait = waits.pop(next(iter(waits)))
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
    half: Half
    began: float
    timer: asyncio.TimerHandle | None = None


class Lookups:
    """Lookups by `lookup`, each name once at a time, at most `places` at once."""

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
        self._suspect, self._fresh = Half(places // 2), Half(places - places // 2)
        self._running: dict[_Name, Addresses] = {}
        self._runs: dict[_Name, _Run] = {}
        self._overlong: dict[_Name, _Run] = {}  # Slow ones that still hold a fresh place.
        self._suspect_until: dict[str, float] = {}
        self._is_closed = False

    async def start(self, host: str, port: int, tenant: str) -> Addresses:
        """Wait for a place, at most WAIT_SECONDS; return the lookup of the name once it runs."""
        name = host, port
        if self._is_closed:
            raise SenderClosed
        if name in self._running:
            return self._running[name]
        half = self._suspect if self._is_suspect(host) else self._fresh
        if tenant not in half.waiting and half.is_free_for(tenant):
            return self._run(name, tenant, half)
        started: asyncio.Future[Addresses] = asyncio.get_running_loop().create_future()
        waits = half.waiting.setdefault(tenant, {})
        wait = waits.setdefault(name, _Wait(tenant, name, started))
        wait.attempts += 1
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                return await asyncio.shield(wait.started)
        except TimeoutError as error:
            raise SendError("dns_failed", f"{host} waits behind names that fail.") from error
        finally:
            wait.attempts -= 1
            if not wait.attempts:
                half.drop(wait)

    def close(self) -> None:
        """Start no more lookups; whoever waits for one gets SenderClosed."""
        self._is_closed = True
        for half in (self._suspect, self._fresh):
            waits = [wait for waits in half.waiting.values() for wait in waits.values()]
            half.waiting.clear()
            for wait in waits:
                wait.started.set_exception(SenderClosed())
        for run in self._runs.values():
            if run.timer:
                run.timer.cancel()

    def _is_suspect(self, host: str) -> bool:
        return self._suspect_until.get(host, 0.0) > self._now()

    def _run(self, name: _Name, tenant: str, half: Half) -> Addresses:
        half.take(tenant)
        run = self._runs[name] = _Run(tenant, half, self._now())
        if half is self._fresh:
            loop = asyncio.get_running_loop()
            run.timer = loop.call_later(self._slow_seconds, self._set_apart, name)
        lookup = self._running[name] = asyncio.ensure_future(self._lookup(*name))
        lookup.add_done_callback(lambda _: self._finish(name))
        return lookup

    def _set_apart(self, name: _Name) -> None:
        """Move a lookup that takes long to the half for suspect names, once there is room."""
        self._remember(name[0])
        self._overlong[name] = self._runs[name]
        self._hand_on()

    def _finish(self, name: _Name) -> None:
        lookup, run = self._running.pop(name), self._runs.pop(name)
        self._overlong.pop(name, None)
        if run.timer:
            run.timer.cancel()
        has_failed = lookup.cancelled() or lookup.exception() is not None
        if has_failed or self._now() - run.began >= self._slow_seconds:
            self._remember(name[0])
        else:
            self._suspect_until.pop(name[0], None)
        run.half.give_back(run.tenant)
        self._hand_on()

    def _remember(self, host: str) -> None:
        self._suspect_until.pop(host, None)  # So that the oldest stay first.
        self._suspect_until[host] = self._now() + SUSPECT_SECONDS
        if len(self._suspect_until) > SUSPECTS_MAX:
            del self._suspect_until[next(iter(self._suspect_until))]

    def _hand_on(self) -> None:
        """Give free places away: slow lookups move first, which frees places for fresh names."""
        for name, run in list(self._overlong.items()):
            if self._suspect.is_free_for(run.tenant):
                del self._overlong[name]
                run.half.give_back(run.tenant)
                self._suspect.take(run.tenant)
                run.half = self._suspect
        for half in (self._fresh, self._suspect):
            while not self._is_closed and (wait := half.next_waiting()):
                running = self._running.get(wait.name)
                wait.started.set_result(running or self._run(wait.name, wait.tenant, half))
