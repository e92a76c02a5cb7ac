"""Structured logs: JSON unless on a terminal, and the one place that keeps secrets out of them."""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import msgspec
import structlog

_SECRETS = re.compile(
    r"(?P<path>/callbacks/[^/\s]+/)[^/\s?\"']+"
    r"|\b(?:ghk_|aio_|whsec_|whsk_)[A-Za-z0-9+/=_-]+"
    r"|(?i:bearer)\s+[^\s\"']+"
)
_SECRET_NAMES = frozenset({"authorization", "secret", "token", "key", "nonce", "callback_url"})
_encode = msgspec.json.Encoder(enc_hook=repr).encode


def redact(text: str) -> str:
    """`text` with every callback token, API key and signing secret replaced."""
    if "_" not in text and "/callbacks/" not in text and "earer" not in text:
        return text
    return _SECRETS.sub(lambda found: (found["path"] or "") + "[redacted]", text)


def _redact_all(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if name in _SECRET_NAMES:
            event[name] = "[redacted]"
        elif type(value) is str:
            event[name] = redact(value)
    return event


def _render(_logger: object, _method: str, event: MutableMapping[str, Any]) -> bytes:
    return _encode(event)


def configure(level: str = "info", *, terminal: bool | None = None) -> None:
    """Set up structlog and the standard library's logging; both end up in the same lines."""
    number = logging.getLevelNamesMapping()[level.upper()]
    pretty = sys.stdout.isatty() if terminal is None else terminal
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _redact_all,
    ]
    structlog.configure(
        processors=[*shared, structlog.dev.ConsoleRenderer() if pretty else _render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=(
            structlog.PrintLoggerFactory()
            if pretty
            else structlog.BytesLoggerFactory(sys.stdout.buffer)
        ),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_Bridge()], force=True)


class _Bridge(logging.Handler):
    """Carries what libraries log into structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger(library=record.name)
        log.log(record.levelno, record.getMessage(), exc_info=record.exc_info or None)


def get(**values: object) -> Any:
    """A logger that carries `values` in every line."""
    return structlog.get_logger(**values)
