"""Waits of requests: for the end of a generation, or for upstream's answer to its submission.

One task looks for outcomes that other processes recorded, for all requests that wait.
"""

import asyncio
from typing import Any

from starlette.types import Receive

from service.context import Context, wait_for
from service.store import generations
from service.telemetry import log

_log = log.get()
LOOK_SECONDS = 1.0  # Another process can record an outcome, but wake no request here.
LOOK_MAX = 500  # Generations in one read.


async def wait_for_end(
    context: Context, ended: asyncio.Event, ends_at: float, receive: Receive
) -> bool:
    """Wait until the generation of `ended` has ended, until `ends_at`, or until the process stops.

    Return False if the client hung up first. It may have closed only its sending half, so it still
    gets an answer. `ended` is the generation's entry in `context.waiters`.
    """
    if context.watching is None or context.watching.done():
        context.watching = asyncio.create_task(_look_for_all(context), name="long polls")
    end = asyncio.create_task(ended.wait())
    hang_up = asyncio.create_task(_wait_for_hang_up(receive))
    seconds = max(ends_at - asyncio.get_running_loop().time(), 0)
    try:
        await asyncio.wait((end, hang_up), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        end.cancel()
        hang_up.cancel()
    return ended.is_set() or not hang_up.done()


async def _wait_for_hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def wait_for_submission(context: Context, submission: asyncio.Task[Any]) -> None:
    """Wait until a submission ends, at most for `submit_wait_seconds`.

    If the process stops, it returns at once: the submission goes on without its client.
    """
    stopping = asyncio.create_task(context.stopping.wait())
    try:
        seconds = context.settings.submit_wait_seconds
        either = asyncio.FIRST_COMPLETED
        await asyncio.wait({submission, stopping}, timeout=seconds, return_when=either)
    finally:
        stopping.cancel()


async def _look_for_all(context: Context) -> None:
    """Look every LOOK_SECONDS for outcomes of other processes, as long as requests wait."""
    while context.waiters and not context.stopping.is_set():
        await wait_for(context.stopping, LOOK_SECONDS)
        try:
            await look_once(context)
        except Exception as error:  # noqa: BLE001  such as a failed database: tried again
            _log.warning("wait.not_looked", error=repr(error))


async def look_once(context: Context) -> None:
    """Wake the requests whose generation has ended: one read for up to LOOK_MAX generations."""
    ids = list(context.waiters)
    for start in range(0, len(ids), LOOK_MAX):
        ended = await context.database.read(generations.list_ended, ids[start : start + LOOK_MAX])
        for id_ in ended:
            if waiter := context.waiters.pop(id_, None):
                waiter.set()
