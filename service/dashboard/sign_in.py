"""The key of a sign-in; the pages that sign in and out."""

import ipaddress
import re

from starlette.requests import Request
from starlette.responses import Response

from service.dashboard.forms import read_form
from service.dashboard.pages import PAGES
from service.dashboard.visit import PATH, Site, Visit
from service.model.clock import MINUTE, SECOND
from service.model.key import KEY_PREFIX, Key
from service.store import keys, sign_ins
from service.telemetry import log

# Where to go after signing in: a page of ours, never another host, nor the address of a form.
_PAGES = "|".join(page.path.replace("{id}", "[a-z]+_[0-9a-f]{32}") for page in PAGES)
_NEXT = re.compile(rf"(?:{_PAGES})(\?[A-Za-z0-9_.=&%:+*-]{{0,500}})?")
_HAS_ENDED = "sign_in.ended"
_ENDED = "Your sign-in has ended; nothing was done."
_UNKNOWN = "This key is unknown or revoked."
_TOO_MANY = "This key is unknown or revoked, and there were too many such keys in this minute."
_STALE = "The form was too old. Try again."
_NO_COOKIE = "Your browser sent no cookie. Signing in needs one: allow it, and try again."
COOKIE = "genhook_sign_in"
ADDRESS_CHARACTERS_MAX = 45
# Wrong keys in a period, from one address and from all, which also bounds invented addresses. A
# key has 256 bits, so nobody guesses one. The limit tells a program that tries keys to stop.
WRONG_KEYS_PERIOD_MS = MINUTE  # Of `Site.wrong_keys`; `_TOO_MANY` names it.
FAILURES_PER_MINUTE = 10
FAILURES_PER_MINUTE_OF_ALL = 100
FORM_BYTES_MAX = 8_192  # Anybody may post it: a key, a token and where to go then.
_log = log.get()


async def identify(site: Site, request: Request) -> tuple[bytes, Key | None]:
    """Return the id in the browser's cookie, empty without one, and the key that signed in."""
    id_ = site.signatures.read_cookie(request.cookies.get(COOKIE, ""))
    if not id_:
        return b"", None
    key_sha256 = await site.context.database.read(sign_ins.find_key, id_)
    if key_sha256 is None:
        return id_, None
    return id_, await site.find_key(site.context, key_sha256)


def ask_to_sign_in(visit: Visit) -> Response:
    """Go to the page that signs in, and from there back: for a form, which is lost, to its page."""
    if visit.is_live:
        return visit.redirect()
    if visit.request.method == "POST":
        return visit.redirect_after(_HAS_ENDED, "/sign-in", next=_page_of_form(visit))
    query = visit.request.scope["query_string"].decode("latin-1")
    target = visit.place + (f"?{query}" if query else "")
    return visit.redirect("/sign-in", next=target if _NEXT.fullmatch(target) else "")


def _page_of_form(visit: Visit) -> str:
    """Return the page from which a form was sent, or else the first page above its address."""
    path = visit.place
    above = [path[:at] for at in range(len(path), 0, -1) if path[at : at + 1] in ("", "/")]
    _, is_ours, referer = visit.request.headers.get("referer", "").rpartition(PATH)
    pages = [referer, *above] if is_ours else above
    return next((each for each in pages if _NEXT.fullmatch(each)), "")


async def show_sign_in(visit: Visit) -> Response:
    """GET /dashboard/sign-in."""
    if visit.key is not None:
        return visit.redirect()
    message = _ENDED if visit.done == _HAS_ENDED else ""
    return _render(visit, visit.request.query_params.get("next", ""), message=message)


def _render(visit: Visit, next_: str, status: int = 200, message: str = "") -> Response:
    new_cookie = ""
    if not visit.id_:
        visit.id_, new_cookie = visit.site.signatures.new_cookie(visit.site.context.random_bytes)
    values = {"next": next_ if _NEXT.fullmatch(next_) else "", "message": message}
    response = visit.render("sign_in.html", status, **values)
    if new_cookie:
        _set_cookie(visit, response, new_cookie)
    return response


async def sign_in(visit: Visit) -> Response:
    """POST /dashboard/sign-in: with a valid key, a new id in the cookie."""
    form, site = await read_form(visit, FORM_BYTES_MAX), visit.site
    next_ = form.get("next", "")
    if not visit.id_ or not site.signatures.is_token(visit.id_, form.get("token", "")):
        return _render(visit, next_, 403, _STALE if visit.id_ else _NO_COOKIE)
    secret = form.get("key", "").strip()
    key_sha256 = keys.digest(secret)
    is_key = secret.startswith(KEY_PREFIX)
    key = await site.find_key(site.context, key_sha256) if is_key else None
    if key is None:  # The limit counts wrong keys only: a valid key signs in at any time.
        address = _address_of(visit.request)
        limits = {address: FAILURES_PER_MINUTE, None: FAILURES_PER_MINUTE_OF_ALL}
        if site.wrong_keys.admit(visit.now, limits):
            return _render(visit, next_, 401, _UNKNOWN)
        response = _render(visit, next_, 429, _TOO_MANY)
        rest_ms = WRONG_KEYS_PERIOD_MS - visit.now % WRONG_KEYS_PERIOD_MS
        response.headers["retry-after"] = str(-(-rest_ms // SECOND))  # Rounded up.
        return response
    id_, cookie = site.signatures.new_cookie(site.context.random_bytes)
    await site.context.database.write(sign_ins.begin, id_, key_sha256, tenant=key.tenant)
    _log.info("audit", act="dashboard.sign_in", id=key.id, key_id=key.id, tenant=key.tenant)
    path, _, query = (next_ if _NEXT.fullmatch(next_) else "").partition("?")
    response = visit.redirect(path)
    if query:
        response.headers["location"] += f"?{query}"
    _set_cookie(visit, response, cookie)
    return response


async def sign_out(visit: Visit, _form: object) -> Response:
    """POST /dashboard/sign-out: the sign-in ends, also for a copy of its cookie."""
    assert visit.key is not None  # `_submit` looked.
    await visit.site.context.database.write(sign_ins.end, visit.id_, tenant=visit.key.tenant)
    response = visit.redirect("/sign-in")
    _set_cookie(visit, response, "", seconds=0)
    return response


def _set_cookie(
    visit: Visit, response: Response, cookie: str, seconds: int = sign_ins.LIFE_MS // SECOND
) -> None:
    """Set the cookie. Its default path (RFC 6265 section 5.1.4) is /dashboard, with any prefix."""
    public_url = visit.site.context.settings.public_url or ""
    forwarded = visit.request.headers.get("x-forwarded-proto", "").partition(",")[0].strip()
    schemes = (public_url.partition(":")[0], forwarded, visit.request.scope.get("scheme", ""))
    secure = "; Secure" if "https" in map(str.lower, schemes) else ""
    line = f"{COOKIE}={cookie}; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}"
    response.headers.append("set-cookie", line)


def _address_of(request: Request) -> str:
    """Return the client's address: the peer, or the last of X-Forwarded-For from a proxy of ours.

    Only a peer without a public address can be such a proxy. Others could send any address.
    """
    peer = request.client.host if request.client else ""
    try:
        if ipaddress.ip_address(peer).is_global:
            return peer
    except ValueError:
        pass  # The peer of a Unix socket has no address.
    forwarded = ",".join(request.headers.getlist("x-forwarded-for")).rpartition(",")[2].strip()
    return forwarded[:ADDRESS_CHARACTERS_MAX] or peer
