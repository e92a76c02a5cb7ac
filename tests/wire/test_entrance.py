"""The entrance: what a client may send, how much of it, and for how long, over real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from itertools import pairwise
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from service.cli import entrance, heads, refusals, server
from service.settings import Settings
from service.telemetry.brake import Brake
from tests.contract.contract import SCHEMAS, faults
from tests.logs import Console
from tests.wire.receivers import NotReachedError, need, patiently

LIMIT = heads.HEAD_BYTES
OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"


async def send_text(send: Any, text: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(text))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the method, the path and the length of the body."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message["body"], message["more_body"]
    text = f"{scope['method']} {scope['path']} {len(body)};".encode()
    await send_text(send, text)


@asynccontextmanager
async def serving(app: Any = echo, *, grace: float = 0, **options: Any) -> AsyncIterator[int]:
    """Serve the application, with so much more time for bodies; yields the port."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(entrance, "BODY_GRACE_SECONDS", grace)
        sock = server.bind("127.0.0.1", 0)
        running = server.new_server(app, lifespan="off", settings=Settings(**options))
        task = asyncio.create_task(running.serve(sockets=[sock]))
        try:
            yield sock.getsockname()[1]
        finally:
            running.end()
            await task


async def answer_to(
    port: int, *segments: bytes, until_closed: bool = True, ends: bool = False
) -> bytes:
    """Send segments, each for itself; return what comes back until the server closes.

    With `ends` the client then says that it sends no more.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for segment in segments:
            writer.write(segment)
            await writer.drain()
            await asyncio.to_thread(lambda: None)  # The server's turn.
        if ends:
            writer.write_eof()
        async with asyncio.timeout(60):
            return await reader.read(-1 if until_closed else 65_536)
    finally:
        writer.close()


def post(path: str, body: bytes, *, more: bytes = b"", close: bool = True) -> bytes:
    ending = b"Connection: close\r\n" if close else b""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n".encode()
    return head + more + ending + b"\r\n" + body


def status_of(answer: bytes) -> int:
    return int(answer.split()[1])


def texts(answer: bytes) -> list[str]:
    """Return what `echo` answered, in order."""
    parts = answer.split(b"\r\n\r\n")[1:]
    return [part.split(b";")[0].decode() for part in parts]


@pytest.mark.parametrize("name", ["one value", "many headers", "a target", "a name"])
async def test_a_head_over_the_limit_is_431_and_the_connection_closes(name: str) -> None:
    heads = {
        "one value": b"GET / HTTP/1.1\r\nX: " + b"a" * LIMIT,
        "many headers": b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 300 + b"\r\n",
        "a target": b"GET /" + b"a" * LIMIT,
        "a name": b"GET / HTTP/1.1\r\n" + b"a" * LIMIT,
    }
    async with serving() as port:
        answer = await answer_to(port, heads[name])
    assert status_of(answer) == 431
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "head_too_large"


async def test_a_head_at_the_limit_is_served() -> None:
    head = b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: "
    head += b"a" * (LIMIT - len(head) - 4) + b"\r\n\r\n"
    async with serving() as port:
        assert texts(await answer_to(port, head)) == ["GET /a 0"]
        assert status_of(await answer_to(port, head.replace(b"X: ", b"XX: "))) == 431


@pytest.mark.parametrize("cut", [None, 40])
async def test_as_many_headers_as_the_limit_says_are_served(cut: int | None) -> None:
    head = b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + b"a:\r\n" * 254
    async with serving() as port:
        for more, status in ((b"", 200), (b"a:\r\n", 431)):
            request = head + more + b"\r\n"
            segments = [request] if cut is None else [request[:cut], request[cut:]]
            assert status_of(await answer_to(port, *segments)) == status


async def test_a_client_of_http_1_0_names_no_host() -> None:
    async with serving() as port:
        assert texts(await answer_to(port, b"GET /a HTTP/1.0\r\n\r\n")) == ["GET /a 0"]


@pytest.mark.parametrize("cut", [None, 1, 40, -20, -1])
async def test_an_offer_to_upgrade_is_ignored_and_the_body_is_kept(cut: int | None) -> None:
    request = post("/a", b"hello, body", more=OFFER, close=False)
    segments = [request] if cut is None else [request[:cut], request[cut:]]
    async with serving() as port:
        answer = await answer_to(port, *segments, until_closed=False)
    assert texts(answer) == ["POST /a 11"]


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost:", post("/", b"{}")[:-1]])
async def test_what_is_not_complete_in_time_is_408(sent: bytes) -> None:
    async with serving(head_seconds=0.1, body_seconds=0.1) as port:
        assert status_of(await answer_to(port, sent)) == 408


async def test_a_connection_that_was_refused_is_not_refused_again_when_its_time_is_up() -> None:
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))

    async def attempt(seconds: float) -> None:
        async with serving(head_seconds=seconds) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with closing(writer):
                writer.write(b"GET /" + b"a" * LIMIT)
                status = status_of(await reader.read())
                need(reached=status != 408)  # Its time was up before it was refused.
                assert status == 431
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(2 * seconds):
                        await asyncio.Event().wait()

    await patiently(attempt)
    assert not errors


async def test_a_connection_that_waits_for_its_next_request_is_not_408() -> None:
    async def attempt(seconds: float) -> None:
        async with serving(head_seconds=seconds, body_seconds=seconds) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with closing(writer):
                for _ in range(2):
                    writer.write(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
                    try:
                        answer = await reader.readuntil(b";")
                    except asyncio.IncompleteReadError as error:  # The request took too long.
                        raise NotReachedError from error
                    assert texts(answer) == ["GET /a 0"]
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(2 * seconds):
                            await reader.read(1)

    await patiently(attempt)


async def test_requests_that_are_sent_ahead_are_answered_in_order_and_few_are_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ahead: list[int] = []
    parse = entrance.Protocol._parse

    def parse_and_measure(protocol: entrance.Protocol) -> None:
        parse(protocol)
        ahead.append(len(protocol.pipeline))

    monkeypatch.setattr(entrance.Protocol, "_parse", parse_and_measure)
    count = 2_000
    requests = [f"GET /{n} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for n in range(count - 1)]
    last = f"GET /{count - 1} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    async with serving() as port:
        answer = await answer_to(port, b"".join([*requests, last]))
    assert texts(answer) == [f"GET /{n} 0" for n in range(count)]
    assert max(ahead) <= entrance.AHEAD_MAX


@pytest.mark.parametrize(
    "bad",
    [
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        b"GET http://a HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http:// HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_a_malformed_request_is_400_after_the_answers_before_it(bad: bytes) -> None:
    async with serving() as port:
        answer = await answer_to(port, post("/first", b"abc", close=False) + bad)
    first, _, second = answer.partition(b";")
    assert texts(first) == ["POST /first 3"]
    assert status_of(second) == 400
    assert json.loads(second.partition(b"\r\n\r\n")[2])["code"] == "bad_request"


@pytest.mark.parametrize("body", [b"\n\n\n", b"\r\n\r\n", b"0\r\n\r\n", b"\n" * 300])
async def test_empty_lines_in_a_chunked_body_end_nothing(body: bytes) -> None:
    head = b"POST /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    async with serving() as port:
        assert texts(await answer_to(port, head + chunked)) == [f"POST /a {len(body)}"]


async def test_a_body_in_tiny_chunks_is_read_and_endless_framing_is_refused() -> None:
    head = b"POST /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n"
    async with serving() as port:
        assert texts(await answer_to(port, head + chunks)) == ["POST /a 50000"]
        assert status_of(await answer_to(port, head + b"1;" + b"a" * 2 * LIMIT)) == 431
        trailers = head + b"0\r\n" + b"X-A: b\r\n" * (LIMIT // 4)
        assert status_of(await answer_to(port, trailers)) == 431


@pytest.mark.parametrize("extension", [";a", ";a=b", ';a="b c";d=;e', ";a=" + "b" * 1_000])
@pytest.mark.parametrize("cut", [None, 95, 98])
async def test_extensions_of_chunks_are_ignored(extension: str, cut: int | None) -> None:
    head = b"POST /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = f"5{extension}\r\nhello\r\n0{extension}\r\n\r\n".encode()
    request = head + chunks
    segments = [request] if cut is None else [request[:cut], request[cut:]]
    async with serving() as port:
        assert texts(await answer_to(port, *segments)) == ["POST /a 5"]


@pytest.mark.parametrize("extension", [" ", " ;a", "; a", ";a =b", ";a=b ", ";", ";\n"])
async def test_white_space_around_an_extension_which_nobody_may_send_is_refused(
    extension: str,
) -> None:
    """RFC 9112, 7.1.1 calls it bad; other servers measure such a chunk in other ways."""
    head = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with serving() as port:
        answer = await answer_to(port, head + f"5{extension}\r\nhello\r\n0\r\n\r\n".encode())
    assert status_of(answer) == 400


async def test_endless_framing_is_refused_though_the_body_is_complete() -> None:
    head = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"1\r\nx\r\n0\r\n\r\n"
    async with serving() as port:
        answer = await answer_to(port, head + b"0" * (LIMIT + 100) + chunk)
        assert status_of(answer) == 431
        assert answer.count(b"HTTP/1.1") == 1
        long = head + b"0" * (LIMIT - 100) + chunk
        answer = await answer_to(port, long + long + b"BAD\r\n\r\n")
    assert texts(answer)[:2] == ["POST /a 1"] * 2
    assert b"HTTP/1.1 400 " in answer


@pytest.mark.parametrize(
    "bad",
    [
        b"GET http://a HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        b"BAD\r\n\r\n",
    ],
)
async def test_the_first_request_of_a_connection_may_be_malformed(
    bad: bytes, console: Console
) -> None:
    console.configure("info")
    async with serving() as port:
        assert status_of(await answer_to(port, bad)) == 400
    assert "Traceback" not in console.text()


async def test_a_client_that_sends_no_more_gets_every_answer() -> None:
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"".join(post(f"/{n}", b"abc", close=False) for n in range(30)))
        writer.write_eof()
        async with asyncio.timeout(60):
            answer = await reader.read(-1)
        writer.close()
    assert texts(answer) == [f"POST /{n} 3" for n in range(30)]


async def test_a_client_that_goes_away_leaves_no_traceback(console: Console) -> None:
    console.configure("info")

    async def answer_much(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        headers = [(b"content-length", b"200000")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * 200_000})

    async with serving(answer_much) as port:
        for _ in range(5):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
            await writer.drain()
            writer.transport.abort()
    assert "Traceback" not in console.text()


async def test_a_connection_too_many_is_503() -> None:
    async with serving(connections_max=1) as port:
        _, first = await asyncio.open_connection("127.0.0.1", port)
        answer = await answer_to(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status_of(answer) == 503
        assert b"\r\nretry-after: 1\r\n" in answer
        first.close()


async def test_connections_far_too_many_get_no_answer_and_keep_no_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(entrance, "REFUSED_MAX", 2)
    monkeypatch.setattr(entrance, "LINGER_SECONDS", 60)
    async with serving(connections_max=1) as port:
        clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        answers = [await reader.read() for reader, _ in clients[1:]]
        assert [answer[:12] for answer in answers] == [b"HTTP/1.1 503"] * 2 + [b""] * 2
        for _, writer in clients:
            writer.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost:", 408),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * LIMIT, 431),
        (None, 503),
    ],
)
async def test_each_refusal_is_a_problem_as_the_api_makes_them(
    console: Console, monkeypatch: pytest.MonkeyPatch, sent: bytes | None, status: int
) -> None:
    monkeypatch.setattr(refusals, "_brake", Brake(1))
    console.configure("info")
    seconds = 0.1 if status == 408 else 60.0
    async with serving(head_seconds=seconds, connections_max=0 if sent is None else 9) as port:
        answer = await answer_to(port, sent or b"")
    head, _, body = answer.partition(b"\r\n\r\n")
    headers = dict(line.split(b": ") for line in head.split(b"\r\n")[1:])
    problem = json.loads(body)
    request_id = headers.pop(b"x-request-id").decode()
    assert headers.pop(b"retry-after", None) == (b"1" if status == 503 else None)
    assert headers == {
        b"content-type": b"application/problem+json",
        b"content-length": b"%d" % len(body),
        b"connection": b"close",
        b"x-content-type-options": b"nosniff",
    }
    assert problem.keys() == {"type", "title", "status", "code", "detail", "request_id"}
    assert (problem["status"], problem["request_id"]) == (status, request_id)
    assert faults(SCHEMAS["Problem"], problem) == []
    [line] = [line for line in console.lines() if line["event"] == "request.refused"]
    assert (line["status"], line["request_id"]) == (status, request_id)
    assert line["level"] == "info"  # As docs/operations.md says: a stranger's mistake is no alarm.


async def echo_headers(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the names of the headers, once the body has come."""
    while (await receive())["more_body"]:
        pass
    text = b" ".join(name for name, _ in scope["headers"])
    await send_text(send, text)


