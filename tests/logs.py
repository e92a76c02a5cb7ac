"""The log in tests: a line as it is written, and what was written to standard output."""

import json
from typing import Any

import pytest
import structlog

from service.telemetry import log


def render(event: dict[str, Any]) -> str:
    """The line that is written of an event."""
    line: Any = event
    for processor in structlog.get_config()["processors"]:
        line = processor(None, "info", line)
    return str(line)


class Console:
    """Standard output, read since the last time."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def configure(self, level: str, *, terminal: bool = False, **options: Any) -> None:
        """Log to standard output from this level on."""
        log.configure(level, stream="stdout", terminal=terminal, background=False, **options)

    def text(self) -> str:
        """What was written."""
        return self._capsys.readouterr().out

    def lines(self) -> list[dict[str, Any]]:
        """What was written, decoded."""
        return [json.loads(line) for line in self.text().splitlines()]
