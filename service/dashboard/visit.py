"""A request for a page: who asks, which API calls answer it, and the page in HTML."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple
from zlib import crc32

import jinja2
import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from service.context import Context, wait_for
from service.dashboard import media
from service.dashboard.acts import Act, Form, once_headers
from service.dashboard.calls import ApiCall, Reply, send
from service.dashboard.signatures import Signatures
from service.model.clock import SECOND
from service.model.key import Key, Scope
from service.settings import Settings
from service.telemetry.brake import Limiter

PATH = "/dashboard"
FILTER_CHARACTERS_MAX = 2_000
# What our own links and open pages have in a query beside filters.
_OWN_PARAMETERS = frozenset({"done", "at", "seen", "hosts"})
NOTICE_MS = 10 * SECOND  # A page that is loaded later, as from a bookmark, shows no notice.
# Between the tries of a form that was sent twice while its first request runs.
PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 0.05, 3.2
STORE_SECONDS = 10  # How long the first request may take beside its waits for upstream and work.


class Site(NamedTuple):
    """What all pages of a process share.

    find_key: returns the live key with a digest. read_body: returns a body of at most so many
    bytes, or raises HTTPException. assets: the names by content of the static files.
    """

    api: ASGIApp
    find_key: Callable[[Context, bytes], Awaitable[Key | None]]
    read_body: Callable[[Context, Request, int], Awaitable[bytes]]
    context: Context
    signatures: Signatures
    wrong_keys: Limiter
    templates: jinja2.Environment
    assets: Mapping[str, str]


class RefusedError(Exception):
    """The API refused a call that a page needs: `reply` has the problem."""

    def __init__(self, reply: Reply, back: str = "") -> None:
        """`back` is the page to go back to, below /dashboard; empty for the first one."""
        super().__init__(reply.status)
        self.reply, self.back = reply, back


class Visit:
    """One request of a browser. Every call that its page makes is shown on the page."""

    def __init__(self, site: Site, request: Request, id_: bytes, key: Key | None) -> None:
        """`id_` is the id in the cookie; `key` is None if nobody is signed in."""
        self.site, self.request, self.id_, self.key = site, request, id_, key
        # The path of the page where the answer is shown: an open page swaps in those of others.
        self.shown_at = self.path
        self.filter_names: tuple[str, ...] = ()
        self.wrong: dict[str, str] = {}  # What is wrong with fields of the page's form, by name.
        self.repeat: Form = {}  # The form that was sent, if the page offers to send it again.
        self.shown_calls: list[ApiCall] = []
        self._offers: set[str] = set()
        self.now = site.context.clock()
        self._origins: set[str] = set()

    @property
    def is_live(self) -> bool:
        """Whether a page that is open asks for its changed parts."""
        return "hx-request" in self.request.headers

    @property
    def is_of_another_sign_in(self) -> bool:
        """Whether the request comes from a page that was opened under another sign-in."""
        token = self.request.headers.get("x-form-token")
        return token is not None and not self.site.signatures.is_token(self.id_, token)

    @property
    def path(self) -> str:
        """The path of the page, which has no root path: `service.asgi` removes that."""
        return str(self.request.scope["path"])

    @property
    def place(self) -> str:
        """The path of the page below /dashboard."""
        return self.path.removeprefix(PATH)

    @property
    def token(self) -> str:
        """The token for the forms of the page."""
        return self.site.signatures.token(self.id_)

    def new_once(self) -> str:
        """Return a random text for `acts.once_headers`: a form that is posted twice acts once."""
        return self.site.context.random_bytes(16).hex()

    @property
    def id(self) -> str:
        """The id in the path of the page."""
        return str(self.request.path_params["id"])

    def may(self, scope: Scope, *, for_operators: bool = False) -> bool:
        """Whether the reader's key has a scope, or `operator` where that suffices."""
        if self.key is None:
            return False
        return self.key.has(scope) or (for_operators and self.key.has("operator"))

    @property
    def done(self) -> str:
        """The name of the act that led here a moment ago, as `redirect_after` named it."""
        query = self.request.query_params
        at = query.get("at", "")
        # Another process may have sent the browser here, whose clock is ahead.
        is_new = at.isdecimal() and len(at) < 20 and abs(self.now - int(at)) < NOTICE_MS
        return query.get("done", "") if is_new else ""

    def link(self, path: str = "", /, **query: str | None) -> str:
        """Return a relative link to a page, which works behind any path prefix of a proxy.

        It counts from where the answer is shown, which need not be where it was asked for.
        """
        up = "../" * (self.shown_at.count("/") - 1)
        call = ApiCall(path=path, query={n: v for n, v in query.items() if v})
        return f"{up}dashboard{call.target}"

    def link_here(self, **query: str | None) -> str:
        """Return a link to this page with its filters, and with `query` in place of the same."""
        return self.link(self.place, **(self.filters | query))

    def has_seen(self, state: str) -> bool:
        """Whether the request is of an open page that already shows this state."""
        return self.is_live and self.request.query_params.get("seen") == state

    def answer_list(self, template: str, page: Any, /, **values: Any) -> Response:
        """Render a list, which asks again while it is open; 204 if it already shows this page."""
        state = name_state(page)
        if self.has_seen(state):
            return Response(status_code=204)
        return self.render(template, 200, page=page, state=state, **values)

    def asset(self, name: str) -> str:
        """Return the link to a file, which changes when its content does."""
        return self.link(f"/static/{self.site.assets[name]}")

    def is_at(self, path: str) -> bool:
        """Whether this page is the one at a path, or below it in the menu."""
        return self.place == path or (bool(path) and self.place.startswith(f"{path}/"))

    def take_filters(self, names: tuple[str, ...]) -> None:
        """Take the page's filters from the query; RefusedError if one would be without effect."""
        query = self.request.query_params
        for name, count in Counter(name for name, _ in query.multi_items()).items():
            if name not in names and name not in _OWN_PARAMETERS:
                detail = f"This page has no filter {name[:50]}."
            elif count > 1:
                detail = f"The filter {name} is there more than once."
            else:
                continue
            raise self.refusal(Reply(400, {"detail": detail}))
        self.filter_names = names

    @property
    def filters(self) -> dict[str, str]:
        """The page's filters that are set in its query."""
        query = self.request.query_params
        values = {name: query.get(name, "").strip() for name in self.filter_names}
        return {n: value[:FILTER_CHARACTERS_MAX] for n, value in values.items() if value}

    async def get_list(self, path: str, fields: Mapping[str, str] = {}, /, **query: str) -> Any:
        """Return a page of a list; an empty one if a filter is wrong: then `wrong` says why.

        `fields` has the names of filters by those of the API's parameters, where they differ.
        """
        if not self.wrong:
            reply = await self.send(ApiCall(path=path, query=query))
            if reply.is_success:
                return reply.content
            wrong = {pointer.removeprefix("?"): message for pointer, message in reply.errors}
            wrong = {fields.get(name, name): message for name, message in wrong.items()}
            # A cursor has no field that could show it.
            if not wrong or not {*wrong} <= {*self.filters} - {"after"}:
                raise self.refusal(reply)
            self.wrong = wrong
        return {"data": [], "next": None}

    def refusal(self, reply: Reply) -> RefusedError:
        """Return the error that shows a problem, with a link to this page if the query is wrong."""
        return RefusedError(reply, self.place if reply.status == 400 else "")

    async def get(self, path: str, /, **query: str) -> Any:
        """Return what the API answers; RefusedError if it refuses."""
        reply = await self.send(ApiCall(path=path, query=query))
        if not reply.is_success:
            raise self.refusal(reply)
        return reply.content

    async def send(self, call: ApiCall, headers: Mapping[str, str] | None = None) -> Reply:
        """Make an API call with the reader's key, and show it on the page."""
        self.show_call(call)
        state = {"acting_key": self.key, "request_id": self.request.state.request_id}
        return await send(self.site.api, call, headers or {}, state)

    async def send_form(self, call: ApiCall, form: Form, once: str = "") -> Reply:
        """Make the call of a form: two clicks create or rotate once, with one answer.

        A browser shows the answer to the second click, so this waits while the call of the first
        runs. `once` takes the place of the form's field `once`.
        """
        headers = once_headers({"once": once} if once else form)
        context = self.site.context
        reply = await self.send(call, headers)
        for seconds in _pauses(context.settings):
            if not reply.is_running or context.stopping.is_set():
                break
            await wait_for(context.stopping, seconds)
            reply = await self.send(call, headers)
        if headers and reply.needs_repeat:
            self.repeat = form
        return reply

    def show_call(self, call: ApiCall) -> str:
        """Show a call on the page as curl, once; return an empty text for the template."""
        if call not in self.shown_calls:
            self.shown_calls.append(call)
        return ""

    def offer(self, act: Act, id_: str = "", form: Form | None = None) -> str:
        """Show the call of a button as curl, once for each act; return an empty text."""
        if act.name not in self._offers:
            self._offers.add(act.name)
            self.show_call(act.call(id_, form or act.example))
        return ""

    def show_media(self, files: Iterable[media.Medium]) -> None:
        """Let the page load files from their hosts."""
        self._origins |= {each.origin for each in files if each.can_be_embedded}

    def shows(self, medium: media.Medium) -> bool:
        """Whether the page embeds a file; otherwise it is only linked."""
        return medium.can_be_embedded and medium.origin in self.origins

    @property
    def origins(self) -> list[str]:
        """The origins that the page loads files from, at most HOSTS_MAX."""
        return sorted(self._origins)[: media.HOSTS_MAX]

    def render(self, template: str, status: int = 200, /, **values: Any) -> Response:
        """Return a page; 400 in place of 200 if a filter is wrong. Its filters are `fields`."""
        status = 400 if self.wrong and status == 200 else status
        page = self.site.templates.get_template(template)
        html = page.render(visit=self, fields=self.filters, **values)
        headers = {
            "content-security-policy": policy(self.origins),
            "referrer-policy": "same-origin",
            "cross-origin-opener-policy": "same-origin",
            "vary": "HX-Request",
        }
        if self.key is None:  # `with_request_ids` adds it for a key.
            headers["cache-control"] = "no-store"
        return Response(html, status, headers, "text/html; charset=utf-8")

    def redirect_after(self, done: str, path: str, **query: str) -> Response:
        """Send the browser to a page that says once what was done: an act by its name."""
        now = self.site.context.clock()  # The act may have taken long.
        return self.redirect(path, done=done, at=str(now), **query)

    def redirect(self, path: str = "", **query: str) -> Response:
        """Send the browser to another page; let an open page that asks for a part reload itself."""
        if self.is_live:
            return Response(status_code=204, headers={"hx-refresh": "true"})
        return Response(status_code=303, headers={"location": self.link(path, **query)})


def _pauses(settings: Settings) -> Iterator[float]:
    """Yield pauses in seconds that are together as long as a first request may take."""
    left = settings.submit_wait_seconds + settings.drive_seconds + STORE_SECONDS
    seconds = PAUSE_SECONDS_MIN
    while left >= PAUSE_SECONDS_MIN:
        seconds = min(seconds, left)
        yield seconds
        left -= seconds
        seconds = min(2 * seconds, PAUSE_SECONDS_MAX)


def name_state(shown: object) -> str:
    """Return a short name of what a page shows, for `has_seen`."""
    return f"{crc32(msgspec.json.encode(shown)):08x}"


def policy(origins: Iterable[str]) -> str:
    """Return the Content-Security-Policy of a page that shows files of these origins."""
    hosts = "".join(f" {origin}" for origin in origins)
    rules = (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        f"img-src 'self'{hosts}",
        f"media-src 'self'{hosts}",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
    return "; ".join(rules)
