"""Refusals: what the entrance answers where no application sees the request."""

from typing import Any

from service.api.asgi import NOSNIFF, request_id_of
from service.api.problem import PROBLEM_TYPE, Problem
from service.cli.heads import HEAD_BYTES, HEADERS_MAX
from service.cli.serving import STATUS_LINE
from service.model.clock import now_ms
from service.telemetry import log, metrics
from service.telemetry.brake import Brake

LOGGED_PER_SECOND = 1

_LIMITS = f"A head may have {HEAD_BYTES} bytes and {HEADERS_MAX} headers."
_PROBLEMS = {
    400: Problem(400, "bad_request", "The request is not valid HTTP/1.1."),
    408: Problem(408, "request_timeout", "The request was not complete in time."),
    431: Problem(431, "head_too_large", _LIMITS),
    503: Problem(
        503, "overloaded", "There are too many connections.", headers={"retry-after": "1"}
    ),
}
_log = log.get()
_brake = Brake(LOGGED_PER_SECOND)


def refuse(status: int, scope: Any) -> bytes:
    """Return the whole answer to a request that is refused; count it, and log it now and then."""
    problem = _PROBLEMS[status]
    request_id = request_id_of(scope, now_ms())
    metrics.requests.add(1, str(status))
    unlogged = _brake.admit(now_ms())
    if unlogged is not None:
        what = {"status": status, "code": problem.code, "request_id": request_id}
        _log.info("request.refused", **what, unlogged=unlogged)
    body = problem.body(request_id)
    fields = (
        (b"content-type", PROBLEM_TYPE.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
        (b"x-request-id", request_id.encode()),
        NOSNIFF,
        *((name.encode(), value.encode()) for name, value in problem.headers.items()),
    )
    head = b"".join(b"%b: %b\r\n" % field for field in fields)
    return b"".join((STATUS_LINE[status], head, b"\r\n", body))


def disconnect(cycle: Any) -> None:
    """Let a request that is not answered yet know that nobody reads its answer."""
    if cycle is not None and not cycle.response_complete:
        cycle.disconnected = True
        cycle.message_event.set()
