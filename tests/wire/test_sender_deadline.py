"""One deadline covers everything that a receiver could make slow."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from service.delivery.target import SendError, Target
from service.delivery.webhook.request import parse_target
from service.delivery.webhook.sender import WebhookSender
from tests.wire import receivers
from tests.wire.receivers import HEADERS, LOOPS, Script, names, receiving, sending

pytestmark = pytest.mark.parametrize("anyio_backend", LOOPS, ids=["asyncio", "uvloop"])

DEADLINE_SECONDS = 0.15


async def timeout_of(sender: WebhookSender, target: Target, body: bytes = b"{}") -> SendError:
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    with pytest.raises(SendError) as caught:
        await sender.send(target, HEADERS, body, DEADLINE_SECONDS)
    elapsed_seconds = loop.time() - started_at
    assert caught.value.code == "timeout"
    assert DEADLINE_SECONDS * 0.9 < elapsed_seconds < DEADLINE_SECONDS + 3
    return caught.value


@pytest.mark.parametrize(
    "script",
    [
        receivers.hang,
        receivers.drip(b"", b"\r\n"),
        receivers.drip(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
        receivers.drip(b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
        receivers.drip(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n", b"x"),
        receivers.drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
    ids=["silence", "line breaks", "headers", "until closed", "length", "chunked"],
)
async def test_an_answer_that_does_not_end_is_cut(script: Script) -> None:
    async with receiving(script) as receiver, sending() as sender:
        await timeout_of(sender, receiver.target)
        assert len(receiver.requests) == 1


async def test_a_receiver_that_does_not_read_is_cut() -> None:
    async def script(peer: receivers.Peer) -> None:
        peer._reader._transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.Event().wait()

    async with receiving(script) as receiver, sending() as sender:
        await timeout_of(sender, receiver.target, b"x" * 30_000_000)


async def test_the_deadline_of_a_kept_connection_is_the_same() -> None:
    async def script(peer: receivers.Peer) -> None:
        await peer.request()
        await peer.write(receivers.OK)
        await receivers.hang(peer)

    async with receiving(script) as receiver, sending() as sender:
        await sender.send(receiver.target, HEADERS, b"{}", 5)
        await timeout_of(sender, receiver.target)
        assert receiver.connections == 1


@asynccontextmanager
async def full_backlog() -> AsyncIterator[int]:
    """A port whose listener takes no more connections."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            yield port


async def test_a_receiver_that_does_not_accept_is_cut() -> None:
    async with full_backlog() as port, sending() as sender:
        await timeout_of(sender, parse_target(f"http://127.0.0.1:{port}/"))


async def test_addresses_that_all_hang_share_the_deadline() -> None:
    lookup = names(receiver_test=["127.0.0.1"] * 3)
    async with full_backlog() as port, sending(lookup=lookup) as sender:
        await timeout_of(sender, parse_target(f"http://receiver.test:{port}/"))


async def test_a_handshake_that_hangs_is_cut() -> None:
    connected = asyncio.Event()

    async def script(peer: receivers.Peer) -> None:
        connected.set()
        await peer.gone()

    async with receiving(script) as receiver, sending() as sender:
        await timeout_of(sender, parse_target(f"https://127.0.0.1:{receiver.port}/"))
        async with asyncio.timeout(5):
            await connected.wait()  # The receiver may notice the connection only after its end.
        assert receiver.connections == 1


async def test_a_name_server_that_hangs_is_cut() -> None:
    async def lookup(_host: str, _port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    async with sending(lookup=lookup) as sender:
        await timeout_of(sender, parse_target("http://receiver.test/"))


async def test_time_spent_on_a_name_is_missing_later() -> None:
    async def lookup(_host: str, _port: int) -> Sequence[str]:
        ready = asyncio.Event()
        asyncio.get_running_loop().call_later(0.4, ready.set)
        await ready.wait()
        return ["127.0.0.1"]

    async with (
        receiving(receivers.hang, name="receiver.test") as receiver,
        sending(lookup=lookup) as sender,
    ):
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        with pytest.raises(SendError):
            await sender.send(receiver.target, HEADERS, b"{}", 0.5)
        assert loop.time() - started_at < 0.85
        assert len(receiver.requests) == 1
