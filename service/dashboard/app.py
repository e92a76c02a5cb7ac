"""The pages as an ASGI application: routes, forms, signing in and out, files, errors."""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from service.context import Context
from service.dashboard import formats, models, replay_form, sign_in, subscriber_form
from service.dashboard.acts import ACTS, Act, Form
from service.dashboard.calls import Reply
from service.dashboard.forms import read_form
from service.dashboard.pages import PAGES, PARTS, Page
from service.dashboard.signatures import Signatures
from service.dashboard.visit import PATH, RefusedError, Site, Visit
from service.model.errors import StorageError
from service.model.key import Key
from service.telemetry import log
from service.telemetry.brake import Limiter

FOLDER = Path(__file__).parent
STATIC = {
    "style.css": "text/css",
    "htmx.min.js": "text/javascript",
    "live.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
NOTICES = {act.name: act.notice for act in ACTS} | {
    "models.try": "The generation was submitted.",
    "subscribers.edit": "The subscriber is changed.",
    "subscribers.same": "Nothing was changed: the form has the values of before.",
}
_EXPLAINED = {
    401: "The key was revoked while you were signed in.",
    403: "Your key may not do this.",
    404: "There is nothing here, or it belongs to somebody else.",
}
_log = log.get()
Run = Callable[[Visit], Awaitable[Response]]
Submit = Callable[[Visit, Form], Awaitable[Response]]
# Forms that do more than make the call of an act; `/replays/create` stands in for its act.
FORMS: Mapping[str, Submit] = {
    "/sign-out": sign_in.sign_out,
    "/models/try": models.run_try,
    "/subscribers/{id}/edit": subscriber_form.run,
    "/replays/create": replay_form.run,
}


def build(
    api: ASGIApp,
    find_key: Callable[[Context, bytes], Awaitable[Key | None]],
    read_body: Callable[[Context, Request, int], Awaitable[bytes]],
    context: Context,
) -> ASGIApp:
    """Build the pages over the API, with what `Site` says of `find_key` and `read_body`."""
    assets = {name: _name_by_content(name) for name in STATIC}
    files = {asset: FOLDER / "static" / name for name, asset in assets.items()}
    keys = context.settings.secret_keys
    signatures, templates = Signatures(keys), _templates()
    wrong_keys = Limiter(sign_in.WRONG_KEYS_PERIOD_MS)
    site = Site(api, find_key, read_body, context, signatures, wrong_keys, templates, assets)
    routes = [
        _route(site, "/sign-in", sign_in.show_sign_in, "GET"),
        _route(site, "/sign-in", sign_in.sign_in, "POST"),
        Route(f"{PATH}/static/{{name}}", partial(_serve_file, files)),
        Route(f"{PATH}/", partial(_forward, site)),
    ]
    forms: dict[str, Submit] = {act.path: partial(_perform, act) for act in ACTS}
    forms |= FORMS
    routes += [_route(site, path, partial(_submit, run), "POST") for path, run in forms.items()]
    routes += [_route(site, page.path, partial(_show, page), "GET") for page in (*PAGES, *PARTS)]
    errors = dict.fromkeys((HTTPException, Exception), partial(_refuse, site))
    app = Starlette(routes=routes, exception_handlers=errors)
    app.router.redirect_slashes = False
    return app


def _templates() -> jinja2.Environment:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    templates.filters.update(formats.FILTERS)
    templates.globals.update(pages=PAGES, acts={act.path: act for act in ACTS}, notices=NOTICES)
    return templates


def _name_by_content(name: str) -> str:
    """Return the name of a file with a part that changes when the file does."""
    path = FOLDER / "static" / name
    return f"{path.stem}.{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}{path.suffix}"


def _route(site: Site, path: str, run: Run, method: str) -> Route:
    return Route(f"{PATH}{path}", partial(_answer, site, run), methods=[method])


async def _answer(site: Site, run: Run, request: Request) -> Response:
    """Run a page for the signed-in key; a refusal of the API becomes a page."""
    id_, key = await sign_in.identify(site, request)
    if key is not None:
        request.state.key = key  # It is logged, and makes the answer `no-store`.
    visit = Visit(site, request, id_, key)
    try:
        return await run(visit)
    except RefusedError as error:
        if visit.is_live and error.reply.status == 404:
            return visit.redirect()  # Deleted in another tab: the reload says so.
        return _render_problem(visit, error.reply, back=error.back)


async def _show(page: Page, visit: Visit) -> Response:
    if visit.key is None:
        return sign_in.ask_to_sign_in(visit)
    if visit.is_of_another_sign_in:
        return visit.redirect()
    if visit.is_live and page.shown_on is not None:
        visit.shown_at = f"{PATH}{page.shown_on}"
    if not page.path and not page.is_shown_to(visit):  # The first shown in the menu.
        return visit.redirect(next(p.path for p in PAGES if p.name and p.is_shown_to(visit)))
    visit.take_filters(page.filters)
    return await page.show(visit)


async def _submit(run: Submit, visit: Visit) -> Response:
    """Run a form's function if the form has the token of this sign-in; else 403."""
    if visit.key is None:
        return sign_in.ask_to_sign_in(visit)
    form = await read_form(visit)
    if not visit.site.signatures.is_token(visit.id_, form.get("token", "")):
        raise HTTPException(
            403, "The form is not of this sign-in. Go back, and load that page again."
        )
    return await run(visit, form)


async def _perform(act: Act, visit: Visit, form: Form) -> Response:
    """Make the API call of an act; show the answer once, or go to the next page."""
    id_ = visit.request.path_params.get("id", "")
    reply = await visit.send_form(act.call(id_, form), form)
    if not reply.is_success:
        back = "" if reply.status == 404 else act.page.replace("{id}", id_)
        return _render_problem(visit, reply, back=back)
    if act.result:
        return visit.render(act.result, 200, answer=reply.content, id=id_, act=act)
    new_id = reply.content["id"] if reply.content else ""
    filters = {name: form.get(name, "") for name in act.filters}
    return visit.redirect_after(act.name, act.target(id_, new_id), **filters)


def _render_problem(visit: Visit, reply: Reply, back: str = "") -> Response:
    if reply.status == 401:
        return sign_in.ask_to_sign_in(visit)
    problem = reply.content if isinstance(reply.content, dict) else {}
    values = {"problem": problem, "explained": _EXPLAINED.get(reply.status, "")}
    return visit.render("problem.html", reply.status, status=reply.status, back=back, **values)


async def _serve_file(files: dict[str, Path], request: Request) -> Response:
    path = files.get(request.path_params["name"])
    if path is None:
        raise HTTPException(404)
    headers = {"cache-control": "public, max-age=31536000, immutable"}
    return Response(path.read_bytes(), 200, headers, STATIC[path.name])


async def _forward(site: Site, request: Request) -> Response:
    """GET /dashboard/: redirect to the path without the slash."""
    return Visit(site, request, b"", None).redirect()


async def _refuse(site: Site, request: Request, error: Exception) -> Response:
    """Answer an error with a page that does not need the database."""
    headers: Mapping[str, str] = {}
    match error:
        case ClientDisconnect():
            return Response(status_code=499)
        case HTTPException(status_code=404):
            status, detail = 404, _EXPLAINED[404]
        case HTTPException(status_code=405):
            status, detail = 405, "A form is sent to this address; it is no page."
            headers = error.headers or {}  # `Allow`.
        case HTTPException(status_code=status, detail=detail):
            headers = error.headers or {}  # Such as `Connection: close`.
        case StorageError():
            _log.error("page.not_read", path=request.scope["path"], error=str(error))
            status, detail = 503, "The database does not answer. Try again in a moment."
        case _:
            _log.exception("page.failed", path=request.scope["path"])
            status, detail = 500, "Something went wrong here."
    visit = Visit(site, request, b"", None)
    values: dict[str, Any] = {"problem": {"detail": detail}, "explained": "", "back": ""}
    response = visit.render("problem.html", status, status=status, **values)
    response.headers.update(headers)
    return response
