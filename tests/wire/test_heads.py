"""Heads as strangers write them: what the entrance makes of one is what the parser makes of it."""

import asyncio
import re
from collections.abc import Sequence

import httptools
import hypothesis
import pytest
from hypothesis import strategies as st

from service.cli import entrance, heads
from tests.wire.test_entrance import answer_to, post, serving, status_of, texts

HEAD = b"POST /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"


@pytest.mark.parametrize("size", [1, 11])
@pytest.mark.parametrize("length", [b"14", b"0000000000000000014", b"0" * 4_000 + b"14"])
async def test_a_length_with_zeros_before_it_is_the_same_length(length: bytes, size: int) -> None:
    head = HEAD + b"Content-Length: %b\r\n\r\n" % length
    body = b"x" * 14
    async with serving() as port:
        assert texts(await answer_to(port, head, body[:10], body[10:])) == ["POST /a 14"]
        assert texts(await answer_to(port, head + body[:size], body[size:])) == ["POST /a 14"]


@pytest.mark.parametrize("length", [10**15, 2**63, 2**64 - 1])
async def test_a_length_beyond_all_bounds_holds_up_nobody_else(length: int) -> None:
    head = HEAD + b"Content-Length: %d\r\n\r\n" % length
    async with serving(body_seconds=0.1) as port:
        assert status_of(await answer_to(port, head, b"x" * 10, b"x" * 4)) == 408
        assert texts(await answer_to(port, post("/b", b"abc"))) == ["POST /b 3"]


class Parsed:
    """What the parser alone makes of a stream: the bodies of its requests, and whether it errs."""

    def __init__(self, stream: bytes) -> None:
        self.begun = 0
        self.bodies: list[int] = []
        self.is_refused = False
        self._bytes = 0
        parser = httptools.HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)  # As uvicorn does.
        try:
            parser.feed_data(stream)
        except httptools.HttpParserError:
            self.is_refused = True

    def on_message_begin(self) -> None:
        self.begun, self._bytes = self.begun + 1, 0

    def on_body(self, body: bytes) -> None:
        self._bytes += len(body)

    def on_message_complete(self) -> None:
        self.bodies.append(self._bytes)


def lines(names: Sequence[str], values: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    """Return fields, often not as RFC 9112 wants them: with odd spaces, line ends and case."""
    odd_space = st.sampled_from(["", " ", "\t", " \t ", "\r\n ", "\v", "\0"])
    space = st.sampled_from(["", " "]) | odd_space
    end = st.sampled_from(["\r\n"] * 8 + ["\n", "\r", "\r\n\t\r\n", "\r\r\n"])
    colon = st.sampled_from([":"] * 8 + [" :", "", "::"])
    after = st.sampled_from([""] * 4) | odd_space
    parts = st.tuples(st.sampled_from(names), colon, space, values, after, end)
    return parts.map(lambda each: "".join(each).encode())


NUMBERS = st.builds(
    lambda sign, zeros, number: f"{sign}{'0' * zeros}{number}",
    st.sampled_from([""] * 8 + ["+", "-", "0x", "1_", "1,", "1 "]),
    st.sampled_from([0, 0, 1, 15, 16, 20, 400]),
    st.integers(0, 40) | st.integers(20, 40) | st.sampled_from(["", 10**15, 2**64 - 1, 2**64]),
)
LENGTHS = lines(["Content-Length"] * 3 + ["cONTENT-lENGTH", "Content_Length"], NUMBERS)
CODINGS = lines(
    ["Transfer-Encoding", "transfer-ENCODING"],
    st.sampled_from(["chunked", "cHunked", "gzip, chunked", "chunked, gzip", "identity", ""]),
)
OTHERS = st.sampled_from([b"X: a\r\n", b"X-Content-Length: 3\r\n", b" Content-Length: 3\r\n"])
FIELDS = st.lists(LENGTHS | LENGTHS | CODINGS | OTHERS, max_size=3).map(b"".join)
BODIES = (
    st.sampled_from([b"", b"5\r\nhello\r\n0\r\n\r\n"]) | st.binary(max_size=40) | st.just(b"x" * 40)
)
REQUESTS = st.builds(
    lambda fields, body: b"POST /a HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n" + body,
    FIELDS,
    BODIES,
)


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(requests=st.lists(REQUESTS, min_size=1, max_size=2))
def test_bytes_that_skip_the_buffer_hold_one_request(requests: list[bytes]) -> None:
    stream = b"".join(requests)
    assert Parsed(stream).begun <= 1 or not heads.is_one_request(stream)


STREAMS = st.tuples(
    st.lists(REQUESTS, min_size=1, max_size=3).map(b"".join), st.sampled_from([6, 17, 10_000])
)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(streams=st.lists(STREAMS, min_size=1, max_size=20))
def test_the_entrance_makes_of_odd_heads_what_the_parser_makes_of_them(
    streams: list[tuple[bytes, int]],
) -> None:
    async def run() -> None:
        async with serving() as port:  # Which takes longer than all the streams.
            for requests, size in streams:
                stream = requests + b"\r\n\r\n"
                segments = [stream[at : at + size] for at in range(0, len(stream), size)]
                compare(Parsed(stream), await answer_to(port, *segments, ends=True))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entrance, "LINGER_SECONDS", 60.0)  # However slowly the client sends on.
        asyncio.run(run())


def compare(parsed: Parsed, answer: bytes) -> None:
    answered = texts(answer)[: len(parsed.bodies)]
    assert answered == [f"POST /a {size}" for size in parsed.bodies]
    statuses = [200] * len(parsed.bodies) + [400] * parsed.is_refused
    assert [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", answer)] == statuses
