"""`genhook listen`: prints events as they come, and sends them to a local URL."""

import argparse
import os
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from service.cli import answers, calls, nouns, output, streams
from service.cli.arguments import check, define
from service.cli.client import add_remote
from service.cli.deadline import LateError, deadline
from service.delivery import signing
from service.model.clock import SECOND, now_ms
from service.model.errors import UsageError

if TYPE_CHECKING:
    import httpx

LISTEN_SECONDS = 1.0
FORWARD_SECONDS = 15.0
PAGE = 100


def add_listen(parser: argparse.ArgumentParser) -> None:
    """Add the options of `genhook listen`."""
    define(parser, listen, "genhook listen --forward-to http://127.0.0.1:3000/hooks")
    parser.add_argument(
        "--forward-to", type=parse_url, metavar="URL", help="POST each event to this URL, signed"
    )
    parser.add_argument(
        "--secret", help="secret to sign with, whsec_… (creates and prints a new one)"
    )
    parser.add_argument(
        "--after",
        type=nouns.EVENT.parse_id,
        metavar="EVENT_ID",
        help="start after this event (the newest event)",
    )
    parser.add_argument(
        "--once", action="store_true", help="start at the oldest event, exit after the newest"
    )
    add_remote(parser)


def parse_url(text: str) -> str:
    """Read an absolute http(s) URL."""
    check(calls.is_sendable(text), "must be a URL, such as http://127.0.0.1:3000/hooks")
    return text


def listen(options: argparse.Namespace, wait: calls.Wait = calls.pause) -> int:
    """Print events as they come, and POST each to a local URL, signed as for a subscriber.

    It starts with the next new event, or after the one that `--after` names. With `--once` it
    starts with the oldest and ends after the newest. It waits for a service that is unreachable. An
    event that the local URL refuses is not sent again; with `--once` the status is 1 then.
    """
    if options.secret and not options.forward_to:
        raise UsageError("--secret signs what --forward-to sends: give --forward-to, too.")
    secret = options.secret or signing.new_secret(os.urandom)
    key = _decode_key(secret)
    note = streams.note if options.json else streams.echo  # With JSON the output holds events only.
    is_refused = False
    with calls.connect(options) as client:
        after = options.after or (None if options.once else _find_newest(client))
        if options.forward_to:
            note(f"forwarding to {options.forward_to}, signed with {secret}")
        for body in _read_events(client, after, None if options.once else wait):
            event = calls.decode(client, body, answers.Event)
            streams.echo(output.harmless(body.decode()) if options.json else _format_event(event))
            if options.forward_to:
                is_accepted, result = _forward(options.forward_to, key, event.id, body)
                is_refused |= not is_accepted
                note(f"{'':8}  {result}")
    return int(is_refused)


def _decode_key(secret: str) -> bytes:
    try:
        return signing.decode_secret(secret)
    except ValueError as error:
        raise UsageError(f"--secret {error}.") from error


def _find_newest(client: "httpx.Client") -> str | None:
    newest = _read_page(client, {"limit": 1}).data
    return calls.decode(client, bytes(newest[0]), answers.Event).id if newest else None


def _read_events(
    client: "httpx.Client", after: str | None, pause: calls.Wait | None
) -> Iterator[bytes]:
    """Yield the exact bytes of each event after `after`; without `pause`, up to the newest one."""
    is_reachable = True
    while True:
        query = {"order": "asc", "limit": PAGE} | ({"after": after} if after else {})
        try:
            page = _read_page(client, query)
        except calls.UnreachableError as error:
            if pause is None:
                raise
            if is_reachable:
                streams.note(f"genhook: {error} Trying again.")
            is_reachable, page = False, answers.EventPage([], None)
        else:
            is_reachable = True
        yield from (bytes(raw) for raw in page.data)
        after = page.next or after
        if not page.data:
            if pause is None:
                return
            pause(LISTEN_SECONDS)


def _read_page(client: "httpx.Client", query: Mapping[str, Any]) -> answers.EventPage:
    body = calls.call(client, "GET", "/v1/events", params=query).content
    page: answers.EventPage = calls.decode(client, body, answers.EventPage)
    return page


def _format_event(event: answers.Event) -> str:
    about = event.data.get("id") or event.data.get("subscriber_id") or ""
    return output.plain(f"{event.timestamp[11:19]}  {event.type:<22}  {event.id}  {about}").rstrip()


def _forward(url: str, key: bytes, event_id: str, body: bytes) -> tuple[bool, str]:
    """POST one event as a delivery would; return whether it got a 2xx, and the result as text."""
    import httpx

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
        # Not with the client of the service: its key is for that alone.
        with deadline(FORWARD_SECONDS), calls.open_client(url, timeout=FORWARD_SECONDS) as client:
            answer = client.post(url, content=body, headers=headers)
    except (httpx.RequestError, LateError) as error:
        return False, f"-> {calls.give_reason(error)}"
    milliseconds = (time.perf_counter() - began) * 1_000
    return answer.is_success, f"-> {answer.status_code} in {milliseconds:.0f} ms"
