"""Plain ASGI: reading a body, sending a problem, /healthz, and request ids."""

import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
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

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class BodyTooLargeError(Exception):
    """The body is over the limit."""


class DisconnectedError(Exception):
    """The client disconnected before its request was complete."""


async def read_body(scope: Scope, receive: Receive, bytes_max: int) -> bytes:
    """Return the whole body.

    BodyTooLargeError if it is over `bytes_max`, by its Content-Length or by the bytes received.
    """
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body") and message["type"] == "http.request":
        if len(body) > bytes_max:
            raise BodyTooLargeError(f"The body has more than {bytes_max} bytes.")
        return body
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value[:18]) > bytes_max:
            raise BodyTooLargeError(f"The body has more than {bytes_max} bytes.")
    parts, size = [body], len(body)
    while True:
        if message["type"] == "http.disconnect":
            raise DisconnectedError
        if size > bytes_max:
            raise BodyTooLargeError(f"The body has more than {bytes_max} bytes.")
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)


async def healthz(scope: Scope, send: Send, now: int) -> None:
    """GET and HEAD /healthz: 200 if the process can answer."""
    request_id = _request_id(scope, now)
    await _send(send, 200, "application/json", {"status": "ok"}, request_id)
    metrics.requests.add(1, "200")


async def send_problem(send: Send, problem: Problem, request_id: str) -> None:
    """Answer with a problem."""
    headers = [(name.encode(), value.encode()) for name, value in problem.headers.items()]
    document = problem.document(request_id)
    await _send(send, problem.status, PROBLEM_TYPE, document, request_id, headers)


async def _send(
    send: Send,
    status: int,
    media_type: str,
    content: Any,
    request_id: str,
    more_headers: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    body = msgspec.json.encode(content)
    headers = [
        (b"content-type", media_type.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id.encode()),
        *more_headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class RequestIds:
    """Middleware: gives every request an id, in the log and in its answer; counts the answers.

    The application finds the id in `scope["state"]["request_id"]`.
    """

    def __init__(self, app: App, clock: Clock) -> None:
        self._app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        request_id = _request_id(scope, self._clock())
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
                await self._app(scope, receive, send_with_id)
            except Exception:
                # Starlette raises what it has logged and answered with 500 again, for the server.
                if not is_answered:
                    raise


def _request_id(scope: Scope, now: int) -> str:
    """Return the client's request id if it is safe to repeat, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text: str = value.decode("latin-1")
            if _REQUEST_ID.fullmatch(text):
                return text
    return new_id("req", now)