@pytest.mark.parametrize("cut", [0, 60, -20])
async def test_trailers_of_a_body_are_no_headers_of_the_request(cut: int) -> None:
    head = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n"
    request = head + b"\r\n1\r\nx\r\n0\r\nAuthorization: Bearer a\r\nX-Request-Id: b\r\n\r\n"
    async with serving(echo_headers) as port:
        answer = await answer_to(port, request[:cut], request[cut:])
    assert answer.partition(b"\r\n\r\n")[2] == b"host transfer-encoding connection"


async def refuse_at_once(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 401, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def test_a_client_that_may_keep_its_body_back_is_told_that_the_connection_ends() -> None:
    request = post("/a", b"{}", more=b"Expect: 100-continue\r\n", close=False)
    async with serving(refuse_at_once) as port:
        answer = await answer_to(port, request.removesuffix(b"{}"))  # The server closes.
    assert status_of(answer) == 401
    assert b"\r\nconnection: close\r\n" in answer.lower()


async def test_a_client_of_http_1_0_is_not_told_to_go_on() -> None:
    request = b"POST /a HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}"
    async with serving() as port:
        answer = await answer_to(port, request)
    assert (status_of(answer), texts(answer)) == (200, ["POST /a 2"])


async def test_a_client_that_is_told_to_go_on_keeps_its_connection() -> None:
    request = post("/a", b"{}", more=b"Expect: 100-continue\r\n", close=False)
    async with serving() as port:
        answer = await answer_to(port, request, post("/b", b""))
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert texts(answer)[1:] == ["POST /a 2", "POST /b 0"]


async def test_a_body_that_is_late_is_refused_with_the_requests_own_id() -> None:
    sent = post("/", b"{}", more=b"X-Request-Id: my-own\r\n")[:-1]
    async with serving(body_seconds=0.1) as port:
        answer = await answer_to(port, sent)
    assert b"\r\nx-request-id: my-own\r\n" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["request_id"] == "my-own"


async def test_malformed_requests_leave_a_line_a_second_with_their_number(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "_brake", Brake(1))
    console.configure("info")
    async with serving() as port:
        for now in [1_000] * 20 + [2_000]:
            monkeypatch.setattr(refusals, "now_ms", lambda now=now: now)
            await answer_to(port, b"NONSENSE\r\n\r\n")
    lines = [line for line in console.lines() if line["event"] == "request.refused"]
    assert [(line["code"], line["unlogged"]) for line in lines] == [
        ("bad_request", 0),
        ("bad_request", 19),
    ]


REQUESTS = st.lists(
    st.tuples(
        st.binary(max_size=40),
        st.sampled_from(["length", "chunked"]),
        st.sampled_from([b"", OFFER, b"X-Upgrade: h2c\r\n"]),
    ),
    min_size=1,
    max_size=4,
)


def encoded(requests: Sequence[tuple[bytes, str, bytes]]) -> bytes:
    """Return the requests as one stream."""
    stream = b""
    for number, (body, framing, more) in enumerate(requests):
        ending = b"Connection: close\r\n" if number == len(requests) - 1 else b""
        head = f"POST /{number} HTTP/1.1\r\nHost: x\r\n".encode()
        more = b"" if ending else more  # noqa: PLW2901
        if framing == "length":
            stream += head + b"Content-Length: %d\r\n" % len(body) + more + ending + b"\r\n" + body
        else:
            parts = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
            stream += head + b"Transfer-Encoding: chunked\r\n" + more + ending + b"\r\n" + parts
            stream += b"0\r\n" + (b"X-Trailer: x\r\n" if more else b"") + b"\r\n"
    return stream


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(requests=REQUESTS, cuts=st.lists(st.integers(0, 600), max_size=6))
def test_requests_are_answered_the_same_however_the_network_cuts_them(
    requests: list[tuple[bytes, str, bytes]], cuts: list[int]
) -> None:
    stream = encoded(requests)
    bounds = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    segments = [stream[a:b] for a, b in pairwise(bounds)]

    async def run() -> bytes:
        async with serving() as port:
            return await answer_to(port, *segments)

    bodies = [f"POST /{n} {len(body)}" for n, (body, _, _) in enumerate(requests)]
    assert texts(asyncio.run(run())) == bodies
