"""Helpers to render and read the log in tests."""

import contextlib
import io
import json
from typing import Any

import pytest
import structlog

from service.telemetry import log


def render(event: dict[str, Any]) -> str:
    """Return the line that the log writes for an event to standard error, as before any set-up."""
    config, line, written = structlog.get_config(), event, io.StringIO()
    for processor in config["processors"]:
        line = processor(None, "info", line)
    with contextlib.redirect_stderr(written):
        config["logger_factory"]().info(line)
    return written.getvalue()


class Console:
    """The captured standard output; each read returns the text since the previous one."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def configure(self, level: str, *, terminal: bool = False, **options: Any) -> None:
        """Log to standard output, at this level and above."""
        log.configure(level, stream="stdout", terminal=terminal, background=False, **options)

    def text(self) -> str:
        """Return the text written since the last read."""
        return self._capsys.readouterr().out

    def lines(self) -> list[dict[str, Any]]:
        """Return the JSON lines written since the last read, decoded."""
        return [json.loads(line) for line in self.text().splitlines()]
