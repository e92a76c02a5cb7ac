"""Turns HTTP requests into calls, and answers and exceptions into HTTP responses."""

import hmac
import re
from collections.abc import Mapping
from functools import partial
from itertools import groupby
from operator import attrgetter
from urllib.parse import parse_qsl

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Route
from starlette.types import ASGIApp

from service.api import idempotency
from service.api.asgi import DisconnectedError, read_body, with_request_ids
from service.api.call import Answer, Call, Worker, answer, answer_problem, bad_query, read_header
from service.api.problem import (
    FieldError,
    Problem,
    internal_error,
    secret_unreadable,
    unavailable,
)
from service.api.routes import OPERATIONS, Operation
from service.context import Context
from service.model.clock import MINUTE
from service.model.errors import (
    SearchTooLongError,
    StorageBusyError,
    StorageError,
    UnstoredError,
)
from service.model.key import DEFAULT_TENANT, KEY_PREFIX, Key
from service.settings import Settings
from service.store import keys
from service.store.vault import VaultError
from service.telemetry import log

PARAMETERS_MAX = 100
_SAFE = ("GET", "HEAD")
_TOO_MUCH = "looks at too much"  # `detail` repeats such a message: no client has to show both.
_WITH_KEY = "Repeat it with the same Idempotency-Key."
_EARLIER_TRY = "An earlier try with this key may have: repeat it with the same Idempotency-Key."
_WITHOUT_KEY = "A repeat is safe only with the Idempotency-Key of the first try; this had none."
_NO_TEXT = re.compile("[\ud800-\udfff]")  # Bytes that are not UTF-8, as `surrogateescape` has them.
_KEY_NEEDED = "An API key is needed: Authorization: Bearer ghk_…"
_AUDITED = ("tenant", "scopes", "subscriber_id")  # Fields of a created resource that the log shows.

_log = log.get()
# app.py answers these. They are routes here too, so that another method is answered 405.
ANSWERED_IN_FRONT = (("/callbacks/{upstream}/{token}", "POST"), ("/healthz", "GET"))


class NoFields(msgspec.Struct, forbid_unknown_fields=True):
    """The body, if there is one, of an operation that takes none: `{}`.

    genhook would ignore what a client means by a field.
    """


def build(worker: Worker) -> ASGIApp:
    """Build the API as an ASGI application."""
    routes = [Route(path, _not_found, methods=[method]) for path, method in ANSWERED_IN_FRONT]
    for path, operations in groupby(OPERATIONS, key=attrgetter("path")):
        by_method = {operation.method: operation for operation in operations}
        routes.append(Route(path, partial(_serve, worker, by_method), methods=list(by_method)))
    errors = (Problem, HTTPException, StorageError, VaultError, DisconnectedError, Exception)
    app = Starlette(routes=routes, exception_handlers=dict.fromkeys(errors, _refuse))
    app.router.redirect_slashes = False  # A redirected POST loses its body with many clients.
    return with_request_ids(app, worker.context.clock)


async def _not_found(_request: Request) -> Answer:
    raise HTTPException(404)


async def _serve(worker: Worker, by_method: Mapping[str, Operation], request: Request) -> Answer:
    operation = by_method["GET" if request.method == "HEAD" else request.method]
    request.state.operation = operation
    context = worker.context
    key = await _authenticate(operation, context, request)
    call = Call(
        worker=worker,
        context=context,
        database=context.database,
        key=key,
        tenant=key.tenant,
        path=request.path_params,
        query=_read_query(operation, request),
        headers=request.headers,
        body=await _read_body(operation, context.settings, request),
        request_id=request.state.request_id,
        receive=request.receive,
    )
    if not operation.reads_body and call.body:
        call.decode(NoFields)
        call = msgspec.structs.replace(call, body=b"")
    request.state.has_begun = True  # From now on something may be stored.
    result = await _run(call, operation)
    if operation.audit:
        _log_act(call, operation, result)
    return result


