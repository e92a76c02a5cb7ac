"""Reads large bodies outside of the event loop, one at a time.

A body of megabytes takes a second to read. Meanwhile callbacks are received, commits are made and
webhooks are sent. Several at once would only take turns: Python runs one at a time.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

READ_ON_LOOP_BYTES = 65_536

T = TypeVar("T")
# Their threads start with the first large body. Bodies of clients hold up none of upstream's.
_thread = ThreadPoolExecutor(1, "reading")
_client_thread = ThreadPoolExecutor(1, "reading of clients")


async def read(size_bytes: int, function: Callable[[], T]) -> T:
    """Return what `function` makes of a body of `size_bytes` that upstream sent."""
    return await _read(_thread, size_bytes, function)


async def read_of_client(size_bytes: int, function: Callable[[], T]) -> T:
    """Return what `function` makes of the body of a client's request."""
    return await _read(_client_thread, size_bytes, function)


async def _read(thread: ThreadPoolExecutor, size_bytes: int, function: Callable[[], T]) -> T:
    if size_bytes <= READ_ON_LOOP_BYTES:
        return function()
    return await asyncio.get_running_loop().run_in_executor(thread, function)
