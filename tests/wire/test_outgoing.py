"""How answers are written: the head with its body, and nothing held back for long."""

import asyncio
from typing import Any

import pytest

from service.cli.entrance import Protocol
from service.cli.flow import Flow
from service.cli.outgoing import Outgoing
from tests.logs import Console
from tests.wire.test_entrance import answer_to, serving, status_of

HEAD = b"HEAD /a HTTP/1.1\r\nHost: x\r\n"
CLOSE = b"Connection: close\r\n"


class Transport:
    """Records what is written in one call each."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes) -> None:
        assert not self.is_closed
        self.written.append(data)

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(parts))

    def is_closing(self) -> bool:
        return self.is_closed


def outgoing_to(transport: Any) -> Outgoing:
    return Outgoing(transport, asyncio.get_running_loop(), lambda: None)


async def test_the_head_and_the_body_of_an_answer_are_written_in_one_call() -> None:
    outgoing = outgoing_to(transport := Transport())
    outgoing.write(b"head")
    assert transport.written == []
    outgoing.write(b"body")
    assert transport.written == [b"headbody"]


async def test_what_nothing_follows_is_written_in_the_next_round_of_the_loop_and_once() -> None:
    outgoing = outgoing_to(transport := Transport())
    outgoing.write(b"head")
    await asyncio.sleep(0)  # noqa: TID251  one round
    assert transport.written == [b"head"]
    outgoing.flush()
    assert transport.written == [b"head"]


async def test_nothing_is_written_once_the_connection_closes() -> None:
    outgoing = outgoing_to(transport := Transport())
    outgoing.write(b"head")
    transport.is_closed = True
    outgoing.flush()
    assert transport.written == []


async def ending(port: int, request: bytes) -> bytes:
    """Send a request, and then no more; return what comes until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        writer.write_eof()
        async with asyncio.timeout(60):
            return await reader.read()
    finally:
        writer.close()


async def head_only(_scope: Any, _receive: Any, send: Any) -> None:
    """Answer as to HEAD: uvicorn writes no body then."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"five."})


@pytest.mark.parametrize("closing", [CLOSE, b""], ids=["closing", "half closed"])
async def test_an_answer_without_a_body_leaves_before_the_connection_closes(
    closing: bytes,
) -> None:
    async with serving(head_only) as port:
        send = answer_to if closing else ending
        answer = await send(port, HEAD + closing + b"\r\n")
    assert status_of(answer) == 200
    assert answer.endswith(b"\r\n\r\n")


async def test_an_answer_that_breaks_off_leaves_as_far_as_it_was_made() -> None:
    """A client that got no byte would take a reused connection for a stale one, and repeat."""

    async def fail(scope: Any, _receive: Any, send: Any) -> None:
        length = [(b"content-length", b"8")]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        if scope["path"] == "/body":
            for part in (b"one.", b"two"):
                await send({"type": "http.response.body", "body": part, "more_body": True})
        raise RuntimeError("the application fails after its head")

    async with serving(fail) as port:
        for path, end in ((b"/", b"\r\n\r\n"), (b"/body", b"\r\n\r\none.two")):
            answer = await answer_to(port, b"POST %b HTTP/1.1\r\nHost: x\r\n\r\n" % path)
            assert status_of(answer) == 200
            assert answer.endswith(end)


async def test_what_was_begun_leaves_when_the_client_ends_in_the_middle_of_a_request() -> None:
    async def begin(_scope: Any, receive: Any, send: Any) -> None:
        length = [(b"content-length", b"8")]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        for part in (b"one.", b"two"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\ncut"
    async with serving(begin) as port:
        assert (await ending(port, request)).endswith(b"\r\n\r\none.two")


async def test_a_request_that_is_refused_before_it_starts_writes_nothing(console: Console) -> None:
    async def read(_scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        await send({"type": "http.response.start", "status": 500, "headers": []})

    console.configure("info")
    bad = (
        b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    async with serving(read) as port:
        for _ in range(20):
            answer = await answer_to(port, bad + b"zz")
            assert status_of(answer) == 400
            assert answer.count(b"HTTP/1.1 ") == 1
    assert {line["event"] for line in console.lines()} == {"request.refused"}


async def test_an_empty_line_after_a_request_costs_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """RFC 9112, 2.2: some clients send one."""
    may_answer = asyncio.Event()
    end = Protocol.eof_received

    def end_and_answer(protocol: Protocol) -> bool:
        asyncio.get_running_loop().call_soon(may_answer.set)
        return end(protocol)

    monkeypatch.setattr(Protocol, "eof_received", end_and_answer)

    async def late(_scope: Any, _receive: Any, send: Any) -> None:
        await may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"late"})

    async with serving(late) as port:
        assert b"late" in await ending(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n\r\n")


@pytest.mark.parametrize("segments", [(b"\r\n\r\n",), (b"\r\n", b"\r\n")])
async def test_an_empty_line_begins_no_head_that_is_waited_for(
    segments: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[str | None] = []
    watch = Flow.watch

    def note(flow: Flow) -> None:
        watch(flow)
        waits.append(flow.awaited)

    monkeypatch.setattr(Flow, "watch", note)
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for more in ((), segments):
            writer.write(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n" + b"".join(more))
            async with asyncio.timeout(60):
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
                assert await reader.readuntil(b";") == b"GET /a 0;"
            for segment in segments:
                writer.write(segment)
        writer.write(b"GET /b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(60):
            assert (await reader.read()).endswith(b"GET /b 0;")
        writer.close()
    assert waits[0] == "head"
    assert set(waits[1:]) == {None}


async def test_each_part_of_a_slow_answer_leaves_before_the_next_is_made() -> None:
    may_go_on = asyncio.Event()

    async def slow(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (b"one", b"two", b"three"):
            await may_go_on.wait()
            may_go_on.clear()
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async with serving(slow) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(60):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            for part in (b"one", b"two", b"three"):
                may_go_on.set()
                assert await reader.readuntil(part + b"\r\n") == b"%x\r\n%b\r\n" % (len(part), part)
            assert await reader.readuntil(b"0\r\n\r\n")
        writer.close()


async def test_answers_to_requests_sent_ahead_come_in_order_with_and_without_bodies() -> None:
    async def count(scope: Any, _receive: Any, send: Any) -> None:
        name = [(b"content-length", b"2"), (b"x-path", scope["path"].encode())]
        await send({"type": "http.response.start", "status": 200, "headers": name})
        await send({"type": "http.response.body", "body": b"ok"})

    requests = b"".join(
        b"%b /%d HTTP/1.1\r\nHost: x\r\n%b\r\n"
        % (b"HEAD" if n % 3 else b"GET", n, CLOSE if n == 8 else b"")
        for n in range(9)
    )
    async with serving(count) as port:
        answers = await answer_to(port, requests)
    paths = [line for line in answers.split(b"\r\n") if line.startswith(b"x-path")]
    assert paths == [b"x-path: /%d" % n for n in range(9)]
