"""The entrance: uvicorn's HTTP/1.1 protocol, with limits that hold before any handler runs.

uvicorn itself limits neither the head of a request, nor the time until it is complete, nor how many
requests a client may send ahead. A client that offers an upgrade loses its body there
(https://github.com/Kludex/uvicorn/issues/2722); RFC 9110, 7.8 lets a server ignore the offer.
"""

import asyncio
import re
from functools import partial
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.api.asgi import NOSNIFF, request_id_of
from service.api.problem import PROBLEM_TYPE, Problem
from service.cli.turns import Turns
from service.model.clock import now_ms
from service.telemetry import log, metrics

HEAD_BYTES = 64 * 1024
HEAD_LINES = 256  # Each header takes many times its bytes in memory.
FRAMING_PER_BYTE = 8  # For each byte in a chunked body; a chunk of one byte has five around it.
SLICE_BYTES = 64 * 1024  # So much of a body is parsed at once.
AHEAD_MAX = 8  # Requests that are parsed while an earlier one is answered.
LINGER_SECONDS = 1.0
# What a client has to take of its answers in GENHOOK_BODY_SECONDS, or else the rest of them.
TAKEN_BYTES_MIN = 256 * 1024
LOG_EVERY_MS = 1_000

_EMPTY_LINE = re.compile(rb"\n\r?\n")  # Ends a head, and a chunked body.
_LENGTH = re.compile(rb"\ncontent-length:[ \t]*([0-9]{1,15})[ \t]*\r\n")
_OFFER = re.compile(rb"(?i)(?<=\n)upgrade[ \t]*:[^\n]*\n")
_LIMITS = f"A head may have {HEAD_BYTES} bytes and {HEAD_LINES} lines."
_PROBLEMS = {
    400: Problem(400, "bad_request", "The request is not valid HTTP/1.1."),
    408: Problem(408, "request_timeout", "The request was not complete in time."),
    431: Problem(431, "head_too_large", _LIMITS),
    503: Problem(
        503, "overloaded", "There are too many connections.", headers={"retry-after": "1"}
    ),
}
_log = log.get()
_refusals = {"logged_at": 0, "unlogged": 0}


class _Flow(FlowControl):
    """Flow control that stays paused while bytes that were read wait to be parsed."""

    is_held = False

    def resume_reading(self) -> None:
        if not self.is_held:
            super().resume_reading()


