"""What the sender believes of an answer."""

import asyncio

import pytest

from service.delivery.target import Answer, SendError
from tests.wire import receivers
from tests.wire.receivers import (
    HEADERS,
    LOOPS,
    OK,
    NotReachedError,
    Script,
    always,
    once,
    patiently,
    receiving,
    sending,
)

pytestmark = pytest.mark.parametrize("anyio_backend", LOOPS, ids=["asyncio", "uvloop"])


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
NO_CONTENT = Answer(204, (), b"")


async def answer_of(script: Script) -> Answer:
    async with receiving(script) as receiver, sending() as sender:
        answer = await sender.send(receiver.target, HEADERS, b'{"id":1}', 60)
        assert len(receiver.requests) == 1
        return answer


async def error_of(script: Script, deadline_seconds: float = 60) -> SendError:
    async with receiving(script) as receiver, sending() as sender:
        with pytest.raises(SendError) as caught:
            await sender.send(receiver.target, HEADERS, b'{"id":1}', deadline_seconds)
        assert receiver.connections == 1
        assert len(receiver.requests) == 1
        return caught.value


async def connections_after_two(script: Script) -> int:
    async with receiving(script) as receiver, sending() as sender:
        for _ in range(2):
            answer = await sender.send(receiver.target, HEADERS, b"{}", 60)
            assert answer.status_code in {200, 204}
            assert answer.body in {b"", b"ok"}
        assert len(receiver.requests) == 2
        return receiver.connections


async def test_a_request_is_one_plain_post() -> None:
    async with receiving(always(OK)) as receiver, sending() as sender:
        await sender.send(receiver.target, HEADERS, b'{"id":1}', 60)
        assert receiver.requests == [
            b"POST /webhooks?from=genhook HTTP/1.1\r\n"
            b"host: 127.0.0.1:%d\r\n"
            b"content-type: application/json\r\n"
            b"webhook-id: evt_1\r\n"
            b"content-length: 8\r\n"
            b"\r\n"
            b'{"id":1}' % receiver.port
        ]


async def test_an_answer_is_status_headers_and_body() -> None:
    answer = await answer_of(
        always(
            b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nx: 1\r\nX: 2\r\nContent-Length: 4\r\n\r\nlate"
        )
    )
    assert answer == Answer(
        503,
        (("retry-after", "7"), ("x", "1"), ("x", "2"), ("content-length", "4")),
        b"late",
    )


async def test_an_answer_may_come_byte_by_byte() -> None:
    whole = CHUNKED + b"X-Y: z\r\n\r\n2\r\nok\r\n0\r\nT: r\r\n\r\n"

    async def script(peer: receivers.Peer) -> None:
        await peer.request()
        for position in range(len(whole)):
            await peer.write(whole[position : position + 1])
            await peer.beat(0.001)

    answer = await answer_of(script)
    assert (answer.status_code, answer.body) == (200, b"ok")
    assert answer.headers == (("transfer-encoding", "chunked"), ("x-y", "z"))


async def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    async with receiving(always(OK)) as elsewhere:
        answer = await answer_of(
            always(
                b"HTTP/1.1 307 Go\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n"
                % elsewhere.url.encode()
            )
        )
        assert answer.status_code == 307
        assert elsewhere.connections == 0


async def test_a_cookie_is_not_sent_back() -> None:
    cookie = b"HTTP/1.1 204 OK\r\nSet-Cookie: a=b\r\n\r\n"
    async with receiving(always(cookie)) as receiver, sending() as sender:
        for _ in range(2):
            await sender.send(receiver.target, HEADERS, b"{}", 60)
        assert receiver.requests[0] == receiver.requests[1]


async def test_a_compressed_body_stays_compressed() -> None:
    answer = await answer_of(
        always(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b")
    )
    assert answer.body == b"\x1f\x8b"


async def test_interim_answers_are_skipped() -> None:
    answer = await answer_of(
        always(b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\nHTTP/1.1 103 Hints\r\n\r\n" + OK)
    )
    assert answer == NO_CONTENT


async def test_interim_answers_without_end_are_a_protocol_error() -> None:
    error = await error_of(receivers.flood(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100))
    assert error.code == "protocol_error"


async def test_dripped_interim_answers_are_a_protocol_error() -> None:
    error = await error_of(receivers.drip(b"", b"HTTP/1.1 102 Wait\r\n\r\n"))
    assert error.code == "protocol_error"


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\r\nx: ",
        b"HTTP/1.1 200 ",
        b"HTTP/1.1 103 Hints\r\n\r\nHTTP/1.1 200 OK\r\nx",
    ],
)
async def test_a_head_without_end_is_too_large(start: bytes) -> None:
    error = await error_of(receivers.flood(start, b"a" * 1024))
    assert error.code == "answer_too_large"


