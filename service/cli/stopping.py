"""Stopping: one deadline from the first signal, or a failure, to the end of the process."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable

from service.cli import interrupts
from service.telemetry import log

_log = log.get()
# This share of the time, at most a second, is for closing connections and the database.
CLOSE_SHARE, CLOSE_SECONDS_MAX = 0.1, 1.0
END_SECONDS_MIN = 1.0  # Even where nothing may be waited for, closing takes a moment.
# A terminal signals the whole group of processes, and a supervisor in it repeats that at once.
REPEATED_SECONDS = 0.5
LOG_SECONDS = 0.2


class Stop:
    """The end of a process. `work_ends_at` is on the loop's clock, and set by `begin`."""

    def __init__(self, seconds: float, *actions: Callable[[], object]) -> None:
        self.work_ends_at: float | None = None
        self._has_begun = threading.Event()
        # A thread, since the loop may be what hangs, or a thread that the process waits for. It
        # exists from the start: where no thread can be started, a process has to stop as well.
        args = self._has_begun, max(seconds, END_SECONDS_MIN)
        threading.Thread(target=_end_after, args=args, name="stop", daemon=True).start()
        self._seconds = seconds
        self._actions = actions
        self._signalled_at: float | None = None

    def on_signal(self, number: int) -> None:
        """Begin to stop; at a second signal end at once."""
        now = asyncio.get_running_loop().time()
        if self._signalled_at is None:
            self._signalled_at = now
            _log.info("stopping", signal=signal.Signals(number).name, seconds=self._seconds)
            self.begin()
        elif now - self._signalled_at >= REPEATED_SECONDS:
            interrupts.end_by(number)

    def begin(self) -> None:
        """Set the deadline and take the actions, once; the process ends then, whatever hangs."""
        if self.work_ends_at is not None:
            return
        self._has_begun.set()
        seconds = self._seconds - min(self._seconds * CLOSE_SHARE, CLOSE_SECONDS_MAX)
        self.work_ends_at = asyncio.get_running_loop().time() + seconds
        for action in self._actions:
            action()


def on_signals(stop: Stop) -> None:
    """Let SIGTERM, SIGINT and SIGHUP call `stop` instead of ending the process."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, *interrupts.ENDING):
        # `nohup` has SIGHUP ignored. Shells have SIGINT ignored by what runs in the background.
        if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, stop.on_signal, number)


def _end_after(has_begun: threading.Event, seconds: float) -> None:
    """End the process without waiting for anything: what is stored is on disk already."""
    has_begun.wait()
    threading.Event().wait(seconds)
    _log.error("stop.forced")
    threading.Event().wait(LOG_SECONDS)  # For the thread that writes the log.
    os._exit(1)