class Protocol(HttpToolsProtocol):
    """One connection. Each refusal is a problem, and closes the connection.

    uvicorn calls a request together with its answer a cycle.
    """

    def __init__(
        self,
        *args: Any,
        head_seconds: float,
        body_seconds: float,
        connections_max: int,
        turns: Turns,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._seconds = {"head": head_seconds, "body": body_seconds}
        self._connections_max = connections_max
        self._turns = turns
        self._unparsed = bytearray()
        self._head = bytearray()  # The head of the next request, until it is complete.
        self._awaited: str | None = "head"  # What the client has to send: "head", "body", nothing.
        self._body_left: int | None = 0  # None: the body is chunked.
        self._framing_bytes = 0
        self._last_bytes = b""  # The last bytes that were read of a chunked body.
        self._active: Any = None  # The request that is answered now.
        self._is_half_closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._timed: str | None = None  # What the timer waits for.
        self._refusal: int | None = None
        self._is_refused = False  # The refusal was sent, and no other may follow.
        self._reader_timer: asyncio.TimerHandle | None = None  # While the client has to read.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse the connection if there are too many; else wait for its first request."""
        super().connection_made(transport)
        self.flow = _Flow(transport)
        if len(self.connections) > self._connections_max:
            self._refuse(503)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget what was not parsed; tell every request that its client has gone."""
        self._unparsed.clear()
        self._awaited = None
        self._watch()
        self._unwatch_reader()
        for cycle in (self._active, *(cycle for cycle, _ in self.pipeline)):
            _disconnect(cycle)
        self.pipeline.clear()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection while requests of a client that sends no more are answered."""
        self._is_half_closed = True
        is_complete = self._awaited is None or (self._awaited == "head" and not self._head)
        return is_complete and self._is_answering()

    def data_received(self, data: bytes) -> None:
        """Parse what may be parsed now."""
        self._unset_keepalive_if_required()
        if self._refusal is not None:
            return
        is_between = self._awaited != "body" and not (self._unparsed or self._head or self.pipeline)
        if is_between and _is_of_one_request(data):
            self._feed(data)
            self._watch()
        else:
            self._unparsed += data
            self._parse()

    def on_headers_complete(self) -> None:
        """The head is complete; its body follows, which may be empty."""
        self._framing_bytes, self._last_bytes = 0, b""
        self._body_left = _read_body_length(self.headers)
        super().on_headers_complete()  # It raises an error if the target is not valid.
        self._awaited = "body"

    def on_body(self, body: bytes) -> None:
        """Count the bytes that are left, and those of framing."""
        self._framing_bytes -= len(body) * FRAMING_PER_BYTE
        if self._body_left is not None:
            self._body_left -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The next bytes belong to another request, if there is one."""
        self._awaited = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with the requests that were sent ahead."""
        super().on_response_complete()
        self._watch_reader()
        if self._refusal is not None:
            self._refuse(self._refusal)
        elif self._unparsed and self.parser is not None:
            self._unset_keepalive_if_required()
            self._parse()
        if self._is_half_closed and not self._is_answering():
            self.transport.close()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is answered."""
        super().pause_writing()
        self._watch_reader()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._active = cycle
        self._turns.take(partial(super()._start_asgi_task, cycle, app))

    def _watch_reader(self) -> None:
        """Look later whether the client has read, unless all of its answers are on their way."""
        unread_bytes = self.transport.get_write_buffer_size()
        if unread_bytes and self._reader_timer is None:
            seconds = self._seconds["body"]
            self._reader_timer = self.loop.call_later(seconds, self._check_reader, unread_bytes)

    def _check_reader(self, unread_bytes: int) -> None:
        """End the connection of a client that reads nothing: its answers stay in memory."""
        self._reader_timer = None
        if self.transport.get_write_buffer_size() > max(unread_bytes - TAKEN_BYTES_MIN, 0):
            self.transport.abort()
        else:
            self._watch_reader()

    def _unwatch_reader(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def _is_answering(self) -> bool:
        return bool(self.pipeline or self._unparsed) or not (
            self._active is None or self._active.response_complete
        )

    def _parse(self) -> None:
        while self._unparsed and self._refusal is None and len(self.pipeline) < AHEAD_MAX:
            if self._awaited == "body":
                self._feed(self._take_body())
            elif head := self._take_head():
                self._feed(head)
        is_held = self.flow.is_held = bool(self._unparsed)  # type: ignore[attr-defined]
        if is_held:
            self.flow.pause_reading()
        elif not self.pipeline:
            self.flow.resume_reading()
        self._watch()

    def _take_body(self) -> bytes:
        """Return the next part of a body, but nothing of the request that may follow it."""
        size = min(SLICE_BYTES, self._body_left or SLICE_BYTES)
        if self._body_left is None and (
            end := _EMPTY_LINE.search(self._last_bytes + self._unparsed[:size])
        ):
            size = end.end() - len(self._last_bytes)
        data = bytes(self._unparsed[:size])
        del self._unparsed[:size]
        if self._body_left is None:
            # A whole empty line would match again, and the next part would be empty.
            self._last_bytes = (self._last_bytes + data)[-2:].replace(b"\n\n", b"\n")
        return data

    def _take_head(self) -> bytes:
        """Return the next head once it is complete, without an offer to upgrade."""
        self._awaited = "head"
        searched_from = max(0, len(self._head) - 2)
        self._head += self._unparsed
        self._unparsed.clear()
        end = _EMPTY_LINE.search(self._head, searched_from)
        size = len(self._head) if end is None else end.end()
        if size > HEAD_BYTES or self._head.count(b"\n", 0, size) > HEAD_LINES:
            self._refuse(431)
            return b""
        if end is None:
            return b""
        head = bytes(self._head[: end.end()])
        self._unparsed += self._head[end.end() :]  # The body, or another request.
        self._head.clear()
        return _OFFER.sub(b"", head) if b"upgrade" in head.lower() else head

    def _feed(self, data: bytes) -> None:
        self._framing_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._refuse(400)
        except httptools.HttpParserUpgrade:  # CONNECT: what follows is no HTTP.
            self._refuse(400)
        if self._framing_bytes > HEAD_BYTES:
            self._refuse(431)

    def _watch(self) -> None:
        """Set the timer for what the connection waits for, unless it runs already."""
        if self._awaited == self._timed:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timed = None, self._awaited
        if self._awaited is not None:
            seconds = self._seconds[self._awaited]
            self._timer = self.loop.call_later(seconds, self._refuse, 408)

    def _refuse(self, status: int) -> None:
        """Answer with a problem after the answers to earlier requests, and close."""
        if self._is_refused:
            return
        self._unparsed.clear()
        self._refusal = status
        is_begun = self._awaited == "body"  # The refused request has a cycle of its own.
        if self.pipeline or (self.cycle and not self.cycle.response_complete and not is_begun):
            return  # Until on_response_complete.
        problem = _PROBLEMS[status]
        scope: Any = self.cycle.scope if is_begun else {"headers": ()}
        request_id = request_id_of(scope, now_ms())
        _log_refusal(problem, request_id)
        is_answered = is_begun and self.cycle.response_started
        _disconnect(self.cycle)
        if self.transport.is_closing() or is_answered:
            self.transport.close()
            return
        self.transport.write(_answer_of(problem, request_id))
        # What is still on its way is read and dropped: it would reset the connection, and the
        # client would not see the answer.
        self.flow.is_held = False  # type: ignore[attr-defined]
        self.flow.resume_reading()
        self._is_refused = True
        self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)


def _answer_of(problem: Problem, request_id: str) -> bytes:
    """Return the whole answer that a problem stands for."""
    body = problem.body(request_id)
    fields = (
        (b"content-type", PROBLEM_TYPE.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
        (b"x-request-id", request_id.encode()),
        NOSNIFF,
        *((name.encode(), value.encode()) for name, value in problem.headers.items()),
    )
    head = b"".join(b"%b: %b\r\n" % field for field in fields)
    return b"".join((STATUS_LINE[problem.status], head, b"\r\n", body))


def _disconnect(cycle: Any) -> None:
    """Let a request that is not answered yet know that nobody reads its answer."""
    if cycle is not None and not cycle.response_complete:
        cycle.disconnected = True
        cycle.message_event.set()


def _is_of_one_request(data: bytes) -> bool:
    """Whether these bytes begin one request, with its head, and hold nothing after its body.

    Most requests arrive so. They need no buffer, and the parser reads head and body in one call.
    """
    size = data.find(b"\n\r\n") + 3
    head = data[:size].lower()
    if size < 3 or len(data) > SLICE_BYTES or b"\n\n" in head or head.count(b"\n") > HEAD_LINES:
        return False
    if b"upgrade" in head or b"transfer-encoding" in head:
        return False
    length = _LENGTH.search(head)
    return len(data) <= size + (int(length[1]) if length else 0)


def _read_body_length(headers: list[tuple[bytes, bytes]]) -> int | None:
    """Return the length that the head gives; None for a chunked body."""
    fields = dict(headers)
    # The parser has refused what is no number, and lengths that differ.
    return None if b"transfer-encoding" in fields else int(fields.get(b"content-length", 0))


def _log_refusal(problem: Problem, request_id: str) -> None:
    """Log at most one refusal a second, with the number of those since the last line."""
    metrics.requests.add(1, str(problem.status))
    now = now_ms()
    if now - _refusals["logged_at"] < LOG_EVERY_MS:
        _refusals["unlogged"] += 1
        return
    what = {"status": problem.status, "code": problem.code, "request_id": request_id}
    _log.warning("request.refused", **what, unlogged=_refusals["unlogged"])
    _refusals.update(logged_at=now, unlogged=0)
