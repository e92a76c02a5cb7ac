"""One deadline covers everything that a receiver could make slow."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from service.delivery.target import SendError, Target, parse_target
from service.delivery.webhook.connection import tls_context
from service.delivery.webhook.sender import WebhookSender
from tests.wire import receivers
from tests.wire.receivers import (
    HEADERS,
    LOOPS,
    Script,
    names,
    need,
    patiently,
    receiving,
    sending,
)

pytestmark = pytest.mark.parametrize("anyio_backend", LOOPS, ids=["asyncio", "uvloop"])


async def timeout_of(
    sender: WebhookSender, target: Target, deadline_seconds: float, body: bytes = b"{}"
) -> SendError:
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    with pytest.raises(SendError) as caught:
        await sender.send(target, HEADERS, body, deadline_seconds)
    elapsed_seconds = loop.time() - started_at
    assert caught.value.code == "timeout"
    assert deadline_seconds * 0.9 < elapsed_seconds < deadline_seconds + 30
    return caught.value


@pytest.mark.parametrize(
    "script",
    [
        receivers.hang,
        receivers.drip(b"", b"\r\n"),
        receivers.drip(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
        receivers.drip(b"HTTP/1.1 200 OK\n", b"x: y\n"),
        receivers.drip(b"HTTP/1.1 500 No\r\n", b"x: y\r\n"),
    ],
    ids=["silence", "line breaks", "headers", "sloppy", "failure"],
)
async def test_an_answer_that_does_not_end_is_cut(script: Script) -> None:
    async def attempt(seconds: float) -> None:
        async with receiving(script) as receiver, sending() as sender:
            await timeout_of(sender, receiver.target, seconds)
            need(reached=receiver.requests != [])
            assert len(receiver.requests) == 1

    await patiently(attempt)


@pytest.mark.parametrize("status", [200, 429])
@pytest.mark.parametrize(
    ("head", "part"),
    [
        (b"\r\n", b"x"),
        (b"Content-Length: 999\r\n\r\n", b"x"),
        (b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
    ids=["until closed", "length", "chunked"],
)
async def test_a_status_whose_body_does_not_end_counts_at_the_deadline(
    status: int, head: bytes, part: bytes
) -> None:
    script = receivers.drip(b"HTTP/1.1 %d X\r\n" % status + head, part)

    async def attempt(seconds: float) -> None:
        async with receiving(script) as receiver, sending() as sender:
            try:
                answer = await sender.send(receiver.target, HEADERS, b"{}", seconds)
            except SendError:
                need(reached=False)
            assert answer.status_code == status

    await patiently(attempt)


async def test_a_receiver_that_does_not_read_is_cut() -> None:
    async def attempt(seconds: float) -> None:
        heads: list[bytes] = []

        async def script(peer: receivers.Peer) -> None:
            heads.append(await peer.head())
            peer._reader._transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.Event().wait()

        async with receiving(script) as receiver, sending() as sender:
            await timeout_of(sender, receiver.target, seconds, b"x" * 30_000_000)
            need(reached=heads != [])

    await patiently(attempt)


async def test_the_deadline_of_a_kept_connection_is_the_same() -> None:
    async def script(peer: receivers.Peer) -> None:
        await peer.request()
        await peer.write(receivers.OK)
        await receivers.hang(peer)

    async def attempt(seconds: float) -> None:
        async with receiving(script) as receiver, sending() as sender:
            await sender.send(receiver.target, HEADERS, b"{}", 60)
            await timeout_of(sender, receiver.target, seconds)
            need(reached=len(receiver.requests) == 2)
            assert receiver.connections == 1

    await patiently(attempt)


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
        await timeout_of(sender, parse_target(f"http://127.0.0.1:{port}/"), 0.15)


async def test_addresses_that_all_hang_share_the_deadline() -> None:
    lookup = names(receiver_test=["127.0.0.1"] * 3)
    async with full_backlog() as port, sending(lookup=lookup) as sender:
        await timeout_of(sender, parse_target(f"http://receiver.test:{port}/"), 0.15)


async def test_a_handshake_that_hangs_is_cut() -> None:
    context = tls_context()  # Loading the certificates takes longer than the short deadline.

    async def attempt(seconds: float) -> None:
        async with (
            receiving(receivers.Peer.gone) as receiver,
            sending(ssl_context=context) as sender,
        ):
            target = parse_target(f"https://127.0.0.1:{receiver.port}/")
            await timeout_of(sender, target, seconds)
            need(reached=receiver.connections == 1)

    await patiently(attempt)


async def test_a_name_server_that_hangs_is_cut() -> None:
    async def lookup(_host: str, _port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    async with sending(lookup=lookup) as sender:
        await timeout_of(sender, parse_target("http://receiver.test/"), 0.15)


async def test_time_spent_on_a_name_is_missing_later() -> None:
    async def attempt(seconds: float) -> None:
        loop = asyncio.get_running_loop()

        async def lookup(_host: str, _port: int) -> Sequence[str]:
            ready = asyncio.Event()
            loop.call_later(seconds * 0.8, ready.set)
            await ready.wait()
            return ["127.0.0.1"]

        async with (
            receiving(receivers.hang, name="receiver.test") as receiver,
            sending(lookup=lookup) as sender,
        ):
            started_at = loop.time()
            with pytest.raises(SendError):
                await sender.send(receiver.target, HEADERS, b"{}", seconds)
            need(reached=loop.time() - started_at < seconds * 1.7)
            need(reached=len(receiver.requests) == 1)

    await patiently(attempt, 0.5)
