"""Structured log lines by structlog: JSON, or readable on a terminal, with every secret cut out."""

import atexit
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Literal

import msgspec

from service.model import clock
from service.model.text import encodable
from service.telemetry import metrics
from service.telemetry.redact import REDACTED, Redactor
from service.telemetry.writer import LineWriter

# structlog imports these if they are installed, and rich takes 0.1 s: hide them from it.
_hidden = [name for name in ("rich", "greenlet") if name not in sys.modules]
sys.modules.update(dict.fromkeys(_hidden))  # type: ignore[arg-type]  # None: cannot be imported.
import structlog  # noqa: E402

for _name in _hidden:
    del sys.modules[_name]

DRAIN_SECONDS = 1.0
_SECRET_FIELDS = frozenset({"authorization", "secret", "token", "key", "nonce", "callback_url"})
_PLAIN = frozenset({str, int, float, bool, type(None)})

Event = structlog.typing.EventDict
Stream = Literal["stdout", "stderr"]
Write = Callable[[str], None]

_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
_encode = msgspec.json.Encoder(enc_hook=repr).encode


def get(**values: object) -> structlog.typing.FilteringBoundLogger:
    """Return a logger that puts `values` into every line; it is set up at its first line."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(**values)
    return logger


@contextlib.contextmanager
def request(request_id: str) -> Iterator[None]:
    """Put the request's id into every line of the block, and of tasks that start in it."""
    before = _request_id.set(request_id)
    try:
        yield
    finally:
        _request_id.reset(before)


def configure(
    level: str = "info",
    *,
    stream: Stream = "stderr",
    redactor: Redactor | None = None,
    terminal: bool | None = None,
    background: bool = True,
) -> None:
    """Log from this level on to `stream`, and what libraries log from "warning" on.

    Lines are for people if `terminal`, by default if the stream is one. A thread writes them,
    and loggers keep this configuration; tests avoid both with `background=False`.
    """
    if terminal is None:
        terminal = (file := getattr(sys, stream)) is not None and file.isatty()
    make_writer = _make_background_writer if background else _make_direct_writer
    _configure(
        logging.getLevelNamesMapping()[level.upper()],
        make_writer(stream, redactor or Redactor()),
        terminal=terminal,
        cached=background,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_LibraryHandler()], force=True)


def _configure(level: int, write: Write, *, terminal: bool, cached: bool) -> None:
    render: structlog.typing.Processor = _to_json
    if terminal:
        plain = structlog.dev.plain_traceback
        colors = not os.environ.get("NO_COLOR")  # noqa: TID251  a convention: no-color.org
        render = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)
    structlog.configure(
        # Few processors, since each is called for each line; the writer cuts secrets out.
        processors=[_complete, render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Output(write),
        cache_logger_on_first_use=cached,
    )


def _complete(logger: Any, method: str, event: Event) -> Event:
    """Add level, time and request id. Redact fields that hold secrets; show objects as `repr`.

    The `repr` of an object of genhook shows no secret.
    """
    if "exc_info" in event:
        event = structlog.processors.format_exc_info(logger, method, event)
    event["level"] = method
    event["timestamp"] = clock.rfc3339(clock.now_ms())
    request_id = _request_id.get()
    if request_id is not None:
        event.setdefault("request_id", request_id)
    if _SECRET_FIELDS.isdisjoint(event) and _PLAIN.issuperset(map(type, event.values())):
        return event
    harmless: Event = _show(event)
    return harmless


def _show(value: Any) -> Any:
    if type(value) in _PLAIN:
        return value
    if isinstance(value, dict):
        return {
            str(name): REDACTED if name in _SECRET_FIELDS else _show(child)
            for name, child in value.items()
        }
    if isinstance(value, list | tuple):
        return [_show(child) for child in value]
    return repr(value)


def _to_json(_logger: Any, _method: str, event: Event) -> str:
    try:
        return _encode(event).decode()
    except UnicodeEncodeError:
        return _encode(encodable(event)).decode()


class _Output:
    """Takes finished lines from structlog, which calls the method of the line's level."""

    def __init__(self, write: Write) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = write


def _make_background_writer(stream: Stream, redactor: Redactor) -> Write:
    """Write from a thread. At exit, the process waits DRAIN_SECONDS for queued lines."""
    file = getattr(sys, stream)
    if file is None:  # It was closed when the process started.
        return lambda _line: metrics.log_lines_dropped.add(1)
    try:
        writer = LineWriter(file.fileno(), redactor.lines)
    except (OSError, ValueError):  # Another object without a descriptor took its place.
        return _make_direct_writer(stream, redactor)
    atexit.register(writer.drain, DRAIN_SECONDS)
    return writer.write


def _make_direct_writer(stream: Stream, redactor: Redactor) -> Write:
    """Write without a queue to what `sys` calls the stream at that moment."""

    def write(line: str) -> None:
        file = getattr(sys, stream)
        with contextlib.suppress(OSError, ValueError):  # A closed stream stops nothing.
            if file is not None:
                file.write(redactor.line(line) + "\n")
                file.flush()

    return write


class _LibraryHandler(logging.Handler):
    """Hands what libraries log to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001  arguments that do not fit must not break the library
            message = str(record.msg)
        get(library=record.name).log(level, message, exc_info=record.exc_info)


# What is logged before the settings are read goes to standard error.
_configure(logging.INFO, _make_direct_writer("stderr", Redactor()), terminal=False, cached=False)
