"""One HTTP/1.1 connection to a receiver that may be slow, broken or hostile."""

import asyncio
import functools
import re
import ssl
from collections.abc import Callable
from typing import Literal

import httptools

from service.delivery.target import Answer, SenderClosed, SendError
from service.delivery.webhook import request


def tls_context(ca_file: str | None = None) -> ssl.SSLContext:
    """TLS 1.2 or newer with verified names, by the system's trust store and `ca_file` beside it."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False  # Only the names that a certificate is for.
    context.set_alpn_protocols(["http/1.1"])
    if ca_file:
        context.load_verify_locations(ca_file)
    return context


def tls_reason(error: ssl.SSLError) -> str:
    """Return OpenSSL's reason in words, such as "wrong version number"."""
    return (error.reason or "no reason given").replace("_", " ").lower()


# The end of a head, and the parts of a head that the parser refused: it may have bare line feeds or
# a length twice, but still says what the receiver wants.
_HEAD_END = re.compile(rb"\n\r?\n")
_SLOPPY_START = re.compile(rb"HTTP/1\.[01] [1-9]\d\d")
_SHORTEST_START = b"HTTP/1.1 200"
_SLOPPY_INTERIMS = re.compile(rb"(?:HTTP/1\.[01] 1(?!01)\d\d[^\n]*\n(?:[^\r\n][^\n]*\n)*\r?\n)*")
_SLOPPY_HEAD = re.compile(rb"HTTP/1\.[01] ([2-9]\d\d)(?: [^\n]*)?\r?\n((?:[^\r\n][^\n]*\n)*)\r?\n")
_SLOPPY_HEADER = re.compile(
    rb"^([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*\r?$", re.MULTILINE
)

# What a connection is doing: from "idle" on in this order, and back to "idle".
State = Literal[
    "connecting",
    "idle",  # Connected, and free for an exchange.
    "head",  # The request is written, the final answer's head is not complete.
    "body",  # The head is complete, the body is not.
    "done",  # The answer is complete, and another exchange may follow it.
    "last",  # The answer is complete, and the connection ends with it.
    "closed",  # Closed, or to be closed without another exchange.
]