async def test_headers_without_end_are_too_large() -> None:
    error = await error_of(receivers.flood(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n" * 1000))
    assert error.code == "answer_too_large"


async def test_a_large_head_in_one_piece_is_too_large() -> None:
    head = b"HTTP/1.1 200 OK\r\n" + b"x: %s\r\n" % (b"y" * 1000) * 40
    error = await error_of(always(head + b"Content-Length: 0\r\n\r\n"))
    assert error.code == "answer_too_large"


async def test_a_hundred_headers_are_kept() -> None:
    lines = b"".join(b"x-%d: y\r\n" % number for number in range(150))
    answer = await answer_of(always(b"HTTP/1.1 200 OK\r\n" + lines + b"Content-Length: 0\r\n\r\n"))
    assert len(answer.headers) == 100
    assert answer.headers[99] == ("x-99", "y")


async def test_16_kib_of_a_body_are_kept() -> None:
    answer = await answer_of(
        always(b"HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n" + b"x" * 20000)
    )
    assert answer.body == b"x" * 16384


async def test_a_body_of_exactly_16_kib_is_whole() -> None:
    answer = await answer_of(
        always(b"HTTP/1.1 200 OK\r\nContent-Length: 16384\r\n\r\n" + b"x" * 16384)
    )
    assert len(answer.body) == 16384


@pytest.mark.parametrize(
    ("start", "part"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", b"x" * 65536),
        (CHUNKED + b"\r\n", b"1\r\nx\r\n" * 9999),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536),
    ],
    ids=["length", "chunked", "until closed"],
)
async def test_a_huge_body_leaves_its_status_and_loses_the_connection(
    start: bytes, part: bytes
) -> None:
    async with receiving(receivers.flood(start, part)) as receiver, sending() as sender:
        for _ in range(2):
            answer = await sender.send(receiver.target, HEADERS, b"{}", 60)
            assert answer.status_code == 200
            assert answer.body == b"x" * 16384
        assert receiver.connections == 2


async def test_trailers_without_end_leave_the_status() -> None:
    start = CHUNKED + b"\r\n2\r\nok\r\n0\r\n"
    answer = await answer_of(receivers.flood(start, b"a: b\r\n" * 1000))
    assert (answer.status_code, answer.body) == (200, b"ok")
    assert answer.headers == (("transfer-encoding", "chunked"),)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"HTTP/1.1 099 Low\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"POST / HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_a_protocol_error(answer: bytes) -> None:
    assert (await error_of(always(answer))).code == "protocol_error"


SLOPPY = [
    CHUNKED + b"\r\nzz\r\nok\r\n0\r\n\r\n",
    CHUNKED + b"\r\n2\r\nokay\r\n0\r\n\r\n",
    CHUNKED + b"Content-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nbad header: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nx: y\r\n folded\r\n\r\n",
    b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    b"HTTP/1.1 200\n\n",
    b"HTTP/1.1 103 Early Hints\nLink: x\n\nHTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    b"HTTP/1.0 200 OK\n\nok",
]


@pytest.mark.parametrize("answer", SLOPPY)
async def test_a_2xx_counts_in_a_sloppy_answer_and_closes_the_connection(answer: bytes) -> None:
    async with receiving(always(answer)) as receiver, sending() as sender:
        for _ in range(2):
            assert (await sender.send(receiver.target, HEADERS, b"{}", 60)).status_code == 200
        assert receiver.connections == 2


@pytest.mark.parametrize("status", [301, 410, 429, 503])
@pytest.mark.parametrize(
    "rest",
    [
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\nok\r\n0\r\n\r\n",
        b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        b"Content-Length: 2\nbad header: x\n\nok",
        b"\nHTTP/1.1 200 OK\r\n\r\n",
        b"Content-Length: 3\r\n\r\nok",
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nok",
    ],
)
async def test_a_failure_in_a_sloppy_answer_keeps_its_status_and_its_headers(
    status: int, rest: bytes
) -> None:
    head = b"HTTP/1.1 %d No\r\nRetry-After: 60\r\nwebhook-delivery:disable\n" % status
    for answer in (head + rest, head.replace(b"\n", b"\r\n").replace(b"\r\r", b"\r") + rest):
        found = await answer_of(once(answer))
        assert found.status_code == status
        assert found.headers[:2] == (("retry-after", "60"), ("webhook-delivery", "disable"))


async def test_a_failure_that_does_not_end_in_time_keeps_its_status() -> None:
    async def script(peer: receivers.Peer) -> None:
        await peer.request()
        await peer.write(b"HTTP/1.1 410 Gone\r\nContent-Length: 3\r\n\r\nok")
        await peer.gone()

    async def attempt(seconds: float) -> Answer:
        async with receiving(script) as receiver, sending() as sender:
            try:
                return await sender.send(receiver.target, HEADERS, b"{}", seconds)
            except SendError as error:
                raise NotReachedError from error

    answer = await patiently(attempt)
    assert (answer.status_code, answer.body) == (410, b"ok")


async def test_a_sloppy_answer_may_come_byte_by_byte() -> None:
    async def script(peer: receivers.Peer) -> None:
        await peer.request()
        for byte in b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok":
            await peer.write(bytes((byte,)))
            await asyncio.sleep(0)  # noqa: TID251  a turn, so that each byte is a piece of its own
        await peer.gone()

    assert (await answer_of(script)).status_code == 200


async def test_a_sloppy_head_without_end_is_too_large() -> None:
    error = await error_of(receivers.flood(b"HTTP/1.1 200 OK\n", b"x: y\n" * 1000))
    assert error.code == "answer_too_large"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok",
        CHUNKED + b"\r\n2\r\nok\r\n",
        CHUNKED + b"\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100 + b"Content-Length: 3\r\n\r\nok",
    ],
)
async def test_a_2xx_whose_body_breaks_off_counts(answer: bytes) -> None:
    assert (await answer_of(once(answer))).status_code == 200


