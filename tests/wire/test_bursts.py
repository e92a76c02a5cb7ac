"""Bursts and clients that read nothing: what the entrance lets them take from others."""

import asyncio
import socket
from functools import partial
from typing import Any

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.cli import entrance, heads, readers, server, turns
from service.cli.outgoing import Outgoing
from service.cli.turns import Turns
from service.settings import Settings
from tests.wire.receivers import LOOPS
from tests.wire.test_entrance import answer_to, echo, post, serving, status_of, texts

UVLOOP = pytest.mark.parametrize("anyio_backend", [LOOPS[1]], ids=["uvloop"])
ANSWER_BYTES = 32 * 1024 * 1024
CHUNKED_OPEN = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKED = CHUNKED_OPEN.replace(b"Host: x", b"Host: x\r\nConnection: close")


async def pass_round() -> None:
    """Let the loop run what is ready."""
    loop = asyncio.get_running_loop()
    passed = loop.create_future()
    loop.call_soon(passed.set_result, None)
    await passed


async def test_no_round_starts_more_requests_than_its_share_and_all_start_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts: list[int] = []
    begin_round = Turns._begin_round

    def note(self: Turns) -> None:
        before = len(started)
        begin_round(self)
        counts.append(len(started) - before)

    monkeypatch.setattr(Turns, "_begin_round", note)
    waiting, started = Turns(), list[int]()
    for number in range(100):
        waiting.take(partial(started.append, number))
    assert len(started) == turns.STARTS_MAX
    while len(started) < 100:
        await pass_round()
    assert max(counts) == turns.STARTS_MAX
    assert started == [*range(100)]
    for _ in range(3):
        await pass_round()
    waiting.take(partial(started.append, 100))
    assert started[-1] == 100


@UVLOOP
async def test_connections_that_come_together_are_taken_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Any] = []
    connection_made = entrance.Protocol.connection_made

    def note(self: entrance.Protocol, transport: asyncio.Transport) -> None:
        made.append(transport)
        connection_made(self, transport)

    monkeypatch.setattr(entrance.Protocol, "connection_made", note)
    async with serving() as port:
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(120)]
        rounds = 0
        while len(made) < 120:
            await pass_round()
            rounds += 1
        assert rounds < 30  # libuv alone takes one in each.
        for client in clients:
            client.close()


@pytest.mark.parametrize("anyio_backend", LOOPS, ids=["asyncio", "uvloop"])
async def test_a_connection_that_opens_while_the_server_ends_holds_up_no_end() -> None:
    """The acceptor has taken it, and the loop is still making its transport."""
    loop = asyncio.get_running_loop()
    sock = server.bind("127.0.0.1", 0)
    running = server.new_server(echo, lifespan="off", settings=Settings(head_seconds=600))
    serving = asyncio.create_task(running.serve(sockets=[sock]))
    while not running.started:
        await pass_round()
    running.end(loop.time() + 600)
    while not hasattr(running.server_state, "is_ending"):
        await pass_round()
    client, taken = socket.socketpair()
    client.setblocking(False)
    taken.setblocking(False)
    await loop.connect_accepted_socket(running._new_protocol, taken)
    async with asyncio.timeout(60):
        assert await loop.sock_recv(client, 1) == b""
        await serving
    client.close()


async def large(_scope: Any, _receive: Any, send: Any) -> None:
    headers = [(b"content-length", b"%d" % ANSWER_BYTES)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"x" * ANSWER_BYTES})


@pytest.mark.parametrize("anyio_backend", LOOPS, ids=["asyncio", "uvloop"])
async def test_a_client_that_reads_nothing_loses_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost = asyncio.Event()
    connection_lost = entrance.Protocol.connection_lost

    def note(self: entrance.Protocol, exc: Exception | None) -> None:
        connection_lost(self, exc)
        lost.set()

    monkeypatch.setattr(entrance.Protocol, "connection_lost", note)
    async with serving(large, body_seconds=0.1) as port:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            async with asyncio.timeout(20):
                await lost.wait()


