"""Writes log lines from a thread, so that a reader who stalls costs lines and delays nobody."""

import asyncio
import os
import select
import threading
from queue import SimpleQueue

from service.telemetry import metrics

LINES_MAX = 10_000
BYTES_MAX = 8 << 20


class LineWriter:
    """A bounded queue of lines, and the thread that writes all that wait at once.

    A line that does not fit, or that cannot be written, is dropped and counted.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: list[bytes] = []
        self._bytes = 0
        self._waking: asyncio.AbstractEventLoop | None = None  # It will wake the thread.
        # Reentrant: a collection of garbage may log in the middle of `write`.
        self._lock = threading.RLock()
        self._wake: SimpleQueue[threading.Event | None] = SimpleQueue()
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def write(self, line: bytes) -> None:
        """Queue a line; it never waits for the reader."""
        with self._lock:
            if len(self._lines) >= LINES_MAX or self._bytes + len(line) > BYTES_MAX:
                metrics.log_lines_dropped.add(1)
                return
            self._lines.append(line)
            self._bytes += len(line)
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
                lines, self._lines, self._bytes = self._lines, [], 0
                self._waking = None
            if lines and not self._write(b"".join(lines)):
                with self._lock:
                    metrics.log_lines_dropped.add(len(lines))
            if written is not None:
                written.set()

    def _write(self, lines: bytes) -> bool:
        rest = memoryview(lines)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # Another process made it non-blocking.
                select.select([], [self._descriptor], [])
            except OSError:  # Closed: nobody reads, and that is no reason to stop.
                return False
        return True
