"""The limit in time of a request as a whole, which the timeouts of httpx are not.

Those begin anew with each byte, so that a server which drips bytes would never reach them.
"""

import contextlib
import math
import signal
from collections.abc import Iterator
from time import monotonic

TICK_SECONDS = 1.0


class LateError(Exception):
    """The block takes too long. It is no OSError, which sockets would catch and go on."""


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise LateError in the block after this time.

    Only the main thread may call it, and only one block at a time has the timer. It ticks, so that
    a signal which came just before a system call began, and so ended none, waits for a second only.
    """
    ends_at = monotonic() + seconds
    tick_seconds = seconds / math.ceil(seconds / TICK_SECONDS)

    def expire(*_: object) -> None:
        if monotonic() >= ends_at:
            signal.setitimer(signal.ITIMER_REAL, 0)  # What ends the block may take its time.
            raise LateError(f"it takes more than {seconds:g} s")

    handler = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, tick_seconds, tick_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