class Unread(asyncio.Transport):
    """A transport whose client reads when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.unread_bytes = 0
        self.is_aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.unread_bytes += len(data)

    def get_write_buffer_size(self) -> int:
        return self.unread_bytes

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True


def pass_time(reader: readers.Reader) -> None:
    timer: Any = reader._timer
    arguments = timer._args
    timer.cancel()
    reader._check(*arguments)


async def test_a_client_has_to_read_so_much_of_a_large_answer_in_each_time() -> None:
    transport, slow = Unread(), dict[readers.Reader, None]()
    outgoing = Outgoing(transport, asyncio.get_running_loop(), lambda: None)
    reader = readers.Reader(outgoing, 3_600, slow)
    outgoing.write(b"h")
    outgoing.write(b"x" * ANSWER_BYTES)
    reader.watch()
    for _ in range(3):
        transport.unread_bytes -= readers.TAKEN_BYTES_MIN
        pass_time(reader)
        assert not transport.is_aborted
    transport.unread_bytes -= readers.TAKEN_BYTES_MIN - 1
    pass_time(reader)
    assert transport.is_aborted
    assert not slow


@pytest.mark.parametrize("took", [200_000, 199_999], ids=["all that waited", "less than all"])
async def test_what_a_client_has_read_counts_and_not_what_was_written_since(took: int) -> None:
    transport, slow = Unread(), dict[readers.Reader, None]()
    outgoing = Outgoing(transport, asyncio.get_running_loop(), lambda: None)
    reader = readers.Reader(outgoing, 3_600, slow)

    def answer() -> None:
        outgoing.write(b"h")
        outgoing.write(b"x" * 199_999)
        reader.watch()

    answer()
    transport.unread_bytes -= took
    answer()
    pass_time(reader)
    assert transport.is_aborted is (took < 200_000)
    if not transport.is_aborted:
        transport.unread_bytes = 0
        pass_time(reader)
    assert not slow


@pytest.mark.parametrize("anyio_backend", LOOPS, ids=["asyncio", "uvloop"])
async def test_all_slow_readers_together_hold_so_much_and_the_oldest_goes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost: list[entrance.Protocol] = []
    connection_lost = entrance.Protocol.connection_lost

    def note(self: entrance.Protocol, exc: Exception | None) -> None:
        connection_lost(self, exc)
        lost.append(self)

    monkeypatch.setattr(entrance.Protocol, "connection_lost", note)
    monkeypatch.setattr(readers, "UNREAD_BYTES_MAX", ANSWER_BYTES * 3 // 2)
    async with serving(large, body_seconds=60) as port:
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await asyncio.to_thread(client.recv, 4)
        async with asyncio.timeout(20):
            while not lost:
                await pass_round()
        assert lost[0].client == clients[0].getsockname()
        clients[1].settimeout(20)
        assert len(await asyncio.to_thread(clients[1].recv, 65_536)) > 0
        for client in clients:
            client.close()


def note_rounds(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Return a list that gets, for each round of parsing, the bytes of each part that it parses."""
    rounds: list[list[int]] = []
    parse, feed = entrance.Protocol._parse, entrance.Protocol._feed

    def begin(self: entrance.Protocol) -> None:
        rounds.append([])
        parse(self)

    def note(self: entrance.Protocol, data: bytes) -> None:
        rounds[-1].append(len(data))
        feed(self, data)

    monkeypatch.setattr(entrance.Protocol, "_parse", begin)
    monkeypatch.setattr(entrance.Protocol, "_feed", note)
    return rounds


@pytest.mark.parametrize("anyio_backend", LOOPS, ids=["asyncio", "uvloop"])
async def test_no_round_parses_more_of_a_connection_than_a_slice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds = note_rounds(monkeypatch)
    size = 10 * heads.SLICE_BYTES
    async with serving() as port:
        assert texts(await answer_to(port, CHUNKED + b"1\r\nx\r\n" * size + b"0\r\n\r\n")) == [
            f"POST /a {size}"
        ]
    assert max(map(sum, rounds)) <= 2 * heads.SLICE_BYTES


