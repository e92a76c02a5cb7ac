"""Plain ASGI: reading a body, sending a problem, /healthz, and request ids."""

import asyncio
import re
import types
from collections.abc import Callable, Coroutine, Generator, Mapping
from functools import partial
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problem import PROBLEM_TYPE, Problem
from service.model.clock import Clock
from service.model.ids import new_id
from service.telemetry import log, metrics
from service.telemetry.brake import Brake

NOSNIFF = (b"x-content-type-options", b"nosniff")
PATH_CHARACTERS_MAX = 200  # The log shows no more of a path.
ARRIVING_BYTES_MAX = 128 * 1024 * 1024  # Of all incomplete bodies together, else 503.
STRANGERS_LOGGED_PER_SECOND = 20  # Lines about refused requests without a valid key.
_SHOWN_SEGMENT = re.compile(r"[a-z0-9_-]{0,40}")  # Names and ids, never a callback's token.
_log = log.get()
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class DisconnectedError(Exception):
    """The client disconnected before its request was complete."""


async def read_body(scope: Scope, receive: Receive, bytes_max: int, seconds: float) -> bytes:
    """Return the body; Problem 413 if it is over `bytes_max`, or if its Content-Length is.

    Problem 408 after `seconds`, 503 if too many bodies arrive; DisconnectedError if the client went
    away. A timer costs more than to read a body that has arrived, so it starts only for a wait.
    """
    reading = _read_parts(scope, receive, bytes_max)
    try:
        future = reading.send(None)
    except StopIteration as stop:
        body: bytes = stop.value
        return body
    try:
        async with asyncio.timeout(seconds):
            return await _go_on(reading, future)
    except TimeoutError:
        detail = f"The body was not complete after {seconds:g} s."
        headers = {"connection": "close"}
        raise Problem(408, "request_timeout", detail, headers=headers) from None


@types.coroutine
def _go_on(reading: Coroutine[Any, Any, bytes], future: Any) -> Generator[Any, Any, bytes]:
    """Continue a coroutine whose first step has run, and which waits for `future`."""
    step: Callable[[], Any]
    while True:
        try:
            result = yield future
        except BaseException as error:  # noqa: BLE001  the timeout, or the server's cancellation
            step = partial(reading.throw, error)
        else:
            step = partial(reading.send, result)
        try:
            future = step()
        except StopIteration as stop:
            body: bytes = stop.value
            return body
        finally:
            del step  # An error in it would hold this frame, and so what was read.


async def _read_parts(scope: Scope, receive: Receive, bytes_max: int) -> bytes:
    parts: list[bytes] = []
    size, held_bytes, is_complete = 0, 0, False
    # Checked before `receive`, which asks a client that expects 100 (Continue) for the body.
    if _read_content_length(scope) > bytes_max:
        raise _too_large(bytes_max)
    try:
        while not is_complete:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise DisconnectedError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            is_complete = not message.get("more_body")
            if size > bytes_max:
                raise _too_large(bytes_max)
            if not is_complete:
                held_bytes = _arriving.hold(held_bytes, size)
    finally:
        if held_bytes:
            _arriving.hold(held_bytes, 0)
    return b"".join(parts)


def _too_large(bytes_max: int) -> Problem:
    return Problem(413, "body_too_large", f"The body has more than {bytes_max} bytes.")


class _Arriving:
    """How many bytes of incomplete bodies the process holds."""

    def __init__(self) -> None:
        self._bytes = 0

    def hold(self, before: int, size: int) -> int:
        """Count `size` bytes of a body instead of `before`; Problem 503 over ARRIVING_BYTES_MAX.

        A single incomplete body has only its own limit.
        """
        others = self._bytes - before
        if size > before and others and others + size > ARRIVING_BYTES_MAX:
            headers = {"retry-after": "1", "connection": "close"}
            raise Problem(503, "overloaded", "Too many bodies are arriving.", headers=headers)
        self._bytes = others + size
        return size


_arriving = _Arriving()


