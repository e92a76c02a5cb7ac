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
_thread = ThreadPoolExecutor(1, "reading")  # Its thread starts with the first large body.


async def read(size_bytes: int, function: Callable[[], T]) -> T:
    """Return what `function` makes of a body of `size_bytes`."""
    if size_bytes <= READ_ON_LOOP_BYTES:
        return function()
    return await asyncio.get_running_loop().run_in_executor(_thread, function)