@pytest.mark.parametrize("anyio_backend", LOOPS, ids=["asyncio", "uvloop"])
async def test_no_round_parses_many_parts_though_a_body_has_an_empty_line_at_each_byte(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds = note_rounds(monkeypatch)
    size = 5_000
    async with serving() as port:
        body = b"%x\r\n" % size + b"\n" * size + b"\r\n0\r\n\r\n"
        assert texts(await answer_to(port, CHUNKED + body)) == [f"POST /a {size}"]
    assert max(map(len, rounds)) <= entrance.PARTS_MAX
    assert sum(map(len, rounds)) > size


async def test_a_body_in_tiny_chunks_is_handed_over_in_few_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pieces: list[int] = []
    on_body = HttpToolsProtocol.on_body

    def note(self: HttpToolsProtocol, body: bytes) -> None:
        pieces.append(len(body))
        on_body(self, body)

    monkeypatch.setattr(HttpToolsProtocol, "on_body", note)
    async with serving() as port:
        answer = await answer_to(port, CHUNKED + b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n")
    assert texts(answer) == ["POST /a 50000"]
    assert len(pieces) < 500


async def test_a_body_that_nobody_reads_yet_waits_in_the_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = [0]
    parse, reading = entrance.Protocol._parse, asyncio.Event()

    def measure(self: entrance.Protocol) -> None:
        parse(self)
        sizes.append(len(self.cycle.body) if self.cycle else 0)

    async def wait_and_echo(scope: Any, receive: Any, send: Any) -> None:
        await reading.wait()
        await echo(scope, receive, send)

    monkeypatch.setattr(entrance.Protocol, "_parse", measure)
    body = b"x" * (ANSWER_BYTES // 4)
    async with serving(wait_and_echo) as port:
        answering = asyncio.create_task(answer_to(port, post("/a", body)))
        for _ in range(500):
            await pass_round()
        reading.set()
        assert texts(await answering) == [f"POST /a {len(body)}"]
    assert max(sizes) <= 8 * heads.SLICE_BYTES  # What was read at once is kept.


async def refuse(_scope: Any, _receive: Any, send: Any) -> None:
    headers = [(b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body"})


@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize("anyio_backend", LOOPS, ids=["asyncio", "uvloop"])
async def test_a_refusal_does_not_wait_for_the_rest_of_a_large_body(framing: str) -> None:
    size = 4 * entrance.UNWANTED_BYTES_MAX
    part = b"x" * (size // 2)
    length = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size
    request = length + part if framing == "length" else CHUNKED_OPEN + b"%x\r\n" % size + part
    async with serving(refuse, body_seconds=300) as port, asyncio.timeout(30):
        assert status_of(await answer_to(port, request)) == 401  # The server closes.


async def test_a_refusal_of_a_small_body_keeps_the_connection() -> None:
    request = post("/a", b"x" * 1_000, close=False)
    async with serving(refuse) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(request[:-500])
            assert status_of(await reader.readuntil(b"\r\n\r\n")) == 401
            writer.write(request[-500:])
        writer.close()


async def refuse_and_close(_scope: Any, _receive: Any, send: Any) -> None:
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body"})


def send_and_then_read(port: int, data: bytes) -> bytes:
    """Read only after all is sent, as an ordinary client does."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
        sock.sendall(data)
        return b"".join(iter(partial(sock.recv, 65_536), b""))


@pytest.mark.parametrize("framing", ["length", "chunks", "requests"])
@pytest.mark.parametrize("app", [refuse, refuse_and_close])
@pytest.mark.parametrize("anyio_backend", LOOPS, ids=["asyncio", "uvloop"])
async def test_a_client_that_only_sends_gets_the_answer_that_ends_its_connection(
    app: Any, framing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entrance, "LINGER_SECONDS", 60.0)
    body = b"x" * (8 * 1024 * 1024)
    request = {
        "length": post("/a", body, close=False),
        "chunks": CHUNKED_OPEN + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
        "requests": post("/a", b"") + post("/b", body),  # The first one is the last.
    }[framing]
    async with serving(app) as port:
        answer = await asyncio.to_thread(send_and_then_read, port, request)
    assert status_of(answer) == 401
    assert answer.count(b"HTTP/1.1") == answer.count(b"\r\nconnection: close\r\n") == 1


async def test_a_connection_that_ends_is_read_as_long_as_more_comes_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(entrance, "LINGER_SECONDS", 3_600.0)
    ending: list[entrance.Protocol] = []
    linger = entrance.Protocol._linger

    def linger_and_tell(self: entrance.Protocol) -> None:
        linger(self)
        ending.append(self)

    monkeypatch.setattr(entrance.Protocol, "_linger", linger_and_tell)
    async with serving(refuse) as port:
        for times in (1, 0):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(post("/a", b"x" * ANSWER_BYTES)[:1_000])
            assert status_of(await reader.read()) == 401  # Until its end.
            protocol = ending.pop()
            writer.write(b"x")
            while not protocol._is_sending:
                await pass_round()
            protocol._linger_on(times)
            assert protocol.transport.is_closing() is not bool(times)
            protocol._linger_on(times)
            assert protocol.transport.is_closing()
            writer.close()


async def test_a_large_body_that_is_read_keeps_the_connection() -> None:
    body = b"x" * 4 * entrance.UNWANTED_BYTES_MAX
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(post("/a", body, close=False))
            answer = await reader.readuntil(b";")
            assert texts(answer) == [f"POST /a {len(body)}"]
            assert b"connection" not in answer
        writer.close()