def _read_content_length(scope: Scope) -> int:
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    return max((int(length[:18]) for length in lengths if length.isdigit()), default=0)


async def healthz(scope: Scope, send: Send, now: int) -> None:
    """GET and HEAD /healthz: 200 if the process can answer."""
    headers = {"x-request-id": request_id_of(scope, now)}
    await _send(send, 200, "application/json", b'{"status":"ok"}', headers)
    metrics.requests.add(1, "200")


async def refuse(scope: Scope, send: Send, problem: Problem, now: int) -> None:
    """Answer a request that does not reach the API with a problem; count and log it."""
    state = scope.setdefault("state", {})
    state["code"] = problem.code
    request_id = request_id_of(scope, now)
    await send_problem(send, problem, request_id)
    metrics.requests.add(1, str(problem.status))
    with log.request(request_id):
        _log_refusal(scope, problem.status)


async def send_problem(send: Send, problem: Problem, request_id: str) -> None:
    """Answer with a problem."""
    headers = {"x-request-id": request_id, **problem.headers}
    await _send(send, problem.status, PROBLEM_TYPE, problem.body(request_id), headers)


async def _send(
    send: Send, status: int, media_type: str, body: bytes, headers: Mapping[str, str]
) -> None:
    headers = {"content-type": media_type, "content-length": str(len(body)), **headers}
    lines = [(name.encode(), value.encode()) for name, value in headers.items()] + [NOSNIFF]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})


def with_request_ids(app: ASGIApp, clock: Clock) -> ASGIApp:
    """Wrap `app`: give every request an id, in the log and in its answer, and count it.

    The application finds the id in `scope["state"]["request_id"]`. In the same place it stores the
    `key` of the request and the `code` of a problem, for the log.
    """
    strangers = Brake(STRANGERS_LOGGED_PER_SECOND)

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        request_id = request_id_of(scope, clock())
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        is_answered = False

        async def send_with_id(message: Message) -> None:
            nonlocal is_answered
            if message["type"] == "http.response.start":
                is_answered = True
                message["headers"] += [(b"x-request-id", request_id.encode()), NOSNIFF]
                if "key" in state:  # The answer may hold a secret, or a person's picture.
                    message["headers"].append((b"cache-control", b"no-store"))
                metrics.requests.add(1, str(message["status"]))
                _log_refusal(scope, message["status"], lambda: strangers.admit(clock()))
            await send(message)

        with log.request(request_id):
            try:
                await app(scope, receive, send_with_id)
            except Exception:
                # Starlette answers with 500 and raises again what the API has logged.
                if not is_answered:
                    raise

    return run


def _hide_segments(path: str) -> str:
    """Return a path for the log, without segments that may be or hold a callback's token."""
    segments = path[:PATH_CHARACTERS_MAX].split("/")
    return "/".join([s if _SHOWN_SEGMENT.fullmatch(s) else "[hidden]" for s in segments])


def _log_refusal(scope: Scope, status: int, admit: Callable[[], int | None] = lambda: 0) -> None:
    """Log a refused request, so that its request id can be found in the log.

    Strangers must not fill the disk: `admit`, as Brake.admit, limits lines without a valid key.
    """
    if not (400 <= status < 500 or status == 503) or status == 499:  # 499: the client hung up.
        return
    state: dict[str, Any] = scope["state"]
    key = state.get("key")
    unlogged = 0 if key else admit()
    if unlogged is None:
        return
    _log.info(
        "request.refused",
        status=status,
        code=state.get("code"),
        method=scope["method"],
        path=_hide_segments(scope["path"]),
        key_id=key.id if key else None,
        tenant=key.tenant if key else None,
        **({"unlogged": unlogged} if unlogged else {}),
    )


def request_id_of(scope: Scope, now: int) -> str:
    """Return the request's id: the one it has, else the client's if it is safe, else a new one."""
    if known := scope.get("state", {}).get("request_id"):
        return str(known)
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value, "ascii")
    return new_id("req", now)
