"""What is logged, kept instead of printed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from service.telemetry import log


class Kept:
    """An output of the log that keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def write(self, method: str, _number: int, event: dict[str, Any]) -> None:
        self.lines.append({**event, "level": method})


@contextmanager
def kept() -> Iterator[list[dict[str, Any]]]:
    """The lines that are logged within."""
    output = Kept()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "_output", output)
        yield output.lines
