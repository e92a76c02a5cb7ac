"""Sends webhooks through an outgoing HTTP proxy, which then decides which addresses are allowed."""

import asyncio
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from service.delivery.target import PORTS, Code, SendError, Target
from service.delivery.webhook import egress, request
from service.delivery.webhook.connection import Connection
from service.delivery.webhook.sender import ADDRESSES, WebhookSender, connect_error

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r]")
P = TypeVar("P", bound=asyncio.Protocol)


class ProxiedSender(WebhookSender):
    """Sends through `proxy_url`, http or https.

    The proxy connects to https receivers by CONNECT, and sends to http receivers itself. Answers
    are read by the same code as without a proxy, and so within the same limits.
    """

    def __init__(
        self, proxy_url: str, ssl_context: ssl.SSLContext, *, connections: int = 1024
    ) -> None:
        # The policy does not count: the proxy resolves names.
        super().__init__(egress.Policy(), ssl_context=ssl_context, connections=connections)
        parts = urlsplit(proxy_url)
        self._proxy_host = parts.hostname or ""
        self._proxy_port = parts.port or PORTS[parts.scheme]
        self._proxy_context = ssl_context if parts.scheme == "https" else None

    def _encode(self, target: Target, headers: Mapping[str, str], body: bytes) -> bytes:
        if not target.tls:
            head = target.head.replace(b"POST ", b"POST " + target.origin.encode(), 1)
            target = msgspec.structs.replace(target, head=head)
        return super()._encode(target, headers, body)

    async def _connect(self, target: Target, ends_at: float) -> tuple[Connection, float]:
        """Look the proxy up, and connect through it."""
        try:
            async with asyncio.timeout_at(ends_at):
                addresses = await self._lookup(self._proxy_host, self._proxy_port)
        except TimeoutError as error:
            raise _proxy_error("was not found in time", "timeout") from error
        except OSError as error:
            raise _proxy_error("was not found") from error
        through = partial(self._open_through, addresses[:ADDRESSES], target, ends_at)
        try:
            async with asyncio.timeout_at(ends_at):
                return await self._connect_by(through, target), ends_at
        except TimeoutError as error:
            raise _proxy_error("did not connect in time", "timeout") from error
        except _UnreachableError as error:
            raise _proxy_error("could not be reached") from error
        except OSError as error:
            raise connect_error(error, target) from error

    async def _open_through(
        self, addresses: Sequence[str], target: Target, ends_at: float, connection: Connection
    ) -> None:
        """Reach the proxy at one of its addresses, and the receiver through it, once."""
        if not target.tls:
            await self._try_each(addresses, ends_at, lambda ip: self._reach(ip, lambda: connection))
            return
        transport, tunnel = await self._try_each(
            addresses, ends_at, lambda ip: self._reach(ip, _Tunnel)
        )
        try:
            await tunnel.open(transport, target)
            tls = await self._loop.start_tls(
                transport,
                connection,
                self._ssl_context,  # type: ignore[arg-type]  # `__init__` was given one
                server_hostname=target.host,
            )
        except BaseException:
            transport.abort()
            raise
        assert tls is not None
        connection.connection_made(tls)  # `start_tls` does not call it.

    async def _reach(self, ip: str, protocol: Callable[[], P]) -> tuple[asyncio.Transport, P]:
        """Connect to the proxy; OSError if that fails."""
        context = self._proxy_context
        try:
            return await self._loop.create_connection(
                protocol,
                ip,
                self._proxy_port,
                ssl=context,
                server_hostname=self._proxy_host if context else None,
            )
        except TimeoutError:
            raise
        except OSError as error:
            raise _UnreachableError from error


class _UnreachableError(OSError):
    """The proxy could not be connected to."""


class _Tunnel(asyncio.Protocol):
    """Asks a proxy to connect to a receiver."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def open(self, transport: asyncio.Transport, target: Target) -> None:
        """Return when what is written reaches the target; SendError if the proxy refuses."""
        host = f"[{target.host}]" if ":" in target.host else target.host
        authority = f"{host}:{target.port}"
        transport.write(f"CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n".encode())
        await self._answered

    def data_received(self, data: bytes) -> None:
        """Read the head of the proxy's answer; nothing may follow it, as the receiver waits."""
        self._head += data
        _, end, rest = self._head.partition(b"\r\n\r\n")
        if not end and len(self._head) <= request.HEAD_BYTES:
            return
        status = _STATUS.match(self._head)
        if status is None:
            self._end(_proxy_error("refused: no status"))
        elif not status[1].startswith(b"2"):
            # Not in its own words: they may name internal addresses, and the tenant reads this.
            self._end(_proxy_error(f"refused: {status[1].decode()}"))
        else:
            self._end(_proxy_error("gave no valid answer") if rest or not end else None)

    def connection_lost(self, _exc: Exception | None) -> None:
        """The proxy closed the connection without an answer."""
        self._end(_proxy_error("closed the connection"))

    def _end(self, error: SendError | None) -> None:
        if self._answered.done():
            return
        if error:
            self._answered.set_exception(error)
        else:
            self._answered.set_result(None)


def _proxy_error(what: str, code: Code = "connect_failed") -> SendError:
    return SendError(code, f"The outgoing proxy {what}.")
