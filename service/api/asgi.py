"""Plain ASGI: reading a body, sending a problem, /healthz, and request ids."""

import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import msgspec

from service.api.problem import PROBLEM_TYPE, Problem
from service.model.clock import Clock
from service.model.ids import new_id
from service.telemetry import log, metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class BodyTooLargeError(Exception):
    """The body is over the limit."""

    def __init__(self, bytes_max: int) -> None:
        super().__init__(f"The body has more than {bytes_max} bytes.")


class DisconnectedError(Exception):
    """The client disconnected before its request was complete."""


async def read_body(scope: Scope, receive: Receive, bytes_max: int) -> bytes:
    """Return the body; BodyTooLargeError if it is over `bytes_max`, or says that it will be."""
    message = await receive()
    body: bytes = message.get("body", b"")
    is_complete = not message.get("more_body") and message["type"] == "http.request"
    if is_complete and len(body) <= bytes_max:
        return body
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value[:18]) > bytes_max:
            raise BodyTooLargeError(bytes_max)
    parts, size = [body], len(body)
    while True:
        if message["type"] == "http.disconnect":
            raise DisconnectedError
        if size > bytes_max:
            raise BodyTooLargeError(bytes_max)
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])


async def healthz(scope: Scope, send: Send, now: int) -> None:
    """GET and HEAD /healthz: 200 if the process can answer."""
    headers = {"x-request-id": _request_id(scope, now)}
    await _send(send, 200, "application/json", {"status": "ok"}, headers)
    metrics.requests.add(1, "200")


async def send_problem(send: Send, problem: Problem, request_id: str) -> None:
    """Answer with a problem."""
    headers = {"x-request-id": request_id, **problem.headers}
    await _send(send, problem.status, PROBLEM_TYPE, problem.document(request_id), headers)


async def _send(
    send: Send, status: int, media_type: str, content: Any, headers: Mapping[str, str]
) -> None:
    body = msgspec.json.encode(content)
    headers = {"content-type": media_type, "content-length": str(len(body)), **headers}
    lines = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})


def with_request_ids(app: App, clock: Clock) -> App:
    """Return `app`, but every request has an id, in the log and in its answer, and is counted.

    The application finds the id in `scope["state"]["request_id"]`.
    """

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        request_id = _request_id(scope, clock())
        scope.setdefault("state", {})["request_id"] = request_id
        is_answered = False

        async def send_with_id(message: Message) -> None:
            nonlocal is_answered
            if message["type"] == "http.response.start":
                is_answered = True
                message["headers"].append((b"x-request-id", request_id.encode()))
                metrics.requests.add(1, str(message["status"]))
            await send(message)

        with log.request(request_id):
            try:
                await app(scope, receive, send_with_id)
            except Exception:
                # Starlette raises what it has logged and answered with 500 again, for the server.
                if not is_answered:
                    raise

    return run


def _request_id(scope: Scope, now: int) -> str:
    """Return the client's request id if it is safe to repeat, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value, "ascii")
    return new_id("req", now)
