"""What comes over a connection: a subscriber's answer by our parser, upstream's by httpx."""

import asyncio
import itertools
import ssl
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import httpcore
import httpx
import msgspec

from service.delivery.webhook.connection import Connection
from service.delivery.webhook.request import (
    BODY_BYTES,
    HEAD_BYTES,
    HEADERS,
    READ_BYTES,
    Answer,
    SendError,
)
from service.upstream import wire
from service.upstream.client import Client, NoAnswer, NotSent

UPSTREAM_BODY_BYTES = 64 * 1024
CODES = {"connection_closed", "protocol_error", "answer_too_large"}


@cache
def loop() -> asyncio.AbstractEventLoop:
    """A loop for those who are not async."""
    return asyncio.new_event_loop()


# A subscriber


class Wire:
    """The transport below a connection: it takes everything, and closes when told."""

    def __init__(self) -> None:
        self.closing = False

    def write(self, data: bytes) -> None:
        assert data

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = True

    def get_write_buffer_size(self) -> int:
        return 0


class Outcome(NamedTuple):
    """What came of an exchange."""

    answer: Answer | None
    code: str
    message: str


def exchanged(pieces: Sequence[bytes]) -> Outcome:
    """What an exchange makes of these pieces, one after the other, then the end."""
    lost: list[Connection] = []
    connection, transport = Connection("https://a.test", lost.append), Wire()
    connection.connection_made(transport)  # type: ignore[arg-type]  # what it uses of one
    waiter: asyncio.Future[Answer] = loop().create_future()
    connection.exchange(b"POST / HTTP/1.1\r\n\r\n", waiter)
    for piece in pieces:
        if transport.closing:
            break  # No event loop reads on.
        connection.data_received(piece)
        assert waiter.done() or connection.received_bytes <= READ_BYTES
        assert len(connection._body) <= BODY_BYTES
        assert len(connection._headers) <= HEADERS
        if not waiter.done() and not connection._status:
            assert connection.received_bytes <= HEAD_BYTES
    connection.connection_lost(None)
    assert waiter.done(), "an exchange without an end"
    assert lost == [connection]
    assert not connection.is_usable() or not transport.closing
    error = waiter.exception()
    if error is None:
        return Outcome(waiter.result(), "", "")
    assert isinstance(error, SendError), error
    assert error.maybe_received
    return Outcome(None, error.code, str(error))


def hold_answer(whole: bytes, cuts: Sequence[int]) -> Outcome:
    """Bounded, ended, and the same wherever the network cuts it."""
    outcome = exchanged([whole] if whole else [])
    bounds = itertools.pairwise([0, *cuts, len(whole)])
    pieces = [whole[start:end] for start, end in bounds if start < end]
    assert exchanged(pieces) == outcome, f"cut at {cuts}"
    if len(whole) <= 400:
        assert exchanged([whole[at : at + 1] for at in range(len(whole))]) == outcome, "by byte"
    _hold_outcome(outcome)
    return outcome


def _hold_outcome(outcome: Outcome) -> None:
    answer = outcome.answer
    if answer is None:
        assert outcome.code in CODES
        assert len(outcome.message) < 200
        assert outcome.message.isprintable()
        return
    assert 200 <= answer.status_code <= 999
    assert len(answer.headers) <= HEADERS
    assert sum(len(name) + len(value) for name, value in answer.headers) <= HEAD_BYTES
    assert all(name == name.lower() for name, _ in answer.headers)
    assert len(answer.body) <= BODY_BYTES
    msgspec.json.encode(answer)


# Upstream


class _Backend(httpcore.AsyncNetworkBackend):
    """Connects at once, and reads what it was given."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces

    async def connect_tcp(self, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        return httpcore.AsyncMockStream(list(self._pieces))


def _client(pieces: Sequence[bytes]) -> Client:
    def transport() -> httpx.AsyncHTTPTransport:
        made = httpx.AsyncHTTPTransport(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        made._pool = httpcore.AsyncConnectionPool(network_backend=_Backend(pieces))
        return made

    return Client(
        "http://upstream.test/api/v1",
        "aio_key",
        timeout_seconds=5,
        body_bytes_max=UPSTREAM_BODY_BYTES,
        transport=transport,
    )


def hold_response(pieces: Sequence[bytes]) -> None:
    """An answer, or words for why there is none; a request that left is never `NotSent`."""
    created, asked = loop().run_until_complete(both(pieces))
    assert isinstance(created, wire.CreateAnswer | NoAnswer), created
    assert isinstance(asked, wire.TaskAnswer)
    if isinstance(created, NoAnswer):
        assert len(created.message) <= 200
    for answer in (created, asked):
        assert len(msgspec.json.encode(answer)) <= 16 * UPSTREAM_BODY_BYTES


async def both(pieces: Sequence[bytes]) -> tuple[Any, Any]:
    results: list[Any] = []
    for ask in (lambda client: client.create("/images/generations", {"prompt": "a"}), _ask):
        client = _client(pieces)
        try:
            results.append(await ask(client))
            assert all(not each.cookies.jar for each in client._clients.values()), "a cookie stayed"
        finally:
            await client.close()
    assert not isinstance(results[0], NotSent)
    return results[0], results[1]


def _ask(client: Client) -> Any:
    return client.ask("/tasks/n1_a")


def hold_url(url: str) -> None:
    """A URL that was accepted can be asked."""
    assert httpx.URL(url).host
