"""From HTTP to a call and back: authentication, checks of the request, problems, request ids."""

import hmac
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.api import idempotency
from service.api.asgi import BodyTooLargeError, DisconnectedError, read_body, request_id_of
from service.api.call import Answer, Call, bad_query
from service.api.parts import Parts
from service.api.routes import OPERATIONS, Operation
from service.delivery.tenants import DEFAULT
from service.model.clock import MINUTE
from service.model.errors import Problem, StorageBusyError, StorageError
from service.model.key import Key
from service.store import keys
from service.telemetry import log, metrics

_log = log.get()
CALLBACK_PATH = "/callbacks/{upstream}/{token}"
_HANGUP = 499  # Nobody reads the answer; the number is nginx's.


def build(parts: Parts) -> Starlette:
    """The API as a Starlette application."""
    # POST goes past the router (app.py); here other methods are told which one there is.
    routes = [Route(CALLBACK_PATH, _nowhere, methods=["POST"])]
    routes += [
        Route(op.path, _endpoint(op, parts), methods=[op.method], name=f"{op.method} {op.path}")
        for op in OPERATIONS
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _http_error(parts)})
    app.router.redirect_slashes = False  # A redirected POST loses its body with many clients.
    return app


async def _nowhere(_request: Request) -> Response:
    raise HTTPException(404)


def _endpoint(operation: Operation, parts: Parts) -> Callable[..., Any]:
    async def endpoint(request: Request) -> Response:
        request_id = request_id_of(request.scope, parts.context.clock())
        with log.request(request_id):
            response = await _guarded(operation, parts, request, request_id)
        response.headers["x-request-id"] = request_id
        metrics.requests.add(1, str(response.status_code))
        return response

    return endpoint


async def _guarded(
    operation: Operation, parts: Parts, request: Request, request_id: str
) -> Response:
    try:
        answer = await _answer(operation, parts, request, request_id)
    except Problem as problem:
        return _problem(problem, request_id)
    except StorageBusyError:
        return _problem(_unavailable("Too much is being stored at once."), request_id)
    except StorageError as error:
        _log.error("request.not_stored", path=request.url.path, error=str(error))
        return _problem(_unavailable("The database does not take the request."), request_id)
    except DisconnectedError:
        return Response(status_code=_HANGUP)
    except Exception:  # noqa: BLE001  a stranger gets a problem, the log the traceback
        _log.exception("request.failed", path=request.url.path)
        return _problem(Problem(500, "internal_error", "Something went wrong here."), request_id)
    headers = dict(answer.headers)
    if answer.status == 204:
        return Response(status_code=204, headers=headers)
    return Response(answer.encoded(), answer.status, headers, answer.media_type)


async def _answer(operation: Operation, parts: Parts, request: Request, request_id: str) -> Answer:
    key = await _authenticate(operation, parts, request)
    query = _query(operation, request)
    call = Call(
        parts=parts,
        key=key,
        path=request.path_params,
        query=query,
        headers=request.headers,
        body=await _body(operation, parts, request),
        request_id=request_id,
    )
    if operation.makes:
        name = f"{operation.method} {operation.path}"
        return await idempotency.once(call, name, operation.makes, operation.handler)
    return await operation.handler(call)


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
        raise Problem(401, "unauthorized", "An API key is needed: Authorization: Bearer ghk_…")
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


def _unavailable(detail: str) -> Problem:
    return Problem(503, "storage_unavailable", detail, retry_after_seconds=1)


def _problem(problem: Problem, request_id: str) -> Response:
    answer = Answer(content=problem.document(request_id))
    headers: dict[str, str] = {}
    if problem.status == 401:
        headers["www-authenticate"] = "Bearer"
    if problem.retry_after_seconds is not None:
        headers["retry-after"] = str(problem.retry_after_seconds)
    return Response(answer.encoded(), problem.status, headers, "application/problem+json")


def _http_error(parts: Parts) -> Callable[..., Any]:
    """What answers where the router itself refuses: no such path, no such method."""

    async def answer(request: Request, error: Exception) -> Response:
        request_id = request_id_of(request.scope, parts.context.clock())
        assert isinstance(error, HTTPException)
        if error.status_code == 405:
            problem = Problem(405, "method_not_allowed", "This path does not take this method.")
        else:
            problem = Problem(404, "not_found", "There is nothing at this path.")
        response = _problem(problem, request_id)
        response.headers["x-request-id"] = request_id
        if error.status_code == 405:
            response.headers["allow"] = ", ".join(_methods(request))
        metrics.requests.add(1, str(error.status_code))
        return response

    return answer


def _methods(request: Request) -> list[str]:
    """Which methods the path takes, over all its routes."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    found = [r.methods or set() for r in routes if r.path_regex.match(request.url.path)]
    return sorted(set().union(*found))
