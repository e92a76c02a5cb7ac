"""One HTTP/1.1 connection to a receiver that may be slow, broken or hostile."""

import asyncio
import functools
import ssl
from collections.abc import Callable

import httptools

from service.delivery.webhook.request import (
    BODY_BYTES,
    HEAD_BYTES,
    HEADERS,
    INTERIM_ANSWERS,
    READ_BYTES,
    Answer,
    SendError,
)


def tls_context(ca_file: str | None = None) -> ssl.SSLContext:
    """TLS 1.2 or newer with verified names, by the system's trust store and `ca_file` beside it."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if ca_file:
        context.load_verify_locations(ca_file)
    return context


class _SurplusError(Exception):
    """Bytes after the end of the answer: they are not looked at."""


class Connection(asyncio.Protocol):
    """One exchange at a time, and the next one if `reusable` is still true.

    httptools parses strictly (no leniency is switched on) and calls the public `on_` methods. What
    they raise ends the parsing and comes out of `feed_data` as the context of its own error.
    """

    __slots__ = (
        "_body",
        "_body_bytes",
        "_complete",
        "_connected",
        "_head_bytes",
        "_headers",
        "_interim_answers",
        "_lost",
        "_parser",
        "_status",
        "_transport",
        "_waiter",
        "idle_since",
        "origin",
        "received_bytes",
        "reusable",
    )
    _transport: asyncio.Transport

    def __init__(self, origin: str, lost: Callable[["Connection"], None]) -> None:
        self.origin = origin
        self.idle_since = 0.0  # by the event loop's clock
        self.reusable = True
        self.received_bytes = 0  # of the current answer
        self._lost = lost
        self._connected = False
        self._waiter: asyncio.Future[Answer] | None = None
        self._parser = httptools.HttpResponseParser(self)

    def exchange(self, request: bytes, waiter: asyncio.Future[Answer]) -> None:
        """Write `request`; `waiter` gets the answer, or a SendError."""
        self.received_bytes = 0
        self._waiter = waiter
        self._status = 0  # of the final answer, once its head is complete
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._interim_answers = 0
        self._body = bytearray()
        self._body_bytes = 0
        self._complete = False
        self._transport.write(request)

    def is_usable(self) -> bool:
        """Whether another exchange may start."""
        return self.reusable and not self._transport.is_closing()

    def abort(self) -> None:
        """Close at once, whatever was still to be written or read."""
        self.reusable = False
        if self._connected and not self._transport.is_closing():
            self._transport.abort()

    def fail(self, error: SendError) -> None:
        """End the exchange with `error`, if one is running, and the connection with it."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            error.maybe_received = True
            waiter.set_exception(error)
        self.abort()

    def expire(self) -> None:
        """End the exchange because its time is over."""
        self.fail(SendError("timeout", "There was no complete answer in time."))

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected, and for https the certificate was accepted."""
        self._transport = transport  # type: ignore[assignment]  # a stream, since it was asked for
        self._connected = True

    def data_received(self, data: bytes) -> None:
        """Bytes that were asked for are parsed; others end the connection."""
        if self._waiter is None:  # Nobody asked.
            self.abort()
            return
        # Cut where a limit ends: what an answer means must not hang on how the network cut it.
        room = (READ_BYTES if self._status else HEAD_BYTES) + 1 - self.received_bytes
        self._parse(data[:room])
        if len(data) > room:
            self.data_received(data[room:])

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed by either side: the end of an answer without a length, or of all hope."""
        if self._waiter is not None and exc is None and self._ends_with_connection():
            self._complete = True
            self._finish()
        self.fail(SendError("connection_closed", "The receiver closed the connection too early."))
        self._lost(self)

    # What the parser calls.

    def on_message_begin(self) -> None:
        """An interim or final answer, or what follows the final one."""
        if self._complete:
            raise _SurplusError

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer: those are dropped."""
        if self._status:
            return
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > HEAD_BYTES:
            raise _head_too_large()
        if len(self._headers) < HEADERS:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The status is known; interim answers (1xx) are counted and forgotten."""
        status = self._parser.get_status_code()
        if status >= 200:
            self._status = status
        elif status < 100 or status == 101:
            raise SendError("protocol_error", f"The receiver answered with status {status}.")
        else:
            self._interim_answers += 1
            self._headers.clear()
            if self._interim_answers > INTERIM_ANSWERS:
                raise SendError("protocol_error", "The receiver sent 1xx answers without end.")

    def on_body(self, body: bytes) -> None:
        """A part of the body, without its chunk framing."""
        self._body_bytes += len(body)
        room = BODY_BYTES - len(self._body)
        if room > 0:
            self._body += body[:room]

    def on_message_complete(self) -> None:
        """The end of an answer by its own length."""
        if self._status:
            self._complete = True
            self.reusable = self._parser.should_keep_alive()

    # What follows from it.

    def _parse(self, data: bytes) -> None:
        self.received_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.reusable = False
            if not self._complete:
                self.fail(_told(error))
                return
        if self._complete:
            self._finish()
        else:
            self._check_size()

    def _check_size(self) -> None:
        if not self._status:
            if self.received_bytes > HEAD_BYTES:
                self.fail(_head_too_large())
        elif self.received_bytes > READ_BYTES:
            self.reusable = False
            self._finish()

    def _finish(self) -> None:
        waiter, self._waiter = self._waiter, None
        if self._transport.is_closing() or self._transport.get_write_buffer_size():
            self.reusable = False  # It answered before it took the whole request.
        headers = [(_lower(name), value.decode("latin-1")) for name, value in self._headers]
        truncated = self._body_bytes > BODY_BYTES or not self._complete
        if waiter is not None and not waiter.done():
            waiter.set_result(Answer(self._status, tuple(headers), bytes(self._body), truncated))

    def _ends_with_connection(self) -> bool:
        """Whether nothing but the end of the connection says how long the answer is."""
        if not self._status or len(self._headers) == HEADERS:
            return False  # What was dropped may have said how long it is.
        return not any(
            name.lower() == b"content-length"
            or (name.lower() == b"transfer-encoding" and value.lower().endswith(b"chunked"))
            for name, value in self._headers
        )


@functools.lru_cache(maxsize=256)
def _lower(name: bytes) -> str:
    return name.decode("latin-1").lower()


def _head_too_large() -> SendError:
    return SendError("answer_too_large", f"The answer's headers are over {HEAD_BYTES} bytes.")


def _told(error: Exception) -> SendError:
    """What a failed parsing means: our own verdict if a callback gave one."""
    if isinstance(error.__context__, SendError):
        return error.__context__
    return SendError("protocol_error", f"The answer is not valid HTTP/1.1: {error}.")
