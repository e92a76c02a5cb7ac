"""What happens to a task after it is taken: the work takes its time, then callbacks leave."""

import asyncio
import json
import logging

import httpx

from service.sandbox import wire
from service.sandbox.tasks import COMPLETED, FAILED, CallbackSent, Sandbox, Task, remember

log = logging.getLogger("genhook.sandbox")

CALLBACK_SECONDS = 2.0
POLLED_SECONDS = 1.0
RETRY_SECONDS = (1, 2, 4)
TIMEOUT_SECONDS = 10.0

_UNREADABLE = b"<html>upstream is not itself today</html>"


def start(sandbox: Sandbox, task: Task) -> None:
    """Let the work of `task` run on its own; it ends with the application."""
    task.work = asyncio.get_running_loop().create_task(run(sandbox, task))
    task.work.add_done_callback(_report)
    # Here and not in run(), which never begins if it is cancelled first: "early" waits for this.
    task.work.add_done_callback(lambda _: task.called_back.set())


def finish(sandbox: Sandbox, task: Task) -> None:
    """Bring the task to its end, at once."""
    task.status = FAILED if task.misbehaviour.fail else COMPLETED
    task.completed_at = sandbox.now()


async def run(sandbox: Sandbox, task: Task) -> None:
    """The life of one task."""
    seconds = _work_seconds(task)
    if task.callback_url and (task.misbehaviour.forge or task.misbehaviour.partial):
        await sandbox.pause(seconds / 2)
        await _call_too_soon(sandbox, task, task.callback_url)
        seconds /= 2
    await sandbox.pause(seconds)
    finish(sandbox, task)
    if task.callback_url and not task.misbehaviour.lose_callback:
        await _call_back(sandbox, task, task.callback_url)


async def stop(sandbox: Sandbox) -> None:
    """Cancel all work and close the connections."""
    working = [task.work for task in sandbox.tasks.values() if task.work is not None]
    for work in working:
        work.cancel()
    await asyncio.gather(*working, return_exceptions=True)
    await sandbox.client.aclose()


def _report(work: asyncio.Task[None]) -> None:
    if not work.cancelled() and (error := work.exception()) is not None:
        log.error("a task's work broke off", exc_info=error)


def _work_seconds(task: Task) -> float:
    asked = task.misbehaviour
    if asked.delay is not None:
        return asked.delay
    if asked.early:
        return 0.0
    return CALLBACK_SECONDS if task.model.callbacks else POLLED_SECONDS


async def _call_too_soon(sandbox: Sandbox, task: Task, url: str) -> None:
    if task.misbehaviour.partial:
        await _post(sandbox, task, url, _encode(wire.partial(task)))
    if task.misbehaviour.forge:
        lie = _encode(wire.forged(task))
        await _post(sandbox, task, _wrong_token(url), lie, forged=True)
        await _post(sandbox, task, url, lie, forged=True)


async def _call_back(sandbox: Sandbox, task: Task, url: str) -> None:
    await sandbox.pause(task.misbehaviour.late)
    body = _UNREADABLE if task.misbehaviour.unreadable else _encode(wire.status(task))
    for _ in range(task.misbehaviour.duplicate):
        for seconds in (0, *RETRY_SECONDS):
            await sandbox.pause(seconds)
            delivered = await _post(sandbox, task, url, body)
            task.called_back.set()
            if delivered:
                break


async def _post(
    sandbox: Sandbox, task: Task, url: str, body: bytes, *, forged: bool = False
) -> bool:
    status_code = None
    headers = {"content-type": "application/json"}
    try:
        async with (
            asyncio.timeout(TIMEOUT_SECONDS),
            sandbox.client.stream("POST", url, content=body, headers=headers) as response,
        ):
            status_code = response.status_code
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        log.info("callback for %s got no answer: %s", task.id, type(error).__name__)
    else:
        log.info("callback for %s answered %d", task.id, status_code)
    sent = CallbackSent(task.id, url, body, status_code, forged)
    remember(sandbox, sandbox.callbacks_sent, sent)
    return status_code is not None and 200 <= status_code <= 299


def _encode(answer: wire.Json) -> bytes:
    return json.dumps(answer).encode()


def _wrong_token(url: str) -> str:
    # The first character, since the last one of base64 may carry bits that decoding ignores.
    head, slash, token = url.rpartition("/")
    return f"{head}{slash}{'B' if token.startswith('A') else 'A'}{token[1:]}"
