"""From HTTP to a call and back: authentication, checks of the request, problems, request ids."""

import hmac
from collections.abc import Mapping
from functools import partial
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.api import idempotency
from service.api.asgi import App, BodyTooLargeError, DisconnectedError, Traced, read_body
from service.api.call import Answer, Call, Parts, bad_query, problem_answer
from service.api.problem import Problem
from service.api.routes import OPERATIONS, Operation
from service.delivery.tenants import DEFAULT
from service.model.clock import MINUTE
from service.model.errors import StorageBusyError, StorageError
from service.model.key import Key
from service.store import keys
from service.telemetry import log

_log = log.get()
# app.py answers these. Here they make the answer to another method a 405.
ANSWERED_IN_FRONT = (("/callbacks/{upstream}/{token}", "POST"), ("/healthz", "GET"))


def build(parts: Parts) -> App:
    """Build the API as an ASGI application."""
    operations: dict[str, dict[str, Operation]] = {}
    for operation in OPERATIONS:
        operations.setdefault(operation.path, {})[operation.method] = operation
    routes = [
        Route(path, partial(_serve, parts, by_method), methods=list(by_method))
        for path, by_method in operations.items()
    ]
    routes += [Route(path, _not_found, methods=[method]) for path, method in ANSWERED_IN_FRONT]
    app = Starlette(routes=routes, exception_handlers=_EXCEPTION_HANDLERS)
    app.router.redirect_slashes = False  # A redirected POST loses its body with many clients.
    return Traced(app, parts.context.clock)


async def _not_found(_request: Request) -> Response:
    raise HTTPException(404)


async def _serve(parts: Parts, by_method: Mapping[str, Operation], request: Request) -> Response:
    operation = by_method["GET" if request.method == "HEAD" else request.method]
    key = await _authenticate(operation, parts, request)
    query = _query(operation, request)
    call = Call(
        parts=parts,
        key=key,
        path=request.path_params,
        query=query,
        headers=request.headers,
        body=await _body(operation, parts, request),
        request_id=request.state.request_id,
    )
    if operation.makes:
        name = f"{operation.method} {operation.path}"
        return _response(await idempotency.once(call, name, operation.makes, operation.handler))
    return _response(await operation.handler(call))


def _response(answer: Answer) -> Response:
    if answer.status == 204:
        return Response(status_code=204, headers=dict(answer.headers))
    return Response(answer.encoded(), answer.status, dict(answer.headers), answer.media_type)


async def _refuse(request: Request, error: Exception) -> Response:
    """Answer an error with a problem."""
    problem = _problem(error, request.url.path)
    return _response(problem_answer(problem, request.state.request_id))


def _problem(error: Exception, path: str) -> Problem:
    match error:
        case Problem():
            return error
        case HTTPException(status_code=405, headers=headers):  # Starlette's `Allow` has no order.
            allow = ", ".join(sorted((headers or {})["Allow"].split(", ")))
            detail = "This path does not take this method."
            return Problem(405, "method_not_allowed", detail, headers={"allow": allow})
        case HTTPException():
            return Problem(404, "not_found", "There is nothing at this path.")
        case StorageBusyError():
            return _unavailable("Too much is being stored at once.")
        case StorageError():
            _log.error("request.not_stored", path=path, error=str(error))
            return _unavailable("The database does not take the request.")
    _log.exception("request.failed", path=path)
    return Problem(500, "internal_error", "Something went wrong here.")


def _unavailable(detail: str) -> Problem:
    return Problem(503, "storage_unavailable", detail, headers={"retry-after": "1"})


async def _hang_up(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)  # Nobody reads it; nginx logs a hang-up with this number.


_EXCEPTION_HANDLERS = {
    **dict.fromkeys((Problem, HTTPException, StorageError, Exception), _refuse),
    DisconnectedError: _hang_up,
}

_NOBODY = Key(
    id="", name="", tenant="", scopes=[], created_at=0, last_used_at=None, revoked_at=None
)
_ADMIN = Key(
    id="key_admin",
    name="GENHOOK_ADMIN_KEY",
    tenant=DEFAULT,
    scopes=["admin"],
    created_at=0,
    last_used_at=None,
    revoked_at=None,
)


async def _authenticate(operation: Operation, parts: Parts, request: Request) -> Key:
    """Whose key it is; Problem 401 without a good one, 403 without the scope."""
    who = operation.who
    settings = parts.context.settings
    if who == "open":
        closed = (operation.path == "/metrics" and not settings.open_metrics) or (
            operation.path in ("/docs", "/openapi.yaml") and not settings.open_docs
        )
        if not closed:
            return _NOBODY
        who = "admin" if operation.path == "/metrics" else "read"
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    key = await _key(parts, secret.strip()) if scheme.lower() == "bearer" else None
    if key is None:
        raise Problem(
            401,
            "unauthorized",
            "An API key is needed: Authorization: Bearer ghk_…",
            headers={"www-authenticate": "Bearer"},
        )
    if who not in key.scopes and "admin" not in key.scopes:
        raise Problem(403, "forbidden", f"The key lacks the scope {who}.")
    return key


async def _key(parts: Parts, secret: str) -> Key | None:
    context = parts.context
    admin_key = context.settings.admin_key
    if admin_key and hmac.compare_digest(keys.digest(secret), keys.digest(admin_key)):
        return _ADMIN
    if not secret.startswith("ghk_"):
        return None
    key = await context.database.read(keys.find, secret)
    if key is not None and (key.last_used_at or 0) < context.clock() - MINUTE:
        try:
            await context.database.write_batched(keys.used, (key.id, context.clock()))
        except StorageError as error:
            _log.warning("key.use_not_noted", error=str(error))
    return key


def _query(operation: Operation, request: Request) -> dict[str, str]:
    """The query parameters; Problem 400 for an unknown, repeated or undecodable one."""
    query: dict[str, str] = {}
    if operation.who == "open":
        return query  # A probe or a browser may append what it likes.
    text = request.scope["query_string"].decode("latin-1")
    try:
        fields = parse_qsl(text, keep_blank_values=True, max_num_fields=100)
    except ValueError:
        raise Problem(400, "invalid_query", "There are more than 100 parameters.") from None
    for name, value in fields:
        family = "metadata." if name.startswith("metadata.") else name
        if family not in operation.query:
            raise bad_query(name[:64], "is not known here")
        if name in query:
            raise bad_query(name[:64], "is given twice")
        if "\0" in value or "\ufffd" in value:
            raise bad_query(name[:64], "has characters that no value has")
        query[name] = value
    return query


async def _body(operation: Operation, parts: Parts, request: Request) -> bytes:
    if not (operation.makes or operation.reads):
        return b""
    limit = parts.context.settings.request_body_bytes
    try:
        body = await read_body(request.scope, request.receive, limit)
    except BodyTooLargeError as error:
        raise Problem(413, "body_too_large", str(error)) from None
    media_type = request.headers.get("content-type", "application/json").partition(";")[0]
    if body and media_type.strip().lower() != "application/json":
        raise Problem(415, "unsupported_media_type", "Send the body as application/json.")
    return body
