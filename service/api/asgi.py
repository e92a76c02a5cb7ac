"""Plain ASGI: the body by bytes actually read, and problems as answers."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from service.errors import Problem

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


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
        if name == b"content-length" and value.isdigit() and int(value) > bytes_max:
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


async def problem(send: Send, found: Problem, request_id: str) -> None:
    """Answer with a problem (RFC 9457)."""
    body = msgspec.json.encode(found.document(request_id))
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", request_id.encode()),
    ]
    if found.retry_after_seconds is not None:
        headers.append((b"retry-after", str(found.retry_after_seconds).encode()))
    if found.status == 413:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": found.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