class Connection(asyncio.Protocol):
    """One exchange at a time, and the next one as long as `is_usable`.

    httptools parses strictly (no leniency is switched on) and calls the public `on_` methods. An
    exception in one of them ends the parsing: `feed_data` raises its own error with that exception
    as context. A complete head counts whatever else is wrong with the answer: the receiver has
    said whether it has the webhook, and what it wants (`fail`, `_read_sloppy`). Such a connection
    is not used again.
    """

    def __init__(self, origin: str, lost: Callable[["Connection"], None]) -> None:
        self.origin = origin
        self.idle_since = 0.0  # By the event loop's clock.
        self.received_bytes = 0  # Of the current answer.
        self._lost = lost
        self._state: State = "connecting"
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Answer] | None = None
        self._parser = httptools.HttpResponseParser(self)

    def exchange(self, message: bytes, waiter: asyncio.Future[Answer]) -> None:
        """Write a request; `waiter` gets the answer, or a SendError or SenderClosed."""
        assert self._transport is not None
        self._state = "head"
        self.received_bytes = 0
        self._waiter = waiter
        self._status = 0  # Of the final answer, once its head is complete.
        self._headers: list[tuple[bytes, bytes]] = []
        self._interim_answers = 0
        self._body = bytearray()
        self._head = bytearray()  # As it came, until it is complete.
        self._refusal: SendError | None = None  # Why the parser takes no more of the head.
        self._transport.write(message)

    def is_usable(self) -> bool:
        """True if another exchange may start."""
        transport = self._transport
        return self._state == "idle" and transport is not None and not transport.is_closing()

    def abort(self) -> None:
        """Close at once, dropping what is not written or read yet."""
        self._state = "closed"
        if self._transport is not None and not self._transport.is_closing():
            self._transport.abort()

    def fail(self, error: SendError | SenderClosed) -> None:
        """End the exchange with `error`, if one is running, and close the connection.

        If the head is complete, it ends with the answer, as far as it came.
        """
        if self._waiter and isinstance(error, SendError) and self._status:
            self._state = "last"
            self._finish()
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)
        self.abort()

    def expire(self) -> None:
        """End the exchange because its deadline has passed."""
        self.fail(SendError("timeout", "There was no complete answer in time."))

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open; for https the certificate was accepted."""
        self._transport = transport  # type: ignore[assignment]  # a stream: one was asked for
        if self._state == "connecting":
            self._state = "idle"

    def data_received(self, data: bytes) -> None:
        """Parse bytes of an answer; close on bytes that belong to no request."""
        if self._waiter is None:
            self.abort()
            return
        # Cut at the limit, so that an answer means the same however the network cut it.
        limit = request.READ_BYTES if self._status else request.HEAD_BYTES
        room = limit + 1 - self.received_bytes
        self._parse(data[:room])
        if len(data) > room:
            self.data_received(data[room:])

    def connection_lost(self, exc: Exception | None) -> None:
        """Either side closed: that completes an answer without a length, or ends the exchange."""
        if self._waiter is not None and exc is None and self._ends_with_connection():
            self._state = "last"
            self._finish()
        if isinstance(exc, ssl.SSLError) and not isinstance(exc, ssl.SSLEOFError):
            # By TLS 1.3 a receiver refuses the sender only after the handshake.
            self.fail(SendError("tls_failed", f"The receiver ended TLS: {tls_reason(exc)}."))
        self.fail(SendError("connection_closed", "The receiver closed the connection too early."))
        self._lost(self)

    # Called by the parser.

    def on_message_begin(self) -> None:
        """An interim or the final answer begins; after the final one, end the parsing."""
        if self._state in ("done", "last"):
            raise SendError("protocol_error", "Bytes follow the answer.")  # See `_parse`.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a header; drop trailers."""
        if self._state == "head" and len(self._headers) < request.HEADERS:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Take the final answer's status; count and drop interim answers (1xx)."""
        status = self._parser.get_status_code()
        if status >= 200:
            self._status = status
            self._state = "body"
        elif status < 100 or status == 101:
            raise SendError("protocol_error", f"The receiver answered with status {status}.")
        else:
            self._interim_answers += 1
            self._headers.clear()
            if self._interim_answers > request.INTERIM_ANSWERS:
                raise SendError("protocol_error", "The receiver sent 1xx answers without end.")

    def on_body(self, body: bytes) -> None:
        """Store a part of the body, without its chunk framing, up to BODY_BYTES."""
        if len(self._body) < request.BODY_BYTES:
            self._body += body[: request.BODY_BYTES - len(self._body)]

    def on_message_complete(self) -> None:
        """An answer ends by its own length. Only here does the parser know about keep-alive."""
        if self._state == "body":
            self._state = "done" if self._parser.should_keep_alive() else "last"

    # The end of an exchange.

    def _parse(self, data: bytes) -> None:
        self.received_bytes += len(data)
        if not self._status:
            self._head += data
        if self._refusal is not None:
            self._read_sloppy(len(data))
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self._state not in ("done", "last"):
                ours = error.__context__
                if isinstance(ours, SendError):
                    self.fail(ours)
                    return
                message = f"The answer is not valid HTTP/1.1: {error}."
                self._refusal = SendError("protocol_error", message)
                self._read_sloppy(len(self._head))
                return
            self._state = "last"  # Surplus bytes followed the answer.
        if self._state in ("done", "last"):
            self._finish()
        elif self._state == "head" and self.received_bytes > request.HEAD_BYTES:
            self.fail(request.head_too_large())
        elif self._state == "body" and self.received_bytes > request.READ_BYTES:
            self._state = "last"
            self._finish()

    def _read_sloppy(self, new_bytes: int) -> None:
        """Read a head that the parser refused: its status, and the headers that are whole."""
        assert self._refusal is not None
        head, is_complete = self._head, bool(self._status)
        if not is_complete and _HEAD_END.search(head, max(len(head) - new_bytes - 2, 0)):
            interims = _SLOPPY_INTERIMS.match(head)
            del head[: interims.end() if interims else 0]
            is_complete = _HEAD_END.search(head) is not None
            if final := _SLOPPY_HEAD.match(head):
                self._status = int(final[1])
                self._headers = _SLOPPY_HEADER.findall(final[2])[: request.HEADERS]
        # More of it may follow, but only if this can be the begin of a head.
        is_short = len(head) < len(_SHORTEST_START) and b"HTTP/1.".startswith(bytes(head[:7]))
        if is_complete or not (is_short or _SLOPPY_START.match(head)):
            self.fail(self._refusal)
        elif self.received_bytes > request.HEAD_BYTES:
            self.fail(request.head_too_large())

    def _finish(self) -> None:
        """Give the answer to the waiter; the connection is idle then, or takes no more exchange."""
        assert self._transport is not None
        waiter, self._waiter = self._waiter, None
        # Unwritten bytes: the receiver answered before it had read the whole request.
        unwritten = self._transport.is_closing() or self._transport.get_write_buffer_size()
        reusable = self._state == "done" and not unwritten
        self._state = "idle" if reusable else "closed"
        headers = [(_lower(name), value.decode("latin-1")) for name, value in self._headers]
        if waiter is not None and not waiter.done():
            waiter.set_result(Answer(self._status, tuple(headers), bytes(self._body)))

    def _ends_with_connection(self) -> bool:
        """True if only the end of the connection tells how long the answer is."""
        if self._state != "body" or len(self._headers) == request.HEADERS:
            return False  # A header that was dropped may have given the length.
        return not any(
            name.lower() == b"content-length"
            or (name.lower() == b"transfer-encoding" and value.lower().endswith(b"chunked"))
            for name, value in self._headers
        )


@functools.lru_cache(maxsize=256)
def _lower(name: bytes) -> str:
    return name.decode("latin-1").lower()
