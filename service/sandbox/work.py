"""The work on a task: wait for the task's duration, then send its callbacks."""

import asyncio
import json
import logging

import httpx

from service.sandbox import wire
from service.sandbox.tasks import COMPLETED, FAILED, Sandbox, Task

log = logging.getLogger("genhook.sandbox")

CALLBACK_SECONDS = 2.0  # Duration of a task if its model sends callbacks.
POLLED_SECONDS = 1.0  # Duration of any other task.
RETRY_SECONDS = (1, 2, 4)  # Before each retry of a callback that got no 2xx.
TIMEOUT_SECONDS = 10.0

_UNREADABLE = b"<html>502 Bad Gateway</html>"


def start(sandbox: Sandbox, task: Task) -> None:
    """Start the work on `task` in the background; `stop` ends it."""
    task.work = asyncio.get_running_loop().create_task(run(sandbox, task))
    task.work.add_done_callback(_log_failure)
    # "early" waits for this event. run() cannot set it: it never begins if it is canceled first.
    task.work.add_done_callback(lambda _: task.called_back.set())


def finish(sandbox: Sandbox, task: Task) -> None:
    """Set the task's final status now."""
    task.status = FAILED if task.misbehaviour.fail else COMPLETED
    task.completed_at = sandbox.now()


async def run(sandbox: Sandbox, task: Task) -> None:
    """Do the work on one task, up to its last callback."""
    seconds = _work_seconds(task)
    if task.callback_url and (task.misbehaviour.forge or task.misbehaviour.partial):
        await sandbox.pause(seconds / 2)
        await _send_while_running(sandbox, task, task.callback_url)
        seconds /= 2
    await sandbox.pause(seconds)
    finish(sandbox, task)
    if task.callback_url and not task.misbehaviour.lose_callback:
        await _call_back(sandbox, task, task.callback_url)


async def stop(sandbox: Sandbox) -> None:
    """Cancel all work and close the connections."""
    works = [task.work for task in sandbox.tasks.values() if task.work is not None]
    for work in works:
        work.cancel()
    await asyncio.gather(*works, return_exceptions=True)
    await sandbox.client.aclose()


def _log_failure(work: asyncio.Task[None]) -> None:
    if not work.cancelled() and (error := work.exception()) is not None:
        log.error("the work on a task failed", exc_info=error)


def _work_seconds(task: Task) -> float:
    misbehaviour = task.misbehaviour
    if misbehaviour.delay is not None:
        return misbehaviour.delay
    if misbehaviour.early:
        return 0.0
    return CALLBACK_SECONDS if task.model.callbacks else POLLED_SECONDS


async def _send_while_running(sandbox: Sandbox, task: Task, url: str) -> None:
    if task.misbehaviour.partial:
        await _post(sandbox, task, url, _encode(wire.partial_callback(task)))
    if task.misbehaviour.forge:
        body = _encode(wire.forged_callback(task))
        await _post(sandbox, task, _wrong_token(url), body)
        await _post(sandbox, task, url, body)


async def _call_back(sandbox: Sandbox, task: Task, url: str) -> None:
    await sandbox.pause(task.misbehaviour.late)
    body = _UNREADABLE if task.misbehaviour.unreadable else _encode(wire.report(task))
    for _ in range(task.misbehaviour.duplicate):
        for seconds in (0, *RETRY_SECONDS):
            await sandbox.pause(seconds)
            delivered = await _post(sandbox, task, url, body)
            task.called_back.set()
            if delivered:
                break


async def _post(sandbox: Sandbox, task: Task, url: str, body: bytes) -> bool:
    """Send a callback; return whether it was answered 2xx."""
    headers = {"content-type": "application/json"}
    try:
        async with (
            asyncio.timeout(TIMEOUT_SECONDS),
            sandbox.client.stream("POST", url, content=body, headers=headers) as response,
        ):
            log.info("callback for %s answered %d", task.id, response.status_code)
            return response.is_success
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        log.info("callback for %s got no answer: %s", task.id, type(error).__name__)
        return False


def _encode(answer: wire.Json) -> bytes:
    return json.dumps(answer).encode()


def _wrong_token(url: str) -> str:
    # Change the first character: decoders of base64 ignore some bits of the last one.
    head, slash, token = url.rpartition("/")
    return f"{head}{slash}{'B' if token.startswith('A') else 'A'}{token[1:]}"
