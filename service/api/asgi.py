"""Plain ASGI: the body by bytes actually read, and problems as answers."""

import contextlib
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
    """More bytes came than the limit."""


class DisconnectedError(Exception):
    """The client hung up before its request was complete."""


async def read_body(scope: Scope, receive: Receive, bytes_max: int) -> bytes:
    """The whole body; BodyTooLargeError past `bytes_max`, by what is read and what is announced."""
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


def request_id_of(scope: Scope, now: int) -> str:
    """The caller's own request id where it is harmless, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text: str = value.decode("latin-1")
            if _REQUEST_ID.fullmatch(text):
                return text
    return new_id("req", now)


async def healthz(scope: Scope, send: Send, now: int) -> None:
    """Answer GET and HEAD /healthz: the process answers."""
    await _answer(send, 200, "application/json", {"status": "ok"}, request_id_of(scope, now))
    metrics.requests.add(1, "200")


async def problem(send: Send, found: Problem, request_id: str) -> None:
    """Answer with a problem (RFC 9457)."""
    headers = [(name.encode(), value.encode()) for name, value in found.headers.items()]
    document = found.document(request_id)
    await _answer(send, found.status, PROBLEM_TYPE, document, request_id, headers)


class Traced:
    """Names every request, in the log and in its answer, and counts the answers.

    `scope["state"]["request_id"]` has the name. An exception ends here: Starlette raises it again
    after its handler has logged and answered it.
    """

    def __init__(self, app: App, clock: Clock) -> None:
        self._app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        request_id = request_id_of(scope, self._clock())
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_traced(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-request-id", request_id.encode()))
                metrics.requests.add(1, str(message["status"]))
            await send(message)

        with log.request(request_id), contextlib.suppress(Exception):
            await self._app(scope, receive, send_traced)


async def _answer(
    send: Send,
    status: int,
    media_type: str,
    content: Any,
    request_id: str,
    more: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    body = msgspec.json.encode(content)
    headers = [
        (b"content-type", media_type.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id.encode()),
        *more,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
