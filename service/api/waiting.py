"""What requests wait for: the end of a generation, or upstream's answer to its submission.

One reader looks for what others recorded, for all long polls.
"""

import asyncio
import contextlib
from typing import Any

from starlette.types import Receive

from service.api.asgi import DisconnectedError
from service.context import Context
from service.store import generations
from service.telemetry import log

_log = log.get()
LOOK_SECONDS = 1.0  # Another process may record an outcome, and can wake nobody here.
LOOK_MAX = 500  # Generations that are looked for in one read.


async def wait_for_end(
    context: Context, ended: asyncio.Event, ends_at: float, receive: Receive
) -> None:
    """Wait until the generation of `ended` has ended, until `ends_at`, or until the process stops.

    `ended` is the generation's entry in `context.waiters`. DisconnectedError if the client hung up.
    """
    if context.watching is None or context.watching.done():
        context.watching = asyncio.create_task(_look_for_all(context), name="long polls")
    end, hang_up = (
        asyncio.create_task(ended.wait()),
        asyncio.create_task(_wait_for_hang_up(receive)),
    )
    seconds = max(ends_at - asyncio.get_running_loop().time(), 0)
    try:
        await asyncio.wait((end, hang_up), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        end.cancel()
        hang_up.cancel()
    if hang_up.done() and not ended.is_set():
        raise DisconnectedError


async def _wait_for_hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


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
