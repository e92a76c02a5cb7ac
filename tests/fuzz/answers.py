"""Checks how answers are read: a subscriber's by our parser, upstream's by httpx."""

import asyncio
import itertools
import ssl
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import httpcore
import httpx
import msgspec

from service.delivery.target import Answer, SendError
from service.delivery.webhook.connection import Connection
from service.delivery.webhook.request import (
    BODY_BYTES,
    HEAD_BYTES,
    HEADERS,
    READ_BYTES,
)
from service.settings import Settings
from service.upstream import wire
from service.upstream.client import Client

UPSTREAM_BODY_BYTES = 64 * 1024
CODES = {"connection_closed", "protocol_error", "answer_too_large"}


@cache
def loop() -> asyncio.AbstractEventLoop:
    """Return a loop for tests that are not async."""
    return asyncio.new_event_loop()


# A subscriber


class Wire:
    """A transport that accepts every write and closes on `abort`."""

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
    """The result of an exchange: an answer, or the code and message of its error."""

    answer: Answer | None
    code: str
    message: str


def exchanged(pieces: Sequence[bytes]) -> Outcome:
    """Return the outcome of an exchange that receives these pieces and then ends."""
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
    assert waiter.done(), "the exchange did not end"
    assert lost == [connection]
    assert not connection.is_usable() or not transport.closing
    error = waiter.exception()
    if error is None:
        return Outcome(waiter.result(), "", "")
    assert isinstance(error, SendError), error
    return Outcome(None, error.code, str(error))


def check_answer(whole: bytes, cuts: Sequence[int]) -> Outcome:
    """Check that an answer is bounded and read alike however the network splits it."""
    outcome = exchanged([whole] if whole else [])
    bounds = itertools.pairwise([0, *cuts, len(whole)])
    pieces = [whole[start:end] for start, end in bounds if start < end]
    assert exchanged(pieces) == outcome, f"cut at {cuts}"
    if len(whole) <= 400:
        assert exchanged([whole[at : at + 1] for at in range(len(whole))]) == outcome, "by byte"
    _check_outcome(outcome)
    return outcome


def _check_outcome(outcome: Outcome) -> None:
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
    """Connects at once, and reads the given pieces."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces

    async def connect_tcp(self, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        return httpcore.AsyncMockStream(list(self._pieces))


def _client(pieces: Sequence[bytes]) -> Client:
    def new_transport() -> httpx.AsyncHTTPTransport:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        transport = httpx.AsyncHTTPTransport(verify=tls)
        transport._pool = httpcore.AsyncConnectionPool(network_backend=_Backend(pieces))
        return transport

    settings = Settings(
        upstream_url="http://upstream.test/api/v1",
        upstream_api_key="aio_key",
        upstream_timeout_seconds=5,
        upstream_body_bytes=UPSTREAM_BODY_BYTES,
    )
    return Client(settings, new_transport)


def check_response(pieces: Sequence[bytes]) -> None:
    """Check that upstream's bytes give an answer, or a reason why there is none."""
    created, task = loop().run_until_complete(both(pieces))
    assert isinstance(created, wire.Answer), created
    assert isinstance(task, wire.Answer)
    if isinstance(created, wire.NoReport) and created.status is None:
        assert created.outcome == "lost"
        assert created.message
        assert len(created.message) <= 200
    for answer in (created, task):
        assert len(msgspec.json.encode(answer)) <= 16 * UPSTREAM_BODY_BYTES


async def both(pieces: Sequence[bytes]) -> tuple[Any, Any]:
    """Return the answers to a submission and to a poll, which were both sent."""
    results: list[Any] = []
    for ask in (lambda client: client.create("/images/generations", {"prompt": "a"}), _ask):
        client = _client(pieces)
        try:
            results.append(await ask(client))
            assert all(not each.cookies.jar for each in client._clients.values()), "a cookie stayed"
        finally:
            await client.close()
    if isinstance(results[0], wire.NoReport):
        assert results[0].outcome != "put_off" or results[0].status is not None, "it was sent"
    return results[0], results[1]


def _ask(client: Client) -> Any:
    return client.poll("/tasks/n1_a")


def check_url(url: str) -> None:
    """Check that a URL which was accepted can be requested."""
    assert httpx.URL(url).host
