"""Bursts and clients that read nothing: what the entrance lets them take from others."""

import asyncio
import socket
from functools import partial
from typing import Any

import pytest

from service.cli import entrance, turns
from service.cli.turns import Turns
from tests.wire.receivers import LOOPS
from tests.wire.test_entrance import serving

UVLOOP = pytest.mark.parametrize("anyio_backend", [LOOPS[1]], ids=["uvloop"])
ANSWER_BYTES = 32 * 1024 * 1024


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


@pytest.mark.parametrize("anyio_backend", LOOPS, ids=["asyncio", "uvloop"])
async def test_a_client_that_reads_gets_a_large_answer_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(entrance, "TAKEN_BYTES_MIN", 1)
    async with serving(large, body_seconds=0.5) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        async with asyncio.timeout(60):
            await reader.readexactly(ANSWER_BYTES)
        writer.close()
