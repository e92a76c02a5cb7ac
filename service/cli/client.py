"""A thin client of a running service's API, and the commands that are one call or a few."""

import argparse
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from service.cli import output
from service.model.errors import CommandError

if TYPE_CHECKING:
    import httpx

Say = Callable[[str], None]

TIMEOUT_SECONDS = 75.0  # Above the longest `?wait`.
WAIT_SECONDS = 30
_OPEN = ("queued", "processing")


class UnreachableError(CommandError):
    """Nobody answered: another try may find somebody."""


def connect(options: argparse.Namespace) -> "httpx.Client":
    """A client of the service that the options name; CommandError without a key."""
    import httpx  # noqa: PLC0415  cold start: a fifth of a second

    environ = os.environ  # noqa: TID251  what the options default to
    own = f"http://127.0.0.1:{environ.get('PORT') or 8000}"
    url = options.url or environ.get("GENHOOK_PUBLIC_URL") or own
    key = options.key or environ.get("GENHOOK_ADMIN_KEY")
    if not key:
        raise CommandError("a key is needed: give --key, or set GENHOOK_ADMIN_KEY.")
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise CommandError(f"{url} is no URL of a service: --url looks like {own}.")
    return httpx.Client(
        base_url=url,
        headers={"authorization": f"Bearer {key}", "user-agent": "genhook"},
        timeout=TIMEOUT_SECONDS,
        trust_env=not is_loopback(url),  # No proxy leads to this machine.
    )


def is_loopback(url: str) -> bool:
    """True if the URL names this machine by a loopback address or as localhost."""
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def call(client: "httpx.Client", method: str, path: str, **options: Any) -> bytes:
    """The body of the answer; CommandError if it is a problem, UnreachableError without one."""
    import httpx  # noqa: PLC0415  cold start: a fifth of a second

    try:
        answer = client.request(method, path, **options)
    except httpx.TransportError as error:
        reason = str(error) or type(error).__name__
        raise UnreachableError(f"no answer from {client.base_url}: {reason}.") from error
    if answer.is_success:
        return answer.content
    raise _refusal(answer)


def ask(client: "httpx.Client", method: str, path: str, **options: Any) -> Any:
    """As `call`, decoded."""
    try:
        return msgspec.json.decode(call(client, method, path, **options))
    except msgspec.DecodeError as error:
        raise CommandError(f"what answers at {client.base_url} is not genhook.") from error


def _refusal(answer: "httpx.Response") -> CommandError:
    """A problem as one sentence with its code."""
    try:
        problem = msgspec.json.decode(answer.content)
        wrong = "; ".join(f"{e['pointer']} {e['message']}" for e in problem.get("errors", []))
        said = problem["detail"].rstrip(".") + (f": {wrong}" if wrong else "")
        sentence = output.plain(f"{said} ({problem['code']}).")
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        sentence = f"{answer.url} answered {answer.status_code}, and not as genhook does."
    unwell = answer.status_code in (502, 503, 504)
    return UnreachableError(sentence) if unwell else CommandError(sentence)


def show(options: argparse.Namespace, say: Say, found: Any, shown: list[str]) -> None:
    """Say what was found: as JSON where that is asked for, else the lines."""
    if options.json:
        say(msgspec.json.encode(found).decode())
        return
    for line in shown:
        say(line)


def _show_page(options: argparse.Namespace, say: Say, page: Any, names: tuple[str, ...]) -> int:
    rows = [[_cell(thing[name]) for name in names] for thing in page["data"]]
    more = [f"more: --after {page['next']}"] if page["next"] else []
    show(options, say, page, [*output.table(rows), *more] or ["There are none."])
    return 0


def _cell(value: object) -> object:
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _paging(options: argparse.Namespace) -> dict[str, Any]:
    given = {"limit": options.limit, "after": options.after}
    return {name: value for name, value in given.items() if value is not None}


def list_subscribers(options: argparse.Namespace, say: Say) -> int:
    """Subscribers, newest first."""
    with connect(options) as client:
        page = ask(client, "GET", "/v1/subscribers", params=_paging(options))
    return _show_page(options, say, page, ("id", "status", "url", "event_types"))


def create_subscriber(options: argparse.Namespace, say: Say) -> int:
    """A new subscriber, with its secret this once."""
    body = {"url": options.target, "event_types": options.event_types}
    with connect(options) as client:
        found = ask(client, "POST", "/v1/subscribers", json=body)
    names = ("id", "url", "event_types", "status", "secret")
    shown = {name: _cell(found[name]) for name in names}
    show(options, say, found, output.fields(shown))
    return 0


def test_subscriber(options: argparse.Namespace, say: Say) -> int:
    """A `ping` now; 1 unless the subscriber took it."""
    with connect(options) as client:
        found = ask(client, "POST", f"/v1/subscribers/{options.id}/test")
    attempt = found["attempt"]
    said = (attempt["error"] or {}).get("message") or f"It answered {attempt['status_code']}."
    show(
        options, say, found, [f"{output.plain(said).rstrip('.')}, in {attempt['duration_ms']} ms."]
    )
    return 0 if 200 <= (attempt["status_code"] or 0) <= 299 else 1


def delete_subscriber(options: argparse.Namespace, say: Say) -> int:
    """A subscriber goes; what it is still owed is canceled."""
    with connect(options) as client:
        call(client, "DELETE", f"/v1/subscribers/{options.id}")
    show(options, say, {"id": options.id, "deleted": True}, [f"{options.id} is deleted."])
    return 0


def create_generation(options: argparse.Namespace, say: Say) -> int:
    """Ask for a generation; with --wait, 0 only if it succeeds."""
    given = dict(options.input or {})
    if options.prompt is not None:
        given["prompt"] = options.prompt
    with connect(options) as client:
        found = ask(
            client, "POST", "/v1/generations", json={"model": options.model, "input": given}
        )
        while options.wait and found["status"] in _OPEN:
            query = {"wait": WAIT_SECONDS}
            found = ask(client, "GET", f"/v1/generations/{found['id']}", params=query)
    show(options, say, found, output.generation(found))
    return 1 if found["status"] in ("failed", "timed_out") else 0


def get_generation(options: argparse.Namespace, say: Say) -> int:
    """One generation."""
    with connect(options) as client:
        found = ask(client, "GET", f"/v1/generations/{options.id}")
    show(options, say, found, output.generation(found))
    return 0


def list_generations(options: argparse.Namespace, say: Say) -> int:
    """Generations, newest first."""
    query = _paging(options) | ({"status": options.status} if options.status else {})
    with connect(options) as client:
        page = ask(client, "GET", "/v1/generations", params=query)
    return _show_page(options, say, page, ("id", "status", "model", "route", "created_at"))


def show_timeline(options: argparse.Namespace, say: Say) -> int:
    """A generation's story in order."""
    with connect(options) as client:
        story = ask(client, "GET", f"/v1/generations/{options.id}/timeline")
    entries = story["data"]
    show(options, say, story, [output.entry(entry, entries[0]["at"]) for entry in entries])
    return 0
