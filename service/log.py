"""Structured logs: JSON unless on a terminal, and the one place that keeps secrets out of them."""

import asyncio
import atexit
import contextlib
import logging
import re
import sys
from collections.abc import Iterator, MutableMapping
from contextvars import ContextVar
from typing import Any

import msgspec

from service import clock

# structlog's console renderer imports rich where it is installed: a tenth of a second, each start.
_RICH: Any = sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
import structlog  # noqa: E402

if _RICH is None:
    del sys.modules["rich"]

_SLASH = r"(?:\\{0,4}/|%(?:25)?2[Ff])"  # Plain, escaped in JSON (in JSON), or percent-encoded.
_SECRETS = re.compile(
    rf"(?P<path>{_SLASH}callbacks{_SLASH}[A-Za-z0-9_-]{{1,64}}{_SLASH})[^/\s?\"'\\]+"
    r"|(?:ghk_|aio_|whsec_|whsk_)[A-Za-z0-9+/=_-]+"
    r"|(?i:bearer)\s+[^\s\"'\\]+"
)
# One of them is in every secret; a search costs as much as the rest of a line.
_HINTS = (b"ghk_", b"aio_", b"whs", b"callbacks", b"bearer")
WRITE_SECONDS = 0.005  # What a process that is killed has not said yet.
_PLAIN = frozenset({str, int, float, bool, type(None)})
_SECRET_NAMES = frozenset({"authorization", "secret", "token", "key", "nonce", "callback_url"})
_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
_encode = msgspec.json.Encoder(enc_hook=repr).encode


def redact(text: str) -> str:
    """`text` with every callback token, API key and signing secret replaced."""
    return _SECRETS.sub(lambda found: (found["path"] or "") + "[redacted]", text)


def _complete(
    logger: object, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Level, time and request id, and what has a secret's name or is no plain value made harmless.

    One processor instead of four: a line is written for each callback and each attempt.
    """
    if "exc_info" in event:
        structlog.processors.format_exc_info(logger, method, event)
    if not (_SECRET_NAMES.isdisjoint(event) and _PLAIN.issuperset(map(type, event.values()))):
        event.update(_redact_value(dict(event)))
    event["level"] = "error" if method == "exception" else method
    event["timestamp"] = clock.rfc3339(clock.now_ms())
    if (request_id := _request_id.get()) is not None:
        event.setdefault("request_id", request_id)
    return event


def _redact_value(value: Any) -> Any:
    if type(value) in _PLAIN:
        return value
    if isinstance(value, dict):
        return {
            str(name): "[redacted]" if name in _SECRET_NAMES else _redact_value(child)
            for name, child in value.items()
        }
    if isinstance(value, list | tuple):
        return [_redact_value(child) for child in value]
    return repr(value)


def _render(_logger: object, _method: str, event: MutableMapping[str, Any]) -> bytes:
    """The line as JSON, every secret in it cut out."""
    line = _encode(event)
    lowered = line.lower()
    for hint in _HINTS:
        if hint in lowered:
            return redact(line.decode()).encode()
    return line


def _redact_line(_logger: object, _method: str, line: Any) -> str:
    return redact(line)


class _Lines:
    """Standard output, by lines: those of a few milliseconds are written together.

    A write is a system call that lets other threads run, and has to wait for them.
    """

    def __init__(self) -> None:
        self._waiting: list[bytes] = []

    def line(self, line: bytes) -> None:
        """Write the line soon; at once where no loop runs, as in a thread."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._write(line)
            return
        self._waiting.append(line)
        if len(self._waiting) == 1:
            loop.call_later(WRITE_SECONDS, self.flush)

    def flush(self) -> None:
        """Write what waits."""
        if not self._waiting:
            return
        lines, self._waiting = self._waiting, []
        self._write(*lines)

    def _write(self, *lines: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):  # Nobody reads: no reason to stop.
            sys.stdout.buffer.write(b"\n".join((*lines, b"")))
            sys.stdout.buffer.flush()


_lines = _Lines()
atexit.register(_lines.flush)


class _Logger(structlog.BoundLoggerBase):
    """A bound logger of structlog's that writes JSON without its general way through processors.

    A line is written for each callback and each attempt: it costs a quarter this way.
    """

    least = logging.INFO

    def _write(self, method: str, number: int, event: str, values: dict[str, Any]) -> None:
        if number >= self.least:
            line = _complete(None, method, {**self._context, "event": event, **values})
            self._logger.line(_render(None, method, line))

    def debug(self, event: str, **values: Any) -> None:
        self._write("debug", logging.DEBUG, event, values)

    def info(self, event: str, **values: Any) -> None:
        self._write("info", logging.INFO, event, values)

    def warning(self, event: str, **values: Any) -> None:
        self._write("warning", logging.WARNING, event, values)

    def error(self, event: str, **values: Any) -> None:
        self._write("error", logging.ERROR, event, values)

    def exception(self, event: str, **values: Any) -> None:
        self._write("exception", logging.ERROR, event, {"exc_info": True, **values})

    def log(self, number: int, event: str, **values: Any) -> None:
        self._write(logging.getLevelName(number).lower(), number, event, values)


def configure(level: str = "info", *, terminal: bool | None = None) -> None:
    """Set up structlog and the standard library's logging; both end up in the same lines."""
    number = logging.getLevelNamesMapping()[level.upper()]
    pretty = sys.stdout.isatty() if terminal is None else terminal
    if pretty:
        structlog.configure(
            processors=[_complete, structlog.dev.ConsoleRenderer(), _redact_line],
            wrapper_class=structlog.make_filtering_bound_logger(number),
            logger_factory=structlog.PrintLoggerFactory(),
            cache_logger_on_first_use=True,
        )
    else:
        structlog.configure(
            wrapper_class=type("_Logger", (_Logger,), {"least": number}),
            logger_factory=lambda *_args: _lines,
            cache_logger_on_first_use=True,
        )
    logging.basicConfig(level=logging.WARNING, handlers=[_Bridge()], force=True)


class _Bridge(logging.Handler):
    """Carries what libraries log into structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger(library=record.name)
        log.log(record.levelno, record.getMessage(), exc_info=record.exc_info or None)


@contextlib.contextmanager
def request(request_id: str) -> Iterator[None]:
    """Within, and in tasks that start within, every line has the request's id."""
    token = _request_id.set(request_id)
    try:
        yield
    finally:
        _request_id.reset(token)


def get(**values: object) -> Any:
    """A logger that carries `values` in every line."""
    return structlog.get_logger(**values)
