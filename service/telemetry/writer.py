"""Writes log lines from a thread: a reader that stalls costs lines, and delays no request."""

import asyncio
import os
import select
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from service.telemetry import metrics

LINES_MAX = 10_000
CHARACTERS_MAX = 8 << 20
LINES_AT_ONCE = 200  # Redacting more at once would hold the interpreter for too long.


class LineWriter:
    """A bounded queue of lines, and the thread that writes all that wait at once.

    A line that does not fit, or that cannot be written, is dropped and counted. `cut` takes the
    secrets out of lines: in the thread, since one look at many lines costs less than one at each.
    """

    def __init__(self, descriptor: int, cut: Callable[[Sequence[str]], Sequence[str]]) -> None:
        self._descriptor = descriptor
        self._cut = cut
        self._lines: list[str] = []
        self._characters = 0
        self._waking: asyncio.AbstractEventLoop | None = None  # The loop that will wake the thread.
        # Reentrant: a collection of garbage may log in the middle of `write`.
        self._lock = threading.RLock()
        self._wake: SimpleQueue[threading.Event | None] = SimpleQueue()
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def write(self, line: str) -> None:
        """Queue a line; it never waits for the reader."""
        with self._lock:
            if len(self._lines) >= LINES_MAX or self._characters + len(line) > CHARACTERS_MAX:
                metrics.log_lines_dropped.add(1)
                return
            self._lines.append(line)
            self._characters += len(line)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._wake.put(None)
            return
        if self._waking is not loop:
            # Once for all lines of this turn of the loop: each wake lets the thread take the
            # interpreter from the loop, which costs several times what the line does.
            self._waking = loop
            loop.call_soon(self._wake.put, None)

    def drain(self, seconds: float) -> bool:
        """Wait until the lines queued so far are written; False if that takes longer."""
        written = threading.Event()
        self._wake.put(written)
        return written.wait(seconds)

    def _run(self) -> None:
        while True:
            written = self._wake.get()
            with self._lock:
                lines, self._lines, self._characters = self._lines, [], 0
                self._waking = None
            for start in range(0, len(lines), LINES_AT_ONCE):
                self._write_lines(lines[start : start + LINES_AT_ONCE])
            if written is not None:
                written.set()

    def _write_lines(self, lines: Sequence[str]) -> None:
        try:
            text = "".join(f"{line}\n" for line in self._cut(lines))
            is_written = self._write(text.encode(errors="backslashreplace"))
        except Exception:  # noqa: BLE001  the thread must not end: who could log that?
            is_written = False
        if not is_written:
            with self._lock:
                metrics.log_lines_dropped.add(len(lines))

    def _write(self, data: bytes) -> bool:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # Another process made it non-blocking.
                select.select([], [self._descriptor], [])
            except OSError:  # A closed stream stops nothing.
                return False
        return True
