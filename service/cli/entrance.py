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

from service.cli.flow import Flow
from service.cli.hang_ups import serve
from service.cli.heads import (
    EMPTY_LINE,
    HEAD_BYTES,
    LINES_MAX,
    SLICE_BYTES,
    find_empty_line,
    is_one_request,
    read_body_length,
)
from service.cli.outgoing import Outgoing
from service.cli.readers import Reader
from service.cli.refusals import disconnect, refuse
from service.cli.serving import HIGH_WATER_LIMIT, HttpToolsProtocol
from service.cli.turns import Turns
from service.settings import Settings

FRAMING_PER_BYTE = 8  # For each byte in a chunked body; a chunk of one byte has five around it.
UNWANTED_BYTES_MAX = 64 * 1024  # Of a body that is answered early; more ends the connection.
BODY_GRACE_SECONDS = 10.0  # For the application, which gives up a body first and records that.
PARTS_MAX = 64  # Of bodies and heads that are parsed in one round of the loop.
AHEAD_MAX = 8  # Requests that are parsed while an earlier one is answered.
LINGER_SECONDS = 1.0  # After the last bytes of a client that was answered.
LINGERS_MAX = 10
REFUSED_MAX = 32  # Connections too many that are answered; each keeps its descriptor meanwhile.

_OFFER = re.compile(rb"(?i)(?<=\n)upgrade[ \t]*:[^\n]*\n")