async def test_a_2xx_counts_though_its_connection_is_reset() -> None:
    async def script(peer: receivers.Peer) -> None:
        await peer.request()
        await peer.write(CHUNKED + b"\r\n2\r\nok\r\n")
        await peer.beat(0.05)
        peer.reset()

    answer = await answer_of(script)
    assert (answer.status_code, answer.body) == (200, b"ok")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 2",
        b"HTTP/1.1 200 OK\r\nx: y\r\n",
        b"HTTP/1.1 200 OK\nx: y\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 500 No\r\nContent-Length: 3\r\n",
        b"HTTP/1.1 500 No\nContent-Length: 3\n",
    ],
)
async def test_an_answer_that_breaks_off_is_none(answer: bytes) -> None:
    assert (await error_of(once(answer))).code == "connection_closed"


async def test_a_reset_is_a_closed_connection() -> None:
    assert (await error_of(receivers.reset_silently)).code == "connection_closed"


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nConnection: close\r\n"],
)
async def test_an_answer_may_end_with_its_connection(head: bytes) -> None:
    answer = await answer_of(once(head + b"\r\nok"))
    assert (answer.status_code, answer.body) == (200, b"ok")


@pytest.mark.parametrize(
    "answer",
    [
        OK,
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        CHUNKED + b"\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
    ],
)
async def test_a_whole_answer_leaves_the_connection_open(answer: bytes) -> None:
    assert await connections_after_two(always(answer)) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok, and more",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokH",
        OK + b"HTTP/1.1 500 Smuggled\r\nContent-Length: 0\r\n\r\n",
        OK + b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
async def test_a_connection_with_bytes_left_over_is_not_used_again(answer: bytes) -> None:
    assert await connections_after_two(always(answer)) == 2


async def test_a_late_second_answer_ends_the_connection() -> None:
    told = asyncio.Event()

    async def script(peer: receivers.Peer) -> None:
        await peer.request()
        await peer.write(OK)
        await told.wait()
        await peer.write(b"HTTP/1.1 500 Smuggled\r\nContent-Length: 0\r\n\r\n")
        await peer.gone()
        told.clear()
        gone.set()

    gone = asyncio.Event()
    async with (
        receiving(receivers.in_turn(script, always(OK))) as receiver,
        sending() as sender,
    ):
        await sender.send(receiver.target, HEADERS, b"{}", 60)
        told.set()
        await gone.wait()
        answer = await sender.send(receiver.target, HEADERS, b"{}", 60)
        assert answer.status_code == 204
        assert receiver.connections == 2


async def test_a_switch_of_protocols_is_told() -> None:
    error = await error_of(always(b"HTTP/1.1 101 Switching\r\n\r\n"))
    assert "status 101" in str(error)


async def test_an_answer_before_the_request_was_taken_is_an_answer() -> None:
    async def script(peer: receivers.Peer) -> None:
        await peer.head()
        await peer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await asyncio.Event().wait()  # It reads no further.

    body = b"x" * 30_000_000
    async with receiving(script) as receiver, sending() as sender:
        for number in (1, 2):
            answer = await sender.send(receiver.target, HEADERS, body, 60)
            assert answer.status_code == 413
            assert receiver.connections == number


async def test_a_2xx_counts_though_the_receiver_hangs_up_before_it_took_the_request() -> None:
    async def script(peer: receivers.Peer) -> None:
        await peer.head()
        await peer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with receiving(script) as receiver, sending() as sender:
        answer = await sender.send(receiver.target, HEADERS, b"x" * 30_000_000, 60)
        assert answer.status_code == 200


@pytest.mark.parametrize("banner", [b"SSH-2.0-OpenSSH_9.9\r\n", OK, OK * 1000])
async def test_what_comes_before_the_request_is_no_answer(banner: bytes) -> None:
    async def script(peer: receivers.Peer) -> None:
        await peer.write(banner)
        await peer.gone()

    async with receiving(script) as receiver, sending() as sender:
        answers = await asyncio.gather(
            *(sender.send(receiver.target, HEADERS, b"{}", 60) for _ in range(20)),
            return_exceptions=True,
        )
        for answer in answers:  # Whether it was asked for is a race that the receiver may win.
            if isinstance(answer, SendError):
                assert answer.code in {"connection_closed", "protocol_error"}
            else:
                assert answer == NO_CONTENT
        assert receiver.connections == 20
