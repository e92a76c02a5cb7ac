"""The routes below /api/v1: they check key and request, create tasks and report on them."""

import json
from collections.abc import AsyncIterator
from typing import NoReturn

import httpx
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from service.sandbox import models, parameters, tasks, wire, work
from service.sandbox.misbehaviour import Misbehaviour, parse, without_marks
from service.sandbox.parameters import Body
from service.sandbox.tasks import Sandbox, Task

PREFIX = "/api/v1"
_REQUESTED_ERROR = "the sandbox was asked for this error"


def routes() -> list[Route]:
    """Return all routes below /api/v1."""
    return [
        *(Route(PREFIX + path, create, methods=["POST"]) for path in models.PATHS),
        Route(PREFIX + models.LYRICS, align_lyrics, methods=["POST"]),
        Route(PREFIX + "/audio/music/feed", show_feed),
        Route(PREFIX + "/audio/music/upload-cover/status", show_feed),
        Route(PREFIX + "/audio/music/cover/status", show_cover),
        Route(PREFIX + "/tasks/{task_id}", show_task),
    ]


async def create(request: Request) -> Response:
    """Create a task, or refuse to if the prompt requests that."""
    sandbox = _authorize(request)
    body = await _read(request)
    model, misbehaviour = _parse(request.url.path.removeprefix(PREFIX), body)
    if misbehaviour.rate_limit and tasks.refuse_first_of_two(sandbox, body):
        _refuse(429, "rate limit exceeded")
    if misbehaviour.error:
        _refuse(misbehaviour.error, _REQUESTED_ERROR)
    if misbehaviour.body_error:
        code = misbehaviour.body_error
        return JSONResponse(wire.envelope(None, code=code, message=_REQUESTED_ERROR))
    task = Task(
        id=model.task_id_pattern.format(sandbox.random_part()),
        model=model,
        body=body,
        prompt=without_marks(parameters.prompt_of(body)),
        misbehaviour=misbehaviour,
        base_url=base_url(request),
        created_at=sandbox.now(),
        poll_answers=tasks.poll_answers(misbehaviour),
        size_bytes=len(await request.body()),
    )
    tasks.add(sandbox, task)
    return await _answer(sandbox, task)


async def show_task(request: Request) -> Response:
    """Report on a task of any kind."""
    task, word = _poll(request, request.path_params["task_id"])
    return JSONResponse(wire.report(task, word))


async def show_feed(request: Request) -> Response:
    """Report on the songs of a task; older clients send `workId`."""
    task_id = request.query_params.get("task_id") or request.query_params.get("workId")
    task, word = _poll(request, task_id)
    return JSONResponse(wire.feed(task, word))


async def show_cover(request: Request) -> Response:
    """Report on the pictures for a song."""
    task, word = _poll(request, request.query_params.get("task_id"))
    return JSONResponse(wire.cover(task, word))


async def align_lyrics(request: Request) -> Response:
    """Answer at once with the time of each word of a song."""
    sandbox = _authorize(request)
    body = await _read(request)
    task = sandbox.tasks.get(str(body.get("task_id")))
    if task is None:
        raise HTTPException(404 if body.get("task_id") else 400, "task_id must name a task")
    return JSONResponse(wire.lyrics(task.prompt.split()))


def base_url(request: Request) -> str:
    """Return the URL of this sandbox, as the request has it, without a trailing slash."""
    return str(request.base_url).rstrip("/")


def _authorize(request: Request) -> Sandbox:
    """Return the sandbox; HTTPException unless the request has a key that it accepts."""
    sandbox: Sandbox = request.app.state.sandbox
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    is_valid = key == sandbox.api_key if sandbox.api_key else key.startswith("aio_")
    if scheme.lower() != "bearer" or not is_valid:
        raise HTTPException(401, "Invalid API key")
    return sandbox


async def _read(request: Request) -> Body:
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "the body is not JSON") from error
    if not isinstance(body, dict):
        raise HTTPException(400, "the body is not a JSON object")
    return body


def _parse(path: str, body: Body) -> tuple[models.SandboxModel, Misbehaviour]:
    try:
        model = models.find(path, body.get("model"))
        parameters.check(model, body)
        return model, parse(parameters.prompt_of(body))
    except ValueError as error:
        raise HTTPException(400, str(error)) from error


def _refuse(status_code: int, message: str) -> NoReturn:
    headers = {"Retry-After": "1"} if status_code == 429 else None
    raise HTTPException(status_code, message, headers)


async def _answer(sandbox: Sandbox, task: Task) -> Response:
    if task.misbehaviour.sync:
        work.finish(sandbox, task)
        return JSONResponse(wire.create_answer(task))
    work.start(sandbox, task)
    if task.misbehaviour.early:
        await task.called_back.wait()
    answer = JSONResponse(wire.create_answer(task))
    return _break_off(answer) if task.misbehaviour.lose_answer else answer


def _break_off(answer: Response) -> Response:
    # An error after the response head makes the server close the connection. It is an httpx error,
    # so that a client in the same process sees what it would see over the network.
    async def fail() -> AsyncIterator[bytes]:
        yield b""
        raise httpx.RemoteProtocolError("the sandbox was asked to close the connection")

    return StreamingResponse(fail(), headers=dict(answer.headers))


def _poll(request: Request, task_id: str | None) -> tuple[Task, str | None]:
    sandbox = _authorize(request)
    task = sandbox.tasks.get(task_id or "")
    if task is None or task.misbehaviour.sync:
        raise HTTPException(404, "Task not found")
    answer = task.poll_answers.popleft() if task.poll_answers else None
    if isinstance(answer, int):
        _refuse(answer, _REQUESTED_ERROR)
    return task, answer