async def _run(call: Call, operation: Operation) -> Answer:
    if operation.creates:
        # An admin must not get the stored answer to an operator's request.
        is_operator = operation.for_operators and call.key.has("operator")
        path = operation.path.format(**call.path)
        name = f"{operation.method} {path}{' by an operator' * is_operator}"
        return await idempotency.once(call, name, operation.creates, operation.run)
    database, unit = call.database, operation.run
    match operation.unit:
        case None:
            result = await operation.run(call)
        case "search":
            result = await database.search(call.tenant, unit, call)
        case "read":
            result = await database.read(unit, call)
        case "write":
            held_bytes = len(call.body)
            result = await database.write(unit, call, tenant=call.tenant, held_bytes=held_bytes)
    if result is None:
        return Answer(status_code=204)
    return result if isinstance(result, Answer) else answer(result.view())


def _log_act(call: Call, operation: Operation, result: Answer) -> None:
    """Log the act of a call, its key and the id of its resource, unless it was refused."""
    is_repeated = "idempotency-replayed" in result.headers
    act = operation.audit_again if is_repeated else operation.audit
    if result.status_code >= 400 or not act:
        return
    id_, details = call.path.get("id"), {}
    if operation.creates:
        view = msgspec.json.decode(result.body)
        id_ = view.get("id", id_)
        details = {f"of_{name}": view[name] for name in _AUDITED if name in view}
    who = {"key_id": call.key.id, "tenant": call.tenant}
    _log.info("audit", act=act, id=id_, **who, **details)


async def _refuse(request: Request, error: Exception) -> Answer:
    """Answer an error with a problem."""
    path = request.scope["path"]  # `request.url` fails on a bad query.
    match error:
        case DisconnectedError():
            return Answer(status_code=499)  # nginx's code for a client that hung up.
        case Problem():
            problem = error
        case HTTPException(status_code=405, headers=headers):  # Starlette's `Allow` has no order.
            allow = {"allow": ", ".join(sorted((headers or {})["Allow"].split(", ")))}
            detail = "This path does not take this method."
            problem = Problem(405, "method_not_allowed", detail, headers=allow)
        case HTTPException():
            problem = Problem(404, "not_found", "There is nothing at this path.")
        case SearchTooLongError():
            detail = "The search looks at too much. If it takes filters or a time, ask for less."
            pointer = "?" if request.method in _SAFE else ""
            problem = Problem(400, "invalid_query", detail, [FieldError(pointer, _TOO_MUCH)])
        case StorageError():
            problem = _answer_storage(request, error)
        case VaultError():
            _log.error("secret.unreadable", path=path, error=str(error))
            problem = secret_unreadable()
        case _:
            _log.exception("request.failed", path=path)
            problem = internal_error()
    request.state.code = problem.code
    return answer_problem(problem, request.state.request_id)


def _answer_storage(request: Request, error: StorageError) -> Problem:
    """503: say whether the request is surely not stored, or may be: a repeat might be paid twice.

    What this try did says nothing of an earlier one with its Idempotency-Key.
    """
    path, state = request.scope["path"], request.scope["state"]
    operation: Operation = state["operation"]
    is_busy = isinstance(error, StorageBusyError)
    reason = error if is_busy else "the database failed"
    is_read = request.method in _SAFE
    if not is_busy:
        event = "request.not_read" if is_read else "request.not_stored"
        _log.error(event, path=path, error=str(error))
    if is_read:
        return unavailable(f"The answer could not be read: {reason}. Try again.")
    is_keyed = operation.creates and "idempotency-key" in request.headers
    is_refused = isinstance(error, UnstoredError) and operation.is_one_unit
    if is_refused or not state.get("has_begun"):
        if is_keyed:
            return unavailable(f"This try stored nothing: {reason}. {_EARLIER_TRY}")
        return unavailable(f"Nothing was stored: {reason}. Try again.")
    advice = "Look whether it was before you repeat it."
    if operation.creates:
        advice = _WITH_KEY if is_keyed else f"{advice} {_WITHOUT_KEY}"
    return unavailable(f"The request may have been stored: {reason}. {advice}")


_NO_KEY = Key(id="", name="", tenant="", scopes=[], created_at=0)
_ADMIN_KEY = Key(
    id="key_admin",
    name="GENHOOK_ADMIN_KEY",
    tenant=DEFAULT_TENANT,
    scopes=["admin", "operator"],
    created_at=0,
)


