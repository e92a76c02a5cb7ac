"""Sends webhooks: one POST each, to checked addresses, over connections that are reused."""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import TypeVar

from service.delivery.target import Answer, SenderClosed, SendError, Target
from service.delivery.webhook import egress
from service.delivery.webhook.connection import Connection, tls_context, tls_reason
from service.delivery.webhook.lookups import Addresses, Lookup, Lookups
from service.delivery.webhook.request import encode_request

ADDRESSES = 4  # Tried in turn for one attempt.
# If a connection ends later than that, the receiver has read the request and gave no answer.
REPEAT_SECONDS = 1.0
T = TypeVar("T")


class WebhookSender:
    """Sends over connections that all targets of one origin share.

    A new connection resolves the name anew and goes to an address that `policy` allows; a reused
    one stays on the address that was checked. Create it in the event loop that it runs in. Without
    an `ssl_context`, one is made for the first https target. `connections` is the limit over all
    targets, and an idle connection is closed after `idle_seconds`.
    """

    def __init__(
        self,
        policy: egress.Policy,
        *,
        ssl_context: ssl.SSLContext | None = None,
        lookup: Lookup | None = None,
        connections: int = 1024,
        idle_per_origin: int = 512,
        idle_seconds: float = 30.0,
    ) -> None:
        self._policy = policy
        self._ssl_context = ssl_context
        self._lookup = lookup or egress.SystemLookup()
        self._lookups = Lookups(self._lookup)
        self._idle_per_origin = idle_per_origin
        self._idle_seconds = idle_seconds
        self._loop = asyncio.get_running_loop()
        self._places = asyncio.Semaphore(connections)
        self._waiting = 0  # Sends that wait for one of the places.
        self._open: set[Connection] = set()  # Connecting ones too: each holds a place.
        self._idle: dict[str, list[Connection]] = {}  # By origin, longest idle first.
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._closed: asyncio.Event | None = None

    async def send(
        self, target: Target, headers: Mapping[str, str], body: bytes, deadline_seconds: float
    ) -> Answer:
        """POST `body` to `target`; return the receiver's answer, or raise SendError.

        `deadline_seconds` covers resolving, connecting, TLS, writing, and the whole answer, but not
        the wait for a place to resolve the name (webhook/lookups.py). ValueError for headers that
        cannot be sent (`request.refuse_header`).

        A request is written a second time only if it went out on a reused connection that the
        receiver may have closed before: it ended soon, without one byte of an answer.
        """
        request = self._encode(target, headers, body)
        began = self._loop.time()
        ends_at = began + deadline_seconds
        connection = self._take_idle(target.origin)
        if connection is not None:
            try:
                return await self._exchange(connection, request, ends_at)
            except SendError as error:
                is_late = self._loop.time() - began > REPEAT_SECONDS
                if error.code != "connection_closed" or connection.received_bytes or is_late:
                    raise
        connection, ends_at = await self._connect(target, ends_at)
        return await self._exchange(connection, request, ends_at)

    async def close(self) -> None:
        """Close all connections; whoever waits for an answer gets SenderClosed."""
        self._closed = asyncio.Event()
        self._lookups.close()
        if isinstance(self._lookup, egress.SystemLookup):  # Its threads would not end.
            self._lookup.close()
        if self._sweep_timer:
            self._sweep_timer.cancel()
        for connection in list(self._open):
            connection.fail(SenderClosed())
        if self._open:
            await self._closed.wait()

    def _encode(self, target: Target, headers: Mapping[str, str], body: bytes) -> bytes:
        return encode_request(target, headers, body)

    async def _exchange(self, connection: Connection, request: bytes, ends_at: float) -> Answer:
        waiter: asyncio.Future[Answer] = self._loop.create_future()
        timer = self._loop.call_at(ends_at, connection.expire)
        try:
            connection.exchange(request, waiter)
            answer = await waiter
        except BaseException:  # Cancellation too: the answer would have no reader.
            connection.abort()
            raise
        finally:
            timer.cancel()
            del waiter  # Its error holds this frame: both would keep the request.
        self._put_back(connection)
        return answer

    async def _connect(self, target: Target, ends_at: float) -> tuple[Connection, float]:
        """Open a connection to one of the target's addresses, tried in turn.

        Return it with the end of the attempt, which is later by the wait for a place.
        """
        if not (target.tls or self._policy.allow_http):
            raise SendError("address_refused", "The URL must use https.")

        async def lookup(host: str, port: int) -> Sequence[str]:
            nonlocal ends_at
            asked_at = self._loop.time()
            running = await self._lookups.start(host, port, target.tenant)
            ends_at += self._loop.time() - asked_at
            return await self._finish_lookup(running, host, ends_at)

        def connect(ip: str) -> Awaitable[Connection]:
            return self._connect_by(partial(self._open_transport, ip, target), target)

        addresses = await egress.resolve(target.host, target.port, self._policy, lookup)
        try:
            return await self._try_each(addresses[:ADDRESSES], ends_at, connect), ends_at
        except OSError as error:
            raise connect_error(error, target) from error

    async def _finish_lookup(self, running: Addresses, host: str, ends_at: float) -> Sequence[str]:
        try:
            async with asyncio.timeout_at(ends_at):
                return await asyncio.shield(running)
        except TimeoutError as error:
            raise SendError("timeout", f"{host} was not resolved in time.") from error
        except asyncio.CancelledError:
            if running.cancelled():  # By `close`, not the attempt's own.
                raise SenderClosed from None
            raise

    async def _try_each(
        self, addresses: Sequence[str], ends_at: float, connect: Callable[[str], Awaitable[T]]
    ) -> T:
        """Return what the first address gives that can be connected to; else its OSError."""
        cause: OSError = TimeoutError()
        for index, ip in enumerate(addresses):
            # An equal share of the time that is left, so that each address gets its turn.
            seconds = (ends_at - self._loop.time()) / (len(addresses) - index)
            try:
                async with asyncio.timeout(seconds):
                    return await connect(ip)
            except OSError as error:
                cause = error
            if self._closed:
                raise SenderClosed
        raise cause

    async def _connect_by(
        self, open_transport: Callable[[Connection], Awaitable[None]], target: Target
    ) -> Connection:
        if target.tls and self._ssl_context is None:
            self._ssl_context = tls_context()
        await self._take_place()
        connection = Connection(target.origin, self._remove)
        self._open.add(connection)
        try:
            await open_transport(connection)
        except BaseException:
            connection.abort()
            self._remove(connection)
            raise
        if self._closed:
            connection.abort()
            raise SenderClosed
        if not connection.is_usable():
            connection.abort()
            raise SendError("connection_closed", "The connection was closed before its use.")
        return connection

    async def _open_transport(self, ip: str, target: Target, connection: Connection) -> None:
        await self._loop.create_connection(
            lambda: connection,
            ip,
            target.port,
            ssl=self._ssl_context if target.tls else None,
            server_hostname=target.host if target.tls else None,
        )

    async def _take_place(self) -> None:
        """Wait for a place; if all are taken, close the connection that is idle for longest."""
        if self._places.locked():
            oldest = (idle[0] for idle in self._idle.values() if idle)
            longest = min(oldest, key=attrgetter("idle_since"), default=None)
            if longest:
                self._idle[longest.origin].pop(0).abort()
        self._waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1

    def _take_idle(self, origin: str) -> Connection | None:
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()  # The latest one, so that surplus ones age and are closed.
            if connection.is_usable():
                return connection
        return None

    def _put_back(self, connection: Connection) -> None:
        full = len(self._idle.get(connection.origin, ())) >= self._idle_per_origin
        if full or self._waiting or self._closed or not connection.is_usable():
            connection.abort()
            return
        connection.idle_since = self._loop.time()
        self._idle.setdefault(connection.origin, []).append(connection)
        if self._sweep_timer is None:
            self._sweep_timer = self._loop.call_later(self._idle_seconds, self._sweep)

    def _sweep(self) -> None:
        """Close connections that are idle for too long, and plan the next sweep."""
        self._sweep_timer = None
        horizon = self._loop.time() - self._idle_seconds
        for idle in self._idle.values():
            while idle and idle[0].idle_since <= horizon:
                idle.pop(0).abort()
        self._idle = {origin: idle for origin, idle in self._idle.items() if idle}
        if self._idle:
            idle_since = min(idle[0].idle_since for idle in self._idle.values())
            due_at = idle_since + self._idle_seconds
            self._sweep_timer = self._loop.call_at(due_at, self._sweep)

    def _remove(self, connection: Connection) -> None:
        """Free the place of a connection that is closed or never opened, once."""
        if connection not in self._open:
            return
        self._open.remove(connection)
        self._places.release()
        with contextlib.suppress(KeyError, ValueError):  # It was not idle.
            self._idle[connection.origin].remove(connection)
        if self._closed and not self._open:
            self._closed.set()


def connect_error(error: OSError, target: Target) -> SendError:
    """Translate the reason why no connection was opened."""
    match error:
        case TimeoutError():
            return SendError("timeout", f"{target.host} could not be connected to in time.")
        case ssl.SSLCertVerificationError():
            return SendError("tls_failed", f"The certificate was refused: {error.verify_message}")
        case ConnectionRefusedError():
            return SendError("connect_refused", f"{target.host} refused the connection.")
        case ssl.SSLError() if target.tls:
            reason = tls_reason(error)
            message = f"{target.host} did not complete the TLS handshake: {reason}."
            return SendError("tls_failed", message)
        case ConnectionError() if target.tls:
            return SendError("tls_failed", f"{target.host} broke the TLS handshake off.")
    return SendError("connect_failed", f"{target.host} could not be connected to.")
