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

TARGET = parse_target("http://receiver.test/webhooks")


@asynccontextmanager
async def through(
    proxy: Receiver, context: ssl.SSLContext | None = None
) -> AsyncIterator[ProxiedSender]:
    url = f"http://me:secret@127.0.0.1:{proxy.port}"
    sender = ProxiedSender(url, context or tls_context())
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
            b"proxy-authorization",
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


async def test_an_answer_that_breaks_off_is_a_protocol_error() -> None:
    assert (await error_of(receivers.close_silently)).code == "protocol_error"


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


async def test_an_https_receiver_is_reached_through_a_tunnel_and_verified() -> None:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("receiver.test").configure_cert(server)
    context = tls_context()
    authority.configure_trust(context)

    async def tunnel(peer: Peer) -> None:
        assert (await peer.head()).startswith(b"CONNECT ")
        await peer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await peer.join(receiver.port)

    async with (
        receiving(always(OK), tls=server, name="receiver.test") as receiver,
        receiving(tunnel) as proxy,
    ):
        async with through(proxy, context) as sender:
            answer = await sender.send(receiver.target, HEADERS, b"{}", 60)
            assert answer.status_code == 204
        async with through(proxy) as sender:
            with pytest.raises(SendError) as caught:
                await sender.send(receiver.target, HEADERS, b"{}", 60)
            assert caught.value.code == "tls_failed"
        assert len(receiver.requests) == 1


async def test_a_proxy_that_refuses_is_a_failure_to_connect() -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.write(b"HTTP/1.1 403 Private address\r\nContent-Length: 0\r\n\r\n")

    async with receiving(script) as proxy, through(proxy) as sender:
        with pytest.raises(SendError) as caught:
            await sender.send(parse_target("https://receiver.test/"), HEADERS, b"{}", 60)
        assert caught.value.code == "connect_failed"
        assert str(caught.value) == "The outgoing proxy refused: 403."


async def test_a_proxy_that_is_not_there_is_a_failure_to_connect() -> None:
    async with receiving(always(OK)) as proxy:
        pass
    async with through(proxy) as sender:
        with pytest.raises(SendError) as caught:
            await sender.send(TARGET, HEADERS, b"{}", 60)
        assert caught.value.code == "connect_failed"


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
    assert sender._transport._pool._max_connections >= 700
    await sender.close()
