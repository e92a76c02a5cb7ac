"""What requests wait for: the end of a generation, or upstream's answer to its submission.

One reader looks for what others recorded, for all long polls.
"""

import asyncio
import contextlib
from typing import Any

from service.context import Context
from service.store import generations
from service.telemetry import log

_log = log.get()
LOOK_SECONDS = 1.0  # Another process may record an outcome, and can wake nobody here.
LOOK_MAX = 500  # Generations that are looked for in one read.


async def wait_for_end(context: Context, ended: asyncio.Event, ends_at: float) -> None:
    """Wait until the generation of `ended` has ended, until `ends_at`, or until the process stops.

    `ended` is the generation's entry in `context.waiters`.
    """
    if context.watching is None or context.watching.done():
        context.watching = asyncio.create_task(_look_for_all(context), name="long polls")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(ends_at):
            await ended.wait()


async def wait_for_submission(context: Context, submission: asyncio.Task[Any]) -> None:
    """Wait until a submission ends, at most for `submit_wait_seconds`.

    A process that stops lets nobody wait: the submission goes on without its client.
    """
    stopping = asyncio.create_task(context.stopping.wait())
    try:
        seconds = context.settings.submit_wait_seconds
        either = asyncio.FIRST_COMPLETED
        await asyncio.wait({submission, stopping}, timeout=seconds, return_when=either)
    finally:
        stopping.cancel()


async def _look_for_all(context: Context) -> None:
    """Look every second for what others recorded, as long as anybody waits."""
    while context.waiters and not context.stopping.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await context.stopping.wait()
        try:
            await look_once(context)
        except Exception as error:  # noqa: BLE001  as a database that fails: it is tried again
            _log.warning("wait.not_looked", error=repr(error))


async def look_once(context: Context) -> None:
    """Wake the requests whose generation has ended: one read for up to LOOK_MAX of them."""
    ids = list(context.waiters)
    for start in range(0, len(ids), LOOK_MAX):
        ended = await context.database.read(generations.ended, ids[start : start + LOOK_MAX])
        for id_ in ended:
            if waiter := context.waiters.pop(id_, None):
                waiter.set()
