"""How the process gives memory back: by collections of garbage, and from the C library."""

import asyncio
import contextlib
import gc
import os
import time
from pathlib import Path

FIRST_SECONDS = 1.0  # The first answer does not wait for it.
LOOK_SECONDS = 5.0
GROWN_BYTES = 64 << 20
COLLECTION_PAUSES = 100  # Pauses of as many times its length follow a collection: it takes 1 %.
LARGE_BYTES = 256 * 1024
_M_MMAP_THRESHOLD = -3  # malloc.h of glibc, see mallopt(3).


def tend() -> None:
    """Set the collector up for a server, and from now on look whether the process has grown."""
    gc.freeze()  # What exists now lives as long as the process.
    gc.set_threshold(10_000, 20, 50)  # A request allocates much that is in no cycle.
    gc.enable()
    asyncio.get_running_loop().call_later(FIRST_SECONDS, return_large_blocks)
    Growth().look_later(LOOK_SECONDS)


class Growth:
    """Notices that the process has grown since the last look or collection.

    An error holds the frames that it has passed, with the bodies of their requests; where a library
    keeps the error in such a frame, only a collection frees them. The collector counts objects, not
    bytes: while few requests with large bodies fail, gigabytes could wait for it.
    """

    def __init__(self) -> None:
        self._resident_bytes = resident_bytes()

    def look(self) -> None:
        """Collect garbage if the process has GROWN_BYTES more than before; look again later.

        A collection looks at everything that lives, and nothing is answered meanwhile: so the next
        look is the later the longer it took, for a process whose size goes up and down.
        """
        resident, seconds = resident_bytes(), 0.0
        if resident > self._resident_bytes + GROWN_BYTES:
            began = time.perf_counter()
            gc.collect()
            seconds = time.perf_counter() - began
            self._resident_bytes = resident_bytes()
        elif resident:  # Else it could not be read.
            self._resident_bytes = min(self._resident_bytes, resident)
        self.look_later(max(LOOK_SECONDS, COLLECTION_PAUSES * seconds))

    def look_later(self, seconds: float) -> None:
        """Look in so many seconds, if the event loop still runs."""
        asyncio.get_running_loop().call_later(seconds, self.look)


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
