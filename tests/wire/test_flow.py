"""How long a client may take to send: only while it is read, and anew for each head and body."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from service.cli import server
from service.cli.flow import Flow
from tests.logs import Console
from tests.wire.test_entrance import echo, post, serving, status_of, texts

SECONDS = {"head": 10.0, "body": 30.0}
SLOW = b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"


class Paused(asyncio.Transport):
    """A transport that can be paused."""

    def pause_reading(self) -> None:
        """Read no more."""

    def resume_reading(self) -> None:
        """Read on."""


class Timers:
    """The timers of a loop: what was set, and what was not cancelled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.handles: list[asyncio.TimerHandle] = []
        self.seconds: list[float] = []
        loop = asyncio.get_running_loop()
        call_later = loop.call_later

        def note(seconds: float, callback: Callable[..., object]) -> asyncio.TimerHandle:
            handle = call_later(3_600, callback)
            self.handles.append(handle)
            self.seconds.append(seconds)
            return handle

        monkeypatch.setattr(loop, "call_later", note)

    def running(self) -> list[float]:
        pairs = zip(self.seconds, self.handles, strict=True)
        return [seconds for seconds, handle in pairs if not handle.cancelled()]


async def test_time_runs_only_while_a_client_is_read_that_has_something_to_send(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timers, flow = Timers(monkeypatch), Flow(Paused(), SECONDS, lambda: None)
    flow.watch()
    assert timers.running() == []
    flow.expect("head")
    flow.watch()
    assert timers.running() == [10]
    flow.pause_reading()
    flow.watch()
    assert timers.running() == []
    flow.is_held = True
    flow.resume_reading()
    assert timers.running() == []
    flow.is_held = False
    flow.resume_reading()
    assert timers.running() == [10]
    flow.expect(None)
    assert timers.running() == []
    flow.pause_reading()
    flow.resume_reading()
    assert timers.running() == []


async def test_each_body_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    timers, flow = Timers(monkeypatch), Flow(Paused(), SECONDS, lambda: None)
    for _ in range(2):
        flow.expect("body")
        flow.watch()
        flow.watch()  # More of the same body does not begin its time anew.
    assert timers.seconds == [30, 30]
    assert timers.running() == [30]


class Slow:
    """An application that answers /slow when it is told to, and everything else at once."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            await self.may_answer.wait()
        await echo(scope, receive, send)


async def pass_time() -> None:
    """Let all timers of 0.1 s or less run."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await asyncio.Event().wait()


@pytest.mark.parametrize("first", [SLOW, SLOW + NEXT], ids=["body", "head"])
async def test_a_client_is_not_late_that_nobody_reads(
    first: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused, pause, app = asyncio.Event(), Flow.pause_reading, Slow()

    def pause_and_tell(flow: Flow) -> None:
        pause(flow)
        paused.set()

    monkeypatch.setattr(Flow, "pause_reading", pause_and_tell)
    last = post("/last", b"abc")
    cut = len(last) - (1 if first == SLOW else 20)
    async with serving(app, head_seconds=0.1, body_seconds=0.1) as port, asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(first + last[:cut])
        await paused.wait()
        await pass_time()
        writer.write(last[cut:])
        await writer.drain()
        app.may_answer.set()
        answer = await reader.read()
        writer.close()
    between = ["GET /next 0"] if first != SLOW else []
    assert texts(answer) == ["GET /slow 0", *between, "POST /last 3"]


async def test_a_refusal_that_waits_for_earlier_answers_stays_what_it_is() -> None:
    app = Slow()
    async with serving(app, head_seconds=0.1) as port, asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(SLOW + b"NONSENSE\r\n\r\n")
        await pass_time()
        app.may_answer.set()
        first, _, second = (await reader.read()).partition(b";")
        writer.close()
    assert texts(first) == ["GET /slow 0"]
    assert status_of(second) == 400


async def test_a_connection_is_not_idle_while_a_head_is_awaited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE_SECONDS", 0.1)
    app, last = Slow(), post("/last", b"abc")
    async with serving(app, head_seconds=60) as port, asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(SLOW + last[:20])
        await pass_time()
        app.may_answer.set()
        assert texts(await reader.readuntil(b";")) == ["GET /slow 0"]
        await pass_time()
        writer.write(last[20:])
        assert texts(await reader.read()) == ["POST /last 3"]
        writer.close()


async def refuse_early(scope: Any, _receive: Any, send: Any) -> None:
    """Answer without reading the body."""
    text = f"{scope['path']};".encode()
    headers = [(b"content-length", b"%d" % len(text))]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": text})


@pytest.mark.parametrize("rest", [b"c", b"c" + SLOW[:9]], ids=["alone", "with half a head"])
async def test_a_connection_that_was_answered_early_is_idle_once_its_body_has_come(
    rest: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE_SECONDS", 0.1)
    sent = post("/early", b"abc", close=False)[:-1]
    async with serving(refuse_early, head_seconds=60) as port, asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        assert texts(await reader.readuntil(b";")) == ["/early"]
        await pass_time()
        writer.write(rest)
        if rest == b"c":
            assert await reader.read() == b""
        else:  # It has begun its next request, and is not idle.
            await pass_time()
            writer.write(SLOW[9:])
            assert texts(await reader.readuntil(b";")) == ["/slow"]
        writer.close()


async def test_a_body_that_is_late_after_its_answer_is_neither_answered_again_nor_logged(
    console: Console,
) -> None:
    console.configure("info")
    async with serving(refuse_early, body_seconds=0.1) as port, asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post("/early", b"abc", close=False)[:-1])
        assert texts(await reader.read()) == ["/early"]
        writer.close()
    assert not [line for line in console.lines() if line["event"] == "request.refused"]