class Protocol(HttpToolsProtocol):
    """One connection. Each refusal is a problem, and closes the connection.

    uvicorn calls a request together with its answer a cycle.
    """

    flow: Flow

    def __init__(
        self,
        *args: Any,
        limits: Settings,
        turns: Turns,
        slow_readers: dict[Reader, None],
        **kwargs: Any,
    ) -> None:
        # The parser calls this for each chunk, and a megabyte may come in a million: what costs
        # more than to append it, `_take_parts` does for all of them at once.
        self._parts: list[bytes] = []
        self.on_body = self._parts.append  # type: ignore[assignment,method-assign]
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._turns = turns
        self._slow_readers = slow_readers
        self._unparsed = bytearray()
        self._head = bytearray()  # The head of the next request, until it is complete.
        self._body_left: int | None = 0  # None: the body is chunked.
        self._framing_bytes = 0
        self._keep_alive = False  # Whether the request that is parsed lets the connection live on.
        self._last_bytes = b""  # The last bytes that were read of a chunked body.
        self._active: Any = None  # The request that is answered now.
        self._is_half_closed = False
        self._refusal: int | None = None
        self._is_lingering = False  # Bytes that the client still sends are dropped.
        self._is_sending = False  # The client has sent bytes that were dropped.
        self._is_planned = False  # The next round of the loop goes on to parse.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse the connection if there are too many; else wait for its first request."""
        super().connection_made(transport)
        limits = self._limits
        seconds = {"head": limits.head_seconds, "body": limits.body_seconds + BODY_GRACE_SECONDS}
        self.flow = Flow(transport, seconds, partial(self._refuse, 408))
        self.flow.expect("head")
        self._outgoing = Outgoing(transport, self.loop, self._close)
        self._reader = Reader(self._outgoing, limits.body_seconds, self._slow_readers)
        if getattr(self.server_state, "is_ending", False):
            self.shutdown()
        over = len(self.connections) - limits.connections_max
        if over > REFUSED_MAX:
            transport.abort()
        elif over > 0:
            self._refuse(503)
        self.flow.watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget what was not parsed; tell every request that its client has gone."""
        self._unparsed.clear()
        self.flow.expect(None)
        self._reader.forget()
        # So that no reference cycle is left.
        self._outgoing.close = self.flow.on_late = self.transport.close
        for cycle in (self._active, *(cycle for cycle, _ in self.pipeline)):
            disconnect(cycle)
        self.pipeline.clear()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection while requests of a client that sends no more are answered."""
        self._is_half_closed = True
        if self._active is not None:
            self._active.message_event.set()  # It may wait for its client to hang up.
        self._outgoing.flush()  # The transport closes, unless a request is answered.
        return self.flow.awaited != "body" and not self._head and self._is_answering()

    def data_received(self, data: bytes) -> None:
        """Parse what may be parsed now."""
        is_buffered = self._unparsed or self._head or self.pipeline
        is_between = self.flow.awaited != "body" and not is_buffered
        if is_between and data[0] in b"\r\n" and not data.strip(b"\r\n"):
            return  # RFC 9112, 2.2: an empty line may follow a request.
        self._unset_keepalive_if_required()
        if self._refusal is not None or self._is_lingering:
            self._is_sending = True
            return
        if is_between and is_one_request(data):
            self._feed(data)
            self.flow.watch()
        else:
            self._unparsed += data
            self._parse()

    def on_headers_complete(self) -> None:
        """The head is complete; its body follows, which may be empty."""
        self._framing_bytes, self._last_bytes = 0, b""
        version = self.parser.get_http_version()
        self._body_left = read_body_length(self.headers, version)
        self.expect_100_continue = self.expect_100_continue and version != "1.0"
        super().on_headers_complete()  # It raises an error if the target is not valid.
        self.headers = []  # Trailers of a body are no headers of the request: RFC 9110, 6.5.1.
        self._expect("body")
        self.cycle.transport = self._outgoing  # type: ignore[assignment]  # it is what cycles use
        self._keep_alive = self.cycle.keep_alive
        # An answer that begins before a body has come ends the connection, and says so, if the body
        # is large, or if the client may not send it once it has the answer (RFC 9110, 10.1.1).
        is_large = self._body_left is None or self._body_left > UNWANTED_BYTES_MAX
        if is_large or self.expect_100_continue:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """The next bytes belong to another request, if there is one."""
        if self._parts:
            self._take_parts()
        if self._framing_bytes > HEAD_BYTES:
            raise ValueError("so much around a body is refused, though it is complete")
        self._framing_bytes = 0
        self.flow.expect(None)
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._keep_alive
        super().on_message_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            # It was answered early, and is idle from now on.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        """Go on with the requests that were sent ahead."""
        self._outgoing.flush()
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._reader.watch()
        if self.cycle.response_complete and (self.flow.awaited == "body" or self.cycle.body):
            self.cycle.body = bytearray()  # Nobody reads it any more.
        if self._unparsed or self.flow.awaited is not None:
            self._unset_keepalive_if_required()  # The connection is not idle.
        if self._refusal is not None:
            self._refuse(self._refusal)
        elif self._unparsed and self.parser is not None:
            self._parse()
        if self._is_half_closed and not self._is_answering():
            self.transport.close()

    def shutdown(self) -> None:
        """End the connection after the answer to the request that came last."""
        self._keep_alive = False
        if self._is_lingering:
            self.transport.close()
        super().shutdown()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is answered."""
        super().pause_writing()
        self._reader.watch()

    def _expect(self, what: str) -> None:
        """Set what the client has to send now: the connection is not idle."""
        self.flow.expect(what)
        self._unset_keepalive_if_required()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._active = cycle
        served = partial(serve, app, lambda: self._is_half_closed)
        self._turns.take(super()._start_asgi_task, cycle, served)

    def _is_answering(self) -> bool:
        return bool(self.pipeline or self._unparsed) or not (
            self._active is None or self._active.response_complete
        )

    def _parse(self) -> None:
        """Parse what may be parsed in this round; the rest waits for the next, or for answers."""
        planned_bytes, parts = max(len(self._unparsed) - SLICE_BYTES, 0), 0
        while len(self._unparsed) > planned_bytes and len(self.pipeline) < AHEAD_MAX:
            if (parts := parts + 1) > PARTS_MAX:
                break
            if self.flow.awaited == "body":
                self._feed(self._take_body())
            elif head := self._take_head():
                self._feed(head)
        is_held = self.flow.is_held = bool(self._unparsed)
        if is_held:
            self.flow.pause_reading()
        elif not (self.pipeline or self._is_full()):
            self.flow.resume_reading()
        if is_held and len(self.pipeline) < AHEAD_MAX and not self._is_planned:
            self._is_planned = True
            self.loop.call_soon(self._go_on)
        self.flow.watch()

    def _go_on(self) -> None:
        self._is_planned = False
        if self.parser is not None:
            self._parse()

    def _is_full(self) -> bool:
        """Whether much of a body waits for the application, which has not read it yet."""
        return self.cycle is not None and len(self.cycle.body) > HIGH_WATER_LIMIT

    def _take_parts(self) -> None:
        """Hand over what was parsed of a body; count what is left of it, and the framing."""
        body = b"".join(self._parts)
        self._parts.clear()
        self._framing_bytes -= len(body) * FRAMING_PER_BYTE
        if self._body_left is not None:
            self._body_left -= len(body)
        super().on_body(body)

    def _take_body(self) -> bytes:
        """Return the next part of a body, but nothing of the request that may follow it."""
        size = min(SLICE_BYTES, self._body_left or SLICE_BYTES)
        if self._body_left is None:
            size = find_empty_line(self._last_bytes, self._unparsed, size)
        data = bytes(self._unparsed[:size])
        assert data, "a part without a byte would be taken for ever"
        del self._unparsed[:size]
        if self._body_left is None:
            # A whole empty line would match again, and the next part would be empty.
            self._last_bytes = (self._last_bytes + data)[-2:].replace(b"\n\n", b"\n")
        return data

    def _take_head(self) -> bytes:
        """Return the next head once it is complete, without an offer to upgrade."""
        if not self._head:
            self._unparsed = self._unparsed.lstrip(b"\r\n")
        if self._unparsed and self.flow.awaited is None:
            self._expect("head")
        searched_from = max(0, len(self._head) - 2)
        self._head += self._unparsed
        self._unparsed.clear()
        end = EMPTY_LINE.search(self._head, searched_from)
        size = len(self._head) if end is None else end.end()
        if size > HEAD_BYTES or self._head.count(b"\n", 0, size) > LINES_MAX:
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
        status = None
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):  # CONNECT upgrades.
            status = 400
        if self._parts:
            self._take_parts()
        if self._framing_bytes > HEAD_BYTES:
            status = 431
        if status is not None:
            self._refuse(status)

    def _refuse(self, status: int) -> None:
        """Answer with a problem after the answers to earlier requests, and close."""
        if self._is_lingering:
            return
        self._unparsed.clear()
        status = self._refusal = self._refusal or status  # One that waits stays what it is.
        is_begun = self.flow.awaited == "body"  # The refused request has a cycle of its own.
        if self.pipeline or (self.cycle and not self.cycle.response_complete and not is_begun):
            return  # Until on_response_complete.
        is_answered = is_begun and self.cycle.response_started
        self._outgoing.flush()
        disconnect(self.cycle)
        if self.transport.is_closing() or is_answered:
            self.transport.close()
            return
        self.transport.write(refuse(status, self.cycle.scope if is_begun else {"headers": ()}))
        self._linger()

    def _close(self) -> None:
        """Close after an answer: at once only if the client has sent all that it meant to."""
        self._outgoing.flush()
        if self.flow.awaited is not None or self._is_answering():
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        """Close, but first read and drop the bytes that still come.

        Else unread bytes reset the connection, and the answer is lost (RFC 9112, 9.6).
        """
        if self.transport.is_closing() or self._is_lingering:
            return
        self._unparsed.clear()
        self.pipeline.clear()
        self._is_lingering = True
        self.flow.is_held = False
        self.flow.resume_reading()
        self._outgoing.end()
        self.loop.call_later(LINGER_SECONDS, self._linger_on, LINGERS_MAX - 1)

    def _linger_on(self, times: int) -> None:
        """Close if no bytes have come since the last time, or if no `times` are left."""
        if not (self._is_sending and times):
            self.transport.close()
            return
        self._is_sending = False
        self.loop.call_later(LINGER_SECONDS, self._linger_on, times - 1)
