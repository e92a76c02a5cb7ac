"""Calls of genhook's API, made in this process with the reader's key, and shown as curl."""

import asyncio
import shlex
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
from starlette.types import ASGIApp, Message

LIMIT_MAX = 250  # Rows in the largest page of the API.
_SAFE = "/:."  # Other characters of a path and a query are percent-encoded: no shell reads them.


class ApiCall(msgspec.Struct, frozen=True, kw_only=True):
    """A request to the API. `path` is not percent-encoded yet; `body` becomes JSON."""

    method: str = "GET"
    path: str
    query: Mapping[str, str] = {}
    body: Any = None

    @property
    def target(self) -> str:
        """The path and the query as they stand in a URL."""
        query = urlencode(self.query, safe=_SAFE, quote_via=quote)
        return quote(self.path, safe=_SAFE) + (f"?{query}" if query else "")

    @property
    def content(self) -> bytes:
        """The body in bytes."""
        return b"" if self.body is None else msgspec.json.encode(self.body)

    def curl(self) -> str:
        """Return the call as a command that never names a key."""
        parts = ["curl --fail-with-body"]
        if self.method != ("GET" if self.body is None else "POST"):  # What curl takes by itself.
            parts.append(f"-X {self.method}")
        parts.append(f'"$GENHOOK_URL{self.target}"')
        parts.append('-H "Authorization: Bearer $GENHOOK_API_KEY"')
        if self.body is not None:
            parts.append("-H 'Content-Type: application/json'")
            parts.append(f"-d {shlex.quote(self.content.decode())}")
        return " \\\n  ".join(parts)


class Reply(msgspec.Struct, frozen=True):
    """The answer of the API: `content` is decoded JSON, or text, or None."""

    status: int
    content: Any

    @property
    def is_success(self) -> bool:
        """Whether the status is below 400."""
        return self.status < 400

    @property
    def errors(self) -> list[tuple[str, str]]:
        """The pointer and the message of each wrong field; empty if something else is wrong."""
        errors = self.content.get("errors", ()) if self.status in (400, 422) else ()
        return [(each["pointer"], each["message"]) for each in errors]

    @property
    def is_running(self) -> bool:
        """Whether the first request with the same `Idempotency-Key` still runs."""
        return self.status == 409 and self.content["code"] == "idempotency_key_in_use"

    @property
    def needs_repeat(self) -> bool:
        """Whether only a repeat with the same `Idempotency-Key` tells what became of a request."""
        is_unknown = self.status == 503 and "Idempotency-Key" in self.content["detail"]
        return is_unknown or self.is_running


async def send(
    api: ASGIApp, call: ApiCall, headers: Mapping[str, str], state: Mapping[str, Any]
) -> Reply:
    """Make a call through the API's own router, checks and log.

    state: the `acting_key` and the `request_id` of the page.
    """
    path, _, query = call.target.partition("?")
    lines = {"content-type": "application/json", **headers}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": call.method,
        "scheme": "http",
        "path": call.path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in lines.items()],
        "client": None,
        "server": None,
        "state": dict(state),
    }
    messages: list[Message] = []
    requests = [{"type": "http.request", "body": call.content, "more_body": False}]

    async def receive() -> Message:
        if requests:
            return requests.pop()
        await asyncio.Event().wait()  # Nobody hangs up. The API cancels its wait for that.
        raise AssertionError

    async def keep(message: Message) -> None:
        messages.append(message)

    await api(scope, receive, keep)
    return _read(messages)


def _read(messages: list[Message]) -> Reply:
    start, *parts = messages
    body = b"".join(part.get("body", b"") for part in parts)
    kind = dict(start["headers"]).get(b"content-type", b"").partition(b";")[0]
    if not body:
        content = None
    elif kind.endswith(b"json"):
        content = msgspec.json.decode(body)
    else:
        content = body.decode(errors="replace")
    return Reply(start["status"], content)
