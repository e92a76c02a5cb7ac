"""Structured logs: JSON unless on a terminal, and the one place that keeps secrets out of them.

On a terminal structlog draws the lines. JSON does without it: loading it takes longer than a bare
start of Python, and its way through processors longer than the rest of a line.
"""

import asyncio
import atexit
import contextlib
import logging
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Protocol

import msgspec

from service.model import clock
from service.telemetry.redact import SLASH, redact

__all__ = ["SLASH", "configure", "get", "redact", "request"]

# One of them is in every secret; a search costs as much as the rest of a line.
_HINTS = (b"ghk_", b"aio_", b"whs", b"callbacks", b"bearer")
WRITE_SECONDS = 0.005  # What a process that is killed has not said yet.
_PLAIN = frozenset({str, int, float, bool, type(None)})
_SECRET_NAMES = frozenset({"authorization", "secret", "token", "key", "nonce", "callback_url"})
_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
_encode = msgspec.json.Encoder(enc_hook=repr).encode


def _complete(method: str, event: dict[str, Any]) -> dict[str, Any]:
    """Level, time and request id; what has a secret's name or is no plain value made harmless."""
    if "exc_info" in event:
        raised = _traceback(event.pop("exc_info"))
        if raised is not None:
            event["exception"] = raised
    if not (_SECRET_NAMES.isdisjoint(event) and _PLAIN.issuperset(map(type, event.values()))):
        event = _redact_value(event)
    event["level"] = method
    event["timestamp"] = clock.rfc3339(clock.now_ms())
    if (request_id := _request_id.get()) is not None:
        event.setdefault("request_id", request_id)
    return event


def _traceback(raised: Any) -> str | None:
    """The traceback of an exception, of a triple, or of what is being handled if it is True."""
    if raised is True:
        raised = sys.exc_info()
    error = raised[1] if isinstance(raised, tuple) else raised
    if not isinstance(error, BaseException):
        return None
    return "".join(traceback.format_exception(error)).rstrip()


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


def _render(event: Mapping[str, Any]) -> bytes:
    """The line as JSON, every secret in it cut out."""
    line = _encode(event)
    lowered = line.lower()
    for hint in _HINTS:
        if hint in lowered:
            return redact(line.decode()).encode()
    return line


class _Lines:
    """Standard output, by lines: those of a few milliseconds are written together.

    A write is a system call that lets other threads run, and has to wait for them.
    """

    def __init__(self) -> None:
        self._waiting: list[bytes] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def line(self, line: bytes) -> None:
        """Write the line soon; at once where no loop runs, as in a thread."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._write(line)
            return
        self._waiting.append(line)
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(WRITE_SECONDS, self.flush)

    def flush(self) -> None:
        """Write what waits."""
        self._loop = None
        if self._waiting:
            lines, self._waiting = self._waiting, []
            self._write(*lines)

    def _write(self, *lines: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):  # Nobody reads: no reason to stop.
            sys.stdout.buffer.write(b"\n".join((*lines, b"")))
            sys.stdout.buffer.flush()


_lines = _Lines()
atexit.register(_lines.flush)


class Output(Protocol):
    """Where lines go."""

    def write(self, method: str, number: int, event: dict[str, Any]) -> None:
        """Write a line, if its level is wanted."""
        ...


class _Json:
    """Lines for machines."""

    def __init__(self, least: int) -> None:
        self._least = least

    def write(self, method: str, number: int, event: dict[str, Any]) -> None:
        if number >= self._least:
            _lines.line(_render(_complete(method, event)))


class _Terminal:
    """Lines for people, drawn by structlog."""

    def __init__(self, least: int) -> None:
        # It imports rich where that is installed: a tenth of a second, for tracebacks in colour.
        rich: Any = sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
        from structlog.dev import ConsoleRenderer  # noqa: PLC0415  only where it is used

        if rich is None:
            del sys.modules["rich"]
        self._least, self._draw = least, ConsoleRenderer()

    def write(self, method: str, number: int, event: dict[str, Any]) -> None:
        if number >= self._least:
            line = self._draw(None, method, _complete(method, event))
            sys.stdout.write(redact(f"{line}\n"))
            sys.stdout.flush()


class Logger:
    """Carries its values into every line."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def debug(self, event: str, **values: Any) -> None:
        """For whoever looks for a fault."""
        _output.write("debug", logging.DEBUG, {"event": event, **self._values, **values})

    def info(self, event: str, **values: Any) -> None:
        """What happens all the time."""
        _output.write("info", logging.INFO, {"event": event, **self._values, **values})

    def warning(self, event: str, **values: Any) -> None:
        """What somebody should look at one day."""
        _output.write("warning", logging.WARNING, {"event": event, **self._values, **values})

    def error(self, event: str, **values: Any) -> None:
        """What somebody should look at now."""
        _output.write("error", logging.ERROR, {"event": event, **self._values, **values})

    def exception(self, event: str, **values: Any) -> None:
        """As `error`, with the traceback of what is being handled."""
        self.error(event, exc_info=True, **values)


_output: Output = _Json(logging.INFO)


def configure(level: str = "info", *, terminal: bool | None = None) -> None:
    """Say which lines are wanted, and carry what libraries log into the same ones."""
    global _output  # noqa: PLW0603  a process has one log
    number = logging.getLevelNamesMapping()[level.upper()]
    pretty = sys.stdout.isatty() if terminal is None else terminal
    _output = _Terminal(number) if pretty else _Json(number)
    logging.basicConfig(level=logging.WARNING, handlers=[_Bridge()], force=True)


class _Bridge(logging.Handler):
    """Carries what libraries log into the same lines."""

    def emit(self, record: logging.LogRecord) -> None:
        event = {"event": record.getMessage(), "library": record.name}
        if record.exc_info:
            event["exc_info"] = record.exc_info  # type: ignore[assignment]
        _output.write(record.levelname.lower(), record.levelno, event)


@contextlib.contextmanager
def request(request_id: str) -> Iterator[None]:
    """Within, and in tasks that start within, every line has the request's id."""
    token = _request_id.set(request_id)
    try:
        yield
    finally:
        _request_id.reset(token)


def get(**values: object) -> Logger:
    """A logger that carries `values` in every line."""
    return Logger(values)
