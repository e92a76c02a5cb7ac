"""Commands that follow a running service: `listen` pulls its events, `replay` watches one."""

import argparse
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from service.cli import output
from service.cli.client import Say, UnreachableError, ask, call, connect, show
from service.delivery import signing
from service.model.clock import DAY, HOUR, MINUTE, SECOND, now_ms, parse_rfc3339, rfc3339
from service.model.errors import CommandError

if TYPE_CHECKING:
    import httpx

Wait = Callable[[float], object]

LISTEN_SECONDS = 1.0
REPLAY_SECONDS = 0.5
FORWARD_SECONDS = 15.0
PAGE = 100
_AGES = {"m": MINUTE, "h": HOUR, "d": DAY}


class _Page(msgspec.Struct):
    data: list[msgspec.Raw]
    next: str | None


class _Event(msgspec.Struct):
    id: str
    type: str
    timestamp: str
    data: dict[str, Any]


def listen(options: argparse.Namespace, say: Say, wait: Wait | None = None) -> int:
    """Print events as they come, and send each to a local URL, signed as a subscriber gets it.

    It starts at what is new; after `--after`; or, with `--once`, at the beginning, and ends once
    it has caught up. A service that is away for a while is waited for, an event that the local URL
    refuses is not sent again.
    """
    secret = options.secret or signing.new_secret(os.urandom)
    key = _key(secret)
    pause = wait or threading.Event().wait
    with connect(options) as client:
        after = options.after or (None if options.once else _newest(client))
        if options.forward_to:
            say(f"forwarding to {options.forward_to}, signed with {secret}")
        for raw in _events(client, after, say, None if options.once else pause):
            event = msgspec.json.decode(raw, type=_Event)
            say(raw.decode() if options.json else _line(event))
            if options.forward_to:
                said = _forward(options.forward_to, key, event.id, raw)
                if not options.json:
                    say(f"{'':8}  {said}")
    return 0


def _key(secret: str) -> bytes:
    try:
        return signing.decode_secret(secret)
    except ValueError as error:
        raise CommandError(f"--secret cannot be used: {error}.") from error


def _newest(client: "httpx.Client") -> str | None:
    found = ask(client, "GET", "/v1/events", params={"limit": 1})["data"]
    return found[0]["id"] if found else None


def _events(
    client: "httpx.Client", after: str | None, say: Say, pause: Wait | None
) -> Iterator[bytes]:
    """The exact bytes of each event after `after`; without `pause`, up to the newest one."""
    away = False
    while True:
        try:
            page = _page(client, after)
        except UnreachableError as error:
            if pause is None:
                raise
            if not away:
                say(f"{error} Trying again.")
            away, page = True, _Page([], None)
        else:
            away = False
        yield from (bytes(raw) for raw in page.data)
        after = page.next or after
        if not page.data:
            if pause is None:
                return
            pause(LISTEN_SECONDS)


def _page(client: "httpx.Client", after: str | None) -> _Page:
    query = {"order": "asc", "limit": PAGE} | ({"after": after} if after else {})
    return msgspec.json.decode(call(client, "GET", "/v1/events", params=query), type=_Page)


def _line(event: _Event) -> str:
    about = event.data.get("id") or event.data.get("subscriber_id") or ""
    return output.plain(f"{event.timestamp[11:19]}  {event.type:<22}  {event.id}  {about}").rstrip()


def _forward(url: str, key: bytes, event_id: str, body: bytes) -> str:
    """POST one event as a delivery would, and say what came of it."""
    import httpx  # noqa: PLC0415  cold start: a fifth of a second

    seconds = now_ms() // SECOND
    headers = {
        "content-type": "application/json",
        "user-agent": "genhook-listen",
        "webhook-id": event_id,
        "webhook-timestamp": str(seconds),
        "webhook-signature": signing.sign(key, event_id, seconds, body),
    }
    began = time.perf_counter()
    try:
        # Not with the client: its key is for the service alone.
        answer = httpx.post(url, content=body, headers=headers, timeout=FORWARD_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return output.plain(f"-> {str(error) or type(error).__name__}")
    return f"-> {answer.status_code} in {(time.perf_counter() - began) * 1_000:.0f} ms"


def moment(text: str, now: int) -> str:
    """An RFC 3339 time, of one such or of an age before `now`, such as `90m`, `24h` or `7d`.

    ValueError if it is neither.
    """
    try:
        if text[-1:] in _AGES and text[:-1].isdecimal():
            return rfc3339(now - int(text[:-1]) * _AGES[text[-1]])
        return rfc3339(parse_rfc3339(text))
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text} is neither an age, such as 90m, 24h or 7d, nor a time, such as "
            "2026-11-22T18:20:00Z"
        ) from None


def replay(options: argparse.Namespace, say: Say, wait: Wait | None = None) -> int:
    """Send stored events again, and show how far that is; 1 if somebody cancels it."""
    body = {
        "subscriber_id": options.id,
        "since": options.since,
        "until": options.until or rfc3339(now_ms()),
        "only": options.only,
        "event_types": options.event_types,
        "dry_run": options.dry_run,
    }
    with connect(options) as client:
        found = ask(client, "POST", "/v1/replays", json=body)
        with _progress(options, say) as step:
            found = _watch(client, found, step, wait or threading.Event().wait)
    count = found["total"] if options.dry_run else found["done"]
    done = "would be sent" if options.dry_run else "sent again"
    said = "canceled after" if found["status"] == "canceled" else "done:"
    show(options, say, found, [f"{found['id']} {said} {count} event{'s'[: count != 1]} {done}."])
    return 1 if found["status"] == "canceled" else 0


def _watch(
    client: "httpx.Client", found: dict[str, Any], step: Callable[[int, int], None], wait: Wait
) -> dict[str, Any]:
    """The replay once it is no longer running; it goes on without whoever watches it."""
    path = f"/v1/replays/{found['id']}"
    try:
        while found["status"] == "running":
            step(found["done"], found["total"])
            wait(REPLAY_SECONDS)
            found = ask(client, "GET", path)
    except KeyboardInterrupt:
        raise CommandError(
            f"{found['id']} goes on; POST {path}/cancel ends it, GET {path} shows it."
        ) from None
    step(found["done"], found["total"])
    return found


@contextlib.contextmanager
def _progress(options: argparse.Namespace, say: Say) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal that rich knows, else a line whenever there is news; nothing in JSON."""
    if options.json:
        yield lambda _done, _total: None
        return
    if not sys.stdout.isatty():
        yield _line_by_line(say)
        return
    try:
        from rich.progress import Progress  # noqa: PLC0415  an extra, and only for terminals
    except ImportError:
        yield _line_by_line(say)
        return
    with Progress(transient=True) as bar:
        task = bar.add_task("replaying", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _line_by_line(say: Say) -> Callable[[int, int], None]:
    last: list[tuple[int, int]] = []

    def step(done: int, total: int) -> None:
        if last != [(done, total)]:
            last[:] = [(done, total)]
            say(f"{done} of {total}")

    return step
