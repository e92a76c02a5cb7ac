"""How the process gives memory back: by collections of garbage, and from the C library."""

import asyncio
import contextlib
import gc
import os
from pathlib import Path

FIRST_SECONDS = 1.0  # The first answer does not wait for it.
LOOK_SECONDS = 5.0
GROWN_BYTES = 64 << 20
LARGE_BYTES = 256 * 1024
_M_MMAP_THRESHOLD = -3  # malloc.h of glibc, see mallopt(3).


def tend() -> None:
    """Set the collector up for a server, and from now on look whether the process has grown."""
    gc.freeze()  # What exists now lives as long as the process.
    gc.set_threshold(10_000, 20, 50)  # A request allocates much that is in no cycle.
    gc.enable()
    asyncio.get_running_loop().call_later(FIRST_SECONDS, return_large_blocks)
    Growth().look_later()


class Growth:
    """Notices that the process has grown since the last look or collection.

    An error holds the frames that it has passed, with the bodies of their requests; where a library
    keeps the error in such a frame, only a collection frees them. The collector counts objects, not
    bytes: while few requests with large bodies fail, gigabytes could wait for it.
    """

    def __init__(self) -> None:
        self._resident_bytes = resident_bytes()

    def look(self) -> None:
        """Collect garbage if the process has GROWN_BYTES more than before."""
        resident = resident_bytes()
        if resident > self._resident_bytes + GROWN_BYTES:
            gc.collect()
            self._resident_bytes = resident_bytes()
        else:
            self._resident_bytes = min(self._resident_bytes, resident)

    def look_later(self) -> None:
        """Look every LOOK_SECONDS, as long as the event loop runs."""
        asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look_and_go_on)

    def _look_and_go_on(self) -> None:
        self.look()
        self.look_later()


def resident_bytes() -> int:
    """Return how much memory the process has, 0 where that cannot be read (proc(5), statm)."""
    try:
        pages = Path("/proc/self/statm").read_bytes().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def return_large_blocks() -> None:
    """Have each large block returned to the system once it is freed; only glibc needs to be told.

    By itself it raises this limit to the largest block that was freed, up to 32 MiB. What is freed
    afterwards stays with each thread's arena, so that some hundred bodies of 1 MB, one after the
    other, left several hundred megabytes behind.
    """
    with contextlib.suppress(OSError, ImportError, AttributeError):  # No descriptor may be left.
        import ctypes

        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