async def _authenticate(operation: Operation, context: Context, request: Request) -> Key:
    """Return the key of the request; Problem 401 if it is not valid, 403 if it lacks the scope."""
    scope, settings = operation.scope, context.settings
    if operation.path == "/metrics" and not settings.open_metrics:
        scope = "operator"  # The metrics are those of all tenants.
    if operation.path in ("/docs", "/openapi.yaml") and not settings.open_docs:
        scope = "read"
    if scope == "open":
        return _NO_KEY
    scheme, _, secret = (read_header(request.headers, "Authorization") or "").partition(" ")
    secret = secret.strip()
    # Set by the dashboard, which calls the API in this process. No client can set it.
    key: Key | None = request.scope["state"].get("acting_key")
    if key is None and scheme.lower() == "bearer" and secret.startswith(KEY_PREFIX):
        key = await find_key(context, keys.digest(secret))
    if key is None:
        headers = {"www-authenticate": "Bearer"}
        detail = "The API key is unknown or revoked." if secret else _KEY_NEEDED
        raise Problem(401, "unauthorized", detail, headers=headers)
    request.state.key = key
    if not (key.has(scope) or (operation.for_operators and key.has("operator"))):
        raise Problem(403, "forbidden", f"The key lacks the scope {scope}.")
    return key


async def find_key(context: Context, key_sha256: bytes) -> Key | None:
    """Return the key with this digest unless it is revoked; record its use once a minute."""
    admin_key = context.settings.admin_key
    if admin_key and hmac.compare_digest(key_sha256, keys.digest(admin_key)):
        return _ADMIN_KEY
    key = await context.database.read(keys.get_by_digest, key_sha256)
    if key is not None and (key.last_used_at or 0) < context.clock() - MINUTE:
        try:
            use = key.id, context.clock()
            await context.database.write_batched(keys.record_uses, use, tenant=key.tenant)
        except StorageError as error:
            _log.warning("key.use_not_noted", error=str(error))
    return key


def _read_query(operation: Operation, request: Request) -> dict[str, str]:
    """Return the query; Problem 400 if a parameter is unknown, repeated or not text."""
    query: dict[str, str] = {}
    if operation.scope == "open":
        return query  # Probes and browsers may append parameters of their own.
    text = request.scope["query_string"].decode(errors="surrogateescape")
    if text.count("&") >= PARAMETERS_MAX:
        message = f"are more than {PARAMETERS_MAX} parameters"
        raise Problem(400, "invalid_query", f"There {message}.", [FieldError("?", message)])
    for name, value in parse_qsl(text, keep_blank_values=True, errors="surrogateescape"):
        shown = name[:64].encode(errors="replace").decode()
        known = "metadata." if name.startswith("metadata.") else name
        if not name:
            detail, message = "A query parameter has no name.", "has a parameter without a name"
            raise Problem(400, "invalid_query", detail, [FieldError("?", message)])
        if known not in operation.query:
            raise bad_query(shown, "is unknown")
        if name in query:
            raise bad_query(shown, "is repeated")
        if "\0" in value or _NO_TEXT.search(name + value):
            raise bad_query(shown, "must be UTF-8 without NUL")
        query[name] = value
    return query


async def _read_body(operation: Operation, settings: Settings, request: Request) -> bytes:
    if operation.method == "GET":
        return b""  # A body of a GET means nothing (RFC 9110 section 9.3.1).
    limits = settings.request_body_bytes, settings.body_seconds
    body = await read_body(request.scope, request.receive, *limits)
    if not operation.reads_body:
        return body.strip()
    media_type = request.headers.get("content-type", "application/json").partition(";")[0]
    if body and media_type.strip().lower() != "application/json":
        raise Problem(415, "unsupported_media_type", "Send the body as application/json.")
    codings = request.headers.get("content-encoding", "").lower().split(",")
    if body and not {coding.strip() for coding in codings} <= {"", "identity"}:
        raise Problem(415, "unsupported_media_type", "Send the body without a Content-Encoding.")
    return body


async def read_form(context: Context, request: Request, bytes_max: int) -> bytes:
    """Return the body of a form of a page; HTTPException if it is refused."""
    try:
        seconds = context.settings.body_seconds
        return await read_body(request.scope, request.receive, bytes_max, seconds)
    except Problem as problem:
        raise HTTPException(problem.status, problem.detail, problem.headers) from None
    except DisconnectedError:
        raise ClientDisconnect from None
