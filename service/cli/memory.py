"""How the C library keeps the memory of large bodies."""

import contextlib

LARGE_BYTES = 256 * 1024
_M_MMAP_THRESHOLD = -3  # malloc.h of glibc, see mallopt(3).


def return_large_blocks() -> None:
    """Have each large block returned to the system once it is freed; only glibc needs to be told.

    By itself it raises this limit to the largest block that was freed, up to 32 MiB. What is freed
    afterwards stays with each thread's arena, so that some hundred bodies of 1 MB, one after the
    other, left several hundred megabytes behind.
    """
    with contextlib.suppress(OSError, ImportError, AttributeError):  # No descriptor may be left.
        import ctypes

        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
