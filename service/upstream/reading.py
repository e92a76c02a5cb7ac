"""Reads large bodies outside of the event loop, one at a time.

A body of megabytes takes a second to read. Meanwhile callbacks are received, commits are made and
webhooks are sent. Several at once would only take turns: Python runs one at a time. Nothing here
limits how many wait: polls and submissions have places, and the others come in turns.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

READ_ON_LOOP_BYTES = 65_536

T = TypeVar("T")
# Their threads start with the first large body. What clients are shown holds up none of upstream's.
_thread = ThreadPoolExecutor(1, "reading")
_client_thread = ThreadPoolExecutor(1, "reading for clients")


async def read(size_bytes: int, function: Callable[[], T]) -> T:
    """Return what `function` makes of a body of `size_bytes` that upstream sent."""
    if size_bytes <= READ_ON_LOOP_BYTES:
        return function()
    return await asyncio.get_running_loop().run_in_executor(_thread, function)


async def read_for_client(function: Callable[[], T]) -> T:
    """Return what `function` makes of a large body that a client is shown."""
    return await asyncio.get_running_loop().run_in_executor(_client_thread, function)
