"""How answers are written: the head with its body, and nothing held back for long."""

import asyncio
from typing import Any

import pytest

from service.cli.outgoing import Outgoing
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


async def head_only(_scope: Any, _receive: Any, send: Any) -> None:
    """Answer as to HEAD: uvicorn writes no body then."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"five."})


@pytest.mark.parametrize("closing", [CLOSE, b""], ids=["closing", "half closed"])
async def test_an_answer_without_a_body_leaves_before_the_connection_closes(
    closing: bytes,
) -> None:
    async with serving(head_only) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + closing + b"\r\n")
        if not closing:
            writer.write_eof()
        async with asyncio.timeout(60):
            answer = await reader.read()
        writer.close()
    assert status_of(answer) == 200
    assert answer.endswith(b"\r\n\r\n")


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
