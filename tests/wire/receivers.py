"""Receivers of webhooks on loopback sockets, most of them hostile."""

import asyncio
import ipaddress
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from service.delivery.target import Target, parse_target
from service.delivery.webhook.egress import Policy
from service.delivery.webhook.sender import WebhookSender

LOCAL = Policy(
    allow_http=True,
    allow_networks=(ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128")),
)
T = TypeVar("T")
HEADERS = {"content-type": "application/json", "webhook-id": "evt_1"}
OK = b"HTTP/1.1 204 No Content\r\n\r\n"
# Far more than a sender reads and the buffers between hold: a sender that reads on is seen by what
# it has read, not by its deadline.
FLOOD_BYTES_MAX = 64 * 1024 * 1024
LOOPS = [
    "asyncio",
    ("asyncio", {"use_uvloop": True}),
]


class Receiver:
    """What came in, over all connections."""

    def __init__(self) -> None:
        self.url = ""
        self.port = 0
        self.connections = 0
        self.requests: list[bytes] = []
        self.unexpected: list[BaseException] = []

    @property
    def target(self) -> Target:
        return parse_target(self.url)


class Peer:
    """One connection, as the receiver's script sees it."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, receiver: Receiver
    ) -> None:
        self._reader, self._writer, self._receiver = reader, writer, receiver

    async def head(self) -> bytes:
        """The next request's head, for requests without a body."""
        return await self._reader.readuntil(b"\r\n\r\n")

    async def request(self) -> bytes:
        """The next whole request; raises when there is none."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        whole = head + await self._reader.readexactly(length)
        self._receiver.requests.append(whole)
        return whole

    async def handshake(self, context: ssl.SSLContext) -> None:
        """Shake hands by TLS, which has to fail; send the alert, which asyncio would drop."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.write(outgoing.read())
                incoming.write(await self._reader.read(65536))
            except ssl.SSLError:
                await self.write(outgoing.read())
                return
            else:
                raise AssertionError("the handshake succeeded")

    async def write(self, data: bytes) -> None:
        if self._writer.is_closing():  # uvloop raises RuntimeError for it.
            raise ConnectionResetError
        self._writer.write(data)
        await self._writer.drain()

    async def gone(self) -> None:
        """Wait until the sender has closed the connection."""
        while await self._reader.read(65536):
            pass

    async def join(self, port: int) -> None:
        """Pass on everything between the sender and another port of this machine."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_pipe(self._reader, writer), _pipe(reader, self._writer))

    async def beat(self, seconds: float) -> None:
        """Let time pass, or less if the sender closes the connection: that raises."""
        try:
            async with asyncio.timeout(seconds):
                await self.gone()
        except TimeoutError:
            return
        raise ConnectionResetError

    def reset(self) -> None:
        """Close with RST, as a process that crashed."""
        linger = struct.pack("ii", 1, 0)
        self._writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, linger
        )
        self._writer.transport.abort()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


Script = Callable[[Peer], Awaitable[None]]


def always(answer: bytes) -> Script:
    """Every request of every connection gets the same bytes."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.write(answer)

    return script


def once(answer: bytes) -> Script:
    """One answer for a connection, which is closed after it."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.write(answer)

    return script


def drip(start: bytes, part: bytes) -> Script:
    """`start`, and then `part` again and again, slowly and without end."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.write(start)
        while True:
            await peer.beat(0.01)
            await peer.write(part)

    return script


def flood(start: bytes, part: bytes) -> Script:
    """`start`, and then `part` as fast as it goes; nobody may read FLOOD_BYTES_MAX of it."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.write(start)
        for _ in range(FLOOD_BYTES_MAX // len(part)):
            await peer.write(part)
        raise AssertionError("the sender reads without end")

    return script


async def hang(peer: Peer) -> None:
    """The request is taken, and nothing comes back."""
    await peer.request()
    await peer.gone()


async def close_silently(peer: Peer) -> None:
    """The request is taken, and the connection closed."""
    await peer.request()


async def reset_silently(peer: Peer) -> None:
    """The request is taken, and the connection reset."""
    await peer.request()
    peer.reset()


def in_turn(*scripts: Script) -> Script:
    """A script for each connection in order; the last one serves all that follow."""
    left = list(scripts)

    async def script(peer: Peer) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(peer)

    return script


@asynccontextmanager
async def receiving(
    script: Script, *, tls: ssl.SSLContext | None = None, name: str = "127.0.0.1"
) -> AsyncIterator[Receiver]:
    """A receiver on a free port; `name` is what its URL calls it."""
    receiver = Receiver()
    running: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        receiver.connections += 1
        try:
            await script(Peer(reader, writer, receiver))
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass  # The sender went away: its right.
        except asyncio.CancelledError:
            writer.transport.abort()
        except Exception as error:  # noqa: BLE001  shown at the end
            receiver.unexpected.append(error)
        finally:
            writer.close()
            running.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    receiver.port = server.sockets[0].getsockname()[1]
    receiver.url = f"http{'s' if tls else ''}://{name}:{receiver.port}/webhooks?from=genhook"
    try:
        yield receiver
    finally:
        server.close()
        left = list(running)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        assert not receiver.unexpected, receiver.unexpected


@asynccontextmanager
async def sending(policy: Policy = LOCAL, **settings: Any) -> AsyncIterator[WebhookSender]:
    """A sender that may reach this machine, closed at the end."""
    sender = WebhookSender(policy, **settings)
    try:
        yield sender
    finally:
        await sender.close()


class NotReachedError(Exception):
    """The deadline passed before the sender got as far as the test needs."""


def need(*, reached: bool) -> None:
    """Raise NotReachedError unless the sender got as far as the test needs."""
    if not reached:
        raise NotReachedError


async def patiently(attempt: Callable[[float], Awaitable[T]], seconds: float = 0.15) -> T:
    """Call `attempt` with a deadline in seconds; after a NotReachedError, with four times as much.

    A short deadline keeps the test quick. On a busy machine it can pass before the receiver has
    even been reached, which shows nothing. The fourth and longest deadline decides.
    """
    for _ in range(3):
        try:
            return await attempt(seconds)
        except NotReachedError:
            seconds *= 4
    return await attempt(seconds)


def names(**addresses: Sequence[str]) -> Callable[[str, int], Awaitable[Sequence[str]]]:
    """A lookup that knows `receiver_test="..."` as receiver.test, and nothing else."""

    async def lookup(host: str, port: int) -> Sequence[str]:
        found = addresses.get(host.replace(".", "_"))
        if found is None:
            raise OSError("no such name")
        return found

    return lookup
