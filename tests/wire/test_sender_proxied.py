"""The sender that goes through an outgoing proxy."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from service import app
from service.delivery.target import Answer, SendError, parse_target
from service.delivery.webhook.connection import tls_context
from service.delivery.webhook.proxy import ProxiedSender
from tests.harness import settings
from tests.wire import receivers
from tests.wire.receivers import (
    HEADERS,
    LOOPS,
    OK,
    Peer,
    Receiver,
    Script,
    always,
    need,
    once,
    patiently,
    receiving,
)

pytestmark = pytest.mark.parametrize("anyio_backend", LOOPS, ids=["asyncio", "uvloop"])

TARGET = parse_target("http://receiver.test/webhooks")


@asynccontextmanager
async def through(
    proxy: Receiver, context: ssl.SSLContext | None = None
) -> AsyncIterator[ProxiedSender]:
    origin = proxy.url.removesuffix("/webhooks?from=genhook")
    sender = ProxiedSender(origin, context or tls_context())
    try:
        yield sender
    finally:
        await sender.close()


async def answer_of(script: Script) -> Answer:
    async with receiving(script) as proxy, through(proxy) as sender:
        return await sender.send(TARGET, HEADERS, b'{"id":1}', 60)


async def error_of(script: Script, deadline_seconds: float = 60) -> SendError:
    async with receiving(script) as proxy, through(proxy) as sender:
        with pytest.raises(SendError) as caught:
            await sender.send(TARGET, HEADERS, b'{"id":1}', deadline_seconds)
        need(reached=proxy.requests != [])
        assert len(proxy.requests) == 1
        return caught.value


async def test_the_proxy_gets_the_whole_url_and_nothing_is_added() -> None:
    async with receiving(always(OK)) as proxy, through(proxy) as sender:
        answer = await sender.send(TARGET, HEADERS, b'{"id":1}', 60)
        assert answer == Answer(204, (), b"")
        head, _, body = proxy.requests[0].partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        assert first == b"POST http://receiver.test/webhooks HTTP/1.1"
        assert {line.split(b":")[0].lower() for line in lines} == {
            b"host",
            b"content-type",
            b"webhook-id",
            b"content-length",
        }
        assert body == b'{"id":1}'


async def test_a_redirect_is_not_followed_and_a_cookie_not_sent_back() -> None:
    answer = b"HTTP/1.1 302 Go\r\nLocation: /b\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n"
    async with receiving(always(answer)) as proxy, through(proxy) as sender:
        for _ in range(2):
            assert (await sender.send(TARGET, HEADERS, b"{}", 60)).status_code == 302
        assert len(proxy.requests) == 2
        assert b"cookie" not in proxy.requests[1].lower()


async def test_a_body_is_kept_as_it_came_up_to_16_kib() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 20000\r\n\r\n"
    answer = await answer_of(always(head + b"x" * 20000))
    assert answer.body == b"x" * 16384


async def test_a_huge_body_leaves_its_status() -> None:
    answer = await answer_of(receivers.flood(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536))
    assert (answer.status_code, len(answer.body)) == (200, 16384)


async def test_a_large_head_is_too_large() -> None:
    head = b"HTTP/1.1 200 OK\r\n" + b"x: %s\r\n" % (b"y" * 1000) * 40
    error = await error_of(always(head + b"Content-Length: 0\r\n\r\n"))
    assert error.code == "answer_too_large"


async def test_interim_answers_without_end_are_cut() -> None:
    error = await error_of(receivers.flood(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100))
    assert (error.code, str(error)) == (
        "protocol_error",
        "The receiver sent 1xx answers without end.",
    )


async def test_chunks_are_read_up_to_the_limit_with_their_framing() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    script = receivers.flood(head, b"1;" + b"e" * 1000 + b"\r\nx\r\n")
    assert (await answer_of(script)).status_code == 200


async def test_an_answer_that_breaks_off_is_a_closed_connection() -> None:
    assert (await error_of(receivers.close_silently)).code == "connection_closed"


@pytest.mark.parametrize(
    "script",
    [
        receivers.hang,
        receivers.drip(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
    ],
)
async def test_an_answer_that_does_not_end_is_cut(script: Script) -> None:
    error = await patiently(lambda seconds: error_of(script, seconds))
    assert error.code == "timeout"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 2\nContent-Length: 2\n\nok",
    ],
)
async def test_a_2xx_counts_in_a_sloppy_answer(answer: bytes) -> None:
    assert (await answer_of(once(answer))).status_code == 200


@pytest.mark.parametrize("status", [200, 429])
async def test_a_status_whose_body_does_not_end_counts_at_the_deadline(status: int) -> None:
    script = receivers.drip(b"HTTP/1.1 %d X\r\n\r\n" % status, b"x")

    async def attempt(seconds: float) -> None:
        async with receiving(script) as proxy, through(proxy) as sender:
            try:
                answer = await sender.send(TARGET, HEADERS, b"{}", seconds)
            except SendError:
                need(reached=False)
            assert answer.status_code == status

    await patiently(attempt)


async def test_a_failure_whose_body_breaks_off_keeps_its_status_and_its_headers() -> None:
    head = b"HTTP/1.1 410 Gone\r\nRetry-After: 60\r\nContent-Length: 3\r\n\r\n"
    answer = await answer_of(once(head + b"ok"))
    assert (answer.status_code, answer.headers[0]) == (410, ("retry-after", "60"))


async def test_what_is_not_http_is_a_protocol_error() -> None:
    assert (await error_of(once(b"SSH-2.0-OpenSSH_9.9\r\n\r\n"))).code == "protocol_error"


async def test_a_reset_is_a_closed_connection() -> None:
    assert (await error_of(receivers.reset_silently)).code == "connection_closed"


def tunnel_to(receiver: Receiver) -> Script:
    async def script(peer: Peer) -> None:
        assert (await peer.head()).startswith(b"CONNECT receiver.test:%d " % receiver.port)
        await peer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await peer.join(receiver.port)

    return script


@pytest.mark.parametrize("proxy_speaks_tls", [False, True])
async def test_an_https_receiver_is_reached_through_a_tunnel_and_verified(
    *, proxy_speaks_tls: bool
) -> None:
    authority = trustme.CA()
    server, own = (ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) for _ in range(2))
    authority.issue_cert("receiver.test").configure_cert(server)
    authority.issue_cert("127.0.0.1").configure_cert(own)
    context = tls_context()
    authority.configure_trust(context)
    other = tls_context()
    trustme.CA().configure_trust(other)
    async with (
        receiving(always(OK), tls=server, name="receiver.test") as receiver,
        receiving(tunnel_to(receiver), tls=own if proxy_speaks_tls else None) as proxy,
    ):
        async with through(proxy, context) as sender:
            for _ in range(3):
                answer = await sender.send(receiver.target, HEADERS, b"{}", 60)
                assert answer.status_code == 204
            assert receiver.connections == 1
        async with through(proxy, other) as sender:
            with pytest.raises(SendError) as caught:
                await sender.send(receiver.target, HEADERS, b"{}", 60)
            assert caught.value.code == ("connect_failed" if proxy_speaks_tls else "tls_failed")
        assert len(receiver.requests) == 3


async def connect_error_of(answer: bytes) -> str:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.write(answer)

    async with receiving(script) as proxy, through(proxy) as sender:
        with pytest.raises(SendError) as caught:
            await sender.send(parse_target("https://receiver.test/"), HEADERS, b"{}", 60)
        assert caught.value.code == "connect_failed"
        return str(caught.value)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 403 Private address\r\nContent-Length: 0\r\n\r\n", "refused: 403"),
        (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", "refused: no status"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 40_000, "gave no valid answer"),
        (b"HTTP/1.1 200 OK\r\n\r\nmore", "gave no valid answer"),
        (b"", "closed the connection"),
    ],
    ids=["403", "other", "large", "more", "nothing"],
)
async def test_a_proxy_that_refuses_is_a_failure_to_connect(answer: bytes, message: str) -> None:
    assert await connect_error_of(answer) == f"The outgoing proxy {message}."


async def test_a_proxy_that_does_not_answer_is_left_at_the_deadline() -> None:
    context = tls_context()  # Loading the certificates takes longer than the short deadline.

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.gone()

    async def attempt(seconds: float) -> None:
        async with receiving(script) as proxy, through(proxy, context) as sender:
            with pytest.raises(SendError) as caught:
                await sender.send(parse_target("https://receiver.test/"), HEADERS, b"{}", seconds)
            need(reached=proxy.connections == 1)
            assert caught.value.code == "timeout"
            assert "proxy" in str(caught.value)
            assert not sender._open

    await patiently(attempt)


async def test_a_proxy_is_reached_at_another_of_its_addresses() -> None:
    async def lookup(*_: object) -> list[str]:
        return ["127.0.0.9", "127.0.0.1"]  # Nothing listens at the first one.

    async with receiving(always(OK)) as proxy, through(proxy) as sender:
        sender._lookup = lookup
        answer = await sender.send(TARGET, HEADERS, b"{}", 60)
        assert answer.status_code == 204


async def test_a_receiver_behind_a_proxy_with_two_addresses_is_tried_once() -> None:
    async def lookup(*_: object) -> list[str]:
        return ["127.0.0.1", "127.0.0.1"]

    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("receiver.test").configure_cert(server)
    async with (
        receiving(always(OK), tls=server, name="receiver.test") as receiver,
        receiving(tunnel_to(receiver)) as proxy,
        through(proxy) as sender,
    ):
        sender._lookup = lookup
        with pytest.raises(SendError) as caught:
            await sender.send(receiver.target, HEADERS, b"{}", 60)
        assert (caught.value.code, proxy.connections) == ("tls_failed", 1)


async def test_a_proxy_that_is_not_there_is_a_failure_to_connect() -> None:
    async with receiving(always(OK)) as proxy:
        pass
    async with through(proxy) as sender:
        with pytest.raises(SendError) as caught:
            await sender.send(TARGET, HEADERS, b"{}", 60)
        assert caught.value.code == "connect_failed"


@pytest.mark.parametrize(
    ("error", "code"), [(TimeoutError(), "timeout"), (OSError(), "connect_failed")]
)
async def test_a_proxy_that_is_not_found_in_time_is_told_apart(error: OSError, code: str) -> None:
    async def fail(_host: str, _port: int) -> list[str]:
        raise error

    sender = ProxiedSender("http://proxy.test:3128", tls_context())
    try:
        sender._lookup = fail
        with pytest.raises(SendError) as caught:
            await sender.send(TARGET, HEADERS, b"{}", 60)
        assert caught.value.code == code
    finally:
        await sender.close()


async def test_a_header_that_changes_the_request_is_refused() -> None:
    async with receiving(always(OK)) as proxy, through(proxy) as sender:
        with pytest.raises(ValueError, match="header"):
            await sender.send(TARGET, {"x": "a\r\nb: c"}, b"{}", 5)
        assert proxy.connections == 0


async def test_many_at_once_are_all_sent() -> None:
    async with receiving(always(OK)) as proxy, through(proxy) as sender:
        answers = await asyncio.gather(
            *(sender.send(TARGET, HEADERS, b"{}", 60) for _ in range(20))
        )
        assert [answer.status_code for answer in answers] == [204] * 20


async def test_the_proxy_gets_a_connection_for_each_slot(tmp_path: Path) -> None:
    sender = app._sender(settings(tmp_path, http_proxy="http://127.0.0.1:9", max_in_flight=700))
    assert isinstance(sender, ProxiedSender)
    assert sender._places._value >= 700
    await sender.close()
