"""A whole service for those who are not async: raw requests in, and no error in its log."""

import asyncio
import base64
import re
import tempfile
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import structlog

from service.api.routes import OPERATIONS
from service.telemetry.redact import redact
from tests.contract.contract import breaches
from tests.contract.scenes import Ids, path_of, populate
from tests.harness import ADMIN_KEY, Harness, opened

BODY_BYTES = 4_096  # A callback's limit here: small, so that it is met.
HINTS = (b"ghk_", b"aio_", b"whsec_", b"whsk_", b"callbacks", b"earer", b"EARER")
_DOTS = re.compile(r"(^|/)\.{1,2}(?=/|$)")  # httpx takes such steps out of what it says it asked.
Headers = Sequence[tuple[bytes, bytes]]


class World:
    """A harness on a loop of its own."""

    def __init__(self, **overrides: Any) -> None:
        self._stack, self._runner = AsyncExitStack(), asyncio.Runner()
        self._folder = tempfile.TemporaryDirectory()
        context = opened(Path(self._folder.name), callback_body_bytes=BODY_BYTES, **overrides)
        self.harness: Harness = self.run(self._enter(context))
        self.ids: Ids = {}
        self._left = 0

    async def _enter(self, context: AbstractAsyncContextManager[Harness]) -> Harness:
        return await self._stack.enter_async_context(context)

    def close(self) -> None:
        """Stop the service and remove its files."""
        self.run(self._stack.aclose())
        self._runner.close()
        self._folder.cleanup()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do it; nothing may be logged that is called an error."""
        with structlog.testing.capture_logs() as lines:
            result = self._runner.run(work)
        worst = [line for line in lines if line["log_level"] == "error"]
        assert not worst, worst
        return result

    def ask(
        self,
        method: str,
        path: str,
        query: bytes = b"",
        headers: Headers = (),
        pieces: Sequence[bytes] = (b"",),
    ) -> httpx.Response:
        """What the service answers to a request as a server hands it over."""
        if b"authorization" not in [name for name, _ in headers]:
            headers = [*headers, (b"authorization", f"Bearer {ADMIN_KEY}".encode())]
        answer: httpx.Response = self.run(self._ask(method, path, query, headers, pieces))
        return answer

    async def _ask(
        self, method: str, path: str, query: bytes, headers: Headers, pieces: Sequence[bytes]
    ) -> httpx.Response:
        messages = [
            {"type": "http.request", "body": piece, "more_body": True} for piece in pieces
        ] or [{"type": "http.request"}]
        messages[-1]["more_body"] = False
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": quote(path).encode(),
            "root_path": "",
            "query_string": query,
            "headers": list(headers),
            "client": ("127.0.0.1", 1),
            "server": ("genhook", 80),
        }
        await self.harness.app(scope, receive, send)
        start, *rest = sent
        request = httpx.Request(method, "http://genhook" + quote(path))
        content = b"".join(message.get("body", b"") for message in rest)
        return httpx.Response(
            start["status"], headers=start["headers"], content=content, request=request
        )

    def token(self) -> str:
        """The token of a generation that is open; another one each hundred times."""
        self._left -= 1
        if self._left < 0:
            self._left = 100
            self.run(self.harness.generate())
        self.harness.clock.advance(1)  # Strangers' callbacks are stored at most 20 a second.
        return self.harness.upstream.callback_url().rpartition("/")[2]

    def revoked(self) -> str:
        """A token that was signed with the right key, of a generation whose nonce is another."""
        tokens, now = self.harness.app.parts.context.tokens, self.harness.clock()
        claim = tokens.read(self.token(), now)
        return tokens.mint(claim.generation_id, "bm9uY2Vub25jZW5vbmNlbm", claim.expires_at)


_worlds: dict[str, World] = {}


def world(trust: str = "confirm") -> World:
    """The world of that trust, until `close`."""
    if trust not in _worlds:
        made = _worlds[trust] = World(callback_trust=trust)
        made.ids = made.run(populate(made.harness))
    return _worlds[trust]


def close() -> None:
    """End every world."""
    while _worlds:
        _worlds.popitem()[1].close()


# Callbacks


def read_callback(data: bytes) -> None:
    """A byte for the world and the token, a line for a header, then the body."""
    kind = data[0] if data else 0
    head, _, body = data[1:].partition(b"\n")
    name, _, value = head.partition(b":")
    headers = [(name.lower(), value)] if name.lower() != b"content-length" else []
    place = world(("confirm", "body")[kind & 1])
    token = (place.token(), place.revoked())[kind >> 1 & 1]
    hold_callback(place, token, headers, [body[:100], body[100:]], good=not kind >> 1 & 1)


def hold_callback(
    place: World, token: str, headers: Headers, pieces: Sequence[bytes], *, good: bool
) -> dict[str, Any]:
    """Answered by the token and the size alone; what is stored can be read, as it came."""
    whole = b"".join(pieces)
    answer = place.ask("POST", f"/callbacks/apiinone/{token}", b"", headers, pieces)
    fits = len(whole) <= BODY_BYTES and not _announces_more(headers, pieces)
    assert answer.status_code == ((200 if fits else 413) if good else 404), answer.text
    shown = place.ask("GET", "/v1/callbacks/cb" + answer.headers["x-request-id"][3:])
    assert shown.status_code == 200, "it was not stored"
    assert breaches(shown) == []
    found: dict[str, Any] = shown.json()
    if answer.status_code == 200:
        assert found["verdict"] != "rejected"
        _hold_body(found, whole)
    else:
        assert found["verdict"] == "rejected"
        assert found["reason"]
    return found


def _announces_more(headers: Headers, pieces: Sequence[bytes]) -> bool:
    lengths = [int(v) for n, v in headers if n == b"content-length" and v.isdigit()]
    return len(pieces) > 1 and any(length > BODY_BYTES for length in lengths)


def _hold_body(found: Mapping[str, Any], body: bytes) -> None:
    shown = found["body"].encode()
    if found["body_encoding"] == "base64":
        shown = base64.b64decode(found["body"])
    if not any(hint in body for hint in HINTS):
        assert shown == body
    else:
        assert shown in (body, redact(body.decode("latin-1")).encode("latin-1")) or (
            shown.decode() == redact(body.decode())
        )


# What upstream says, all the way


def hold_believed(body: bytes) -> dict[str, Any]:
    """A callback that is believed: 200, and whatever it made of the generation can be read."""
    place = world("body")
    generation = place.run(place.harness.generate(notify_url="http://127.0.0.1:7/notify"))
    token = place.harness.upstream.callback_url().rpartition("/")[2]
    place.harness.clock.advance(1)
    hold_callback(place, token, [], [body], good=True)
    return _end(place, generation["id"])


def hold_polled(status: int, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """An answer to a question: the generation stays open or ends, and can be read."""
    place = world()
    generation = place.run(place.harness.generate(notify_url="http://127.0.0.1:7/notify"))
    place.harness.upstream.poll_replies.append(_response(status, headers, body))
    place.harness.clock.advance(200)
    found = _end(place, generation["id"])
    assert not place.harness.upstream.poll_replies, "upstream was not asked"
    return found


def hold_created(status: int, headers: Mapping[str, str], body: bytes) -> None:
    """An answer to a submission: a documented answer to ours, and a generation that can be read."""
    place = world()
    sent = len(place.harness.upstream.creates)
    place.harness.upstream.create_replies.append(_response(status, headers, body))
    asked = msgspec.json.encode({"model": "imagen4", "input": {"prompt": "a small harbour"}})
    answer = place.ask("POST", "/v1/generations", pieces=[asked])
    assert breaches(answer) == []
    assert len(place.harness.upstream.creates) == sent + 1
    listed = place.ask("GET", "/v1/generations", b"limit=1")
    assert breaches(listed) == []
    place.harness.clock.advance(1)


def _response(status: int, headers: Mapping[str, str], body: bytes) -> httpx.Response:
    lines = [(name.encode(), value.encode("utf-8", "replace")) for name, value in headers.items()]
    return httpx.Response(status, headers=lines, stream=httpx.ByteStream(body))


def _end(place: World, generation_id: str) -> dict[str, Any]:
    place.run(place.harness.run())
    shown = place.ask("GET", f"/v1/generations/{generation_id}")
    assert shown.status_code == 200
    assert breaches(shown) == []
    told = place.ask("GET", f"/v1/generations/{generation_id}/timeline")
    assert told.status_code == 200
    assert breaches(told) == []
    found: dict[str, Any] = shown.json()
    sent = [each for each in place.harness.subscribers.sent if generation_id.encode() in each.body]
    assert all(each.event["data"]["id"] == generation_id for each in sent)
    ends = [each for each in sent if each.event["type"] == f"generation.{found['status']}"]
    assert bool(ends) == (found["status"] in ("succeeded", "failed", "timed_out"))
    place.harness.subscribers.sent.clear()
    return found


# Requests


def read_request(data: bytes) -> None:
    """A byte for the operation, a line for the id, one for the query, headers, then the body."""
    head, _, body = data[1:].partition(b"\n\n")
    given, query, *lines = [*head.split(b"\n"), b""][: 2 + 20]
    headers = [(n.strip().lower(), v.strip()) for n, _, v in (x.partition(b":") for x in lines)]
    hold_request(data[0] if data else 0, given.decode("utf-8", "replace"), query, headers, body)


def hold_request(
    index: int, given: str, query: bytes, headers: Headers, body: bytes
) -> httpx.Response:
    """Whatever is asked of an operation, its answer is one that the contract names, and no 5xx."""
    operation, place = OPERATIONS[index % len(OPERATIONS)], world()
    path = path_of(operation, place.ids)
    given = _DOTS.sub(r"\1x", given)
    if given or operation.method == "DELETE":
        path = operation.path.replace("{id:path}", given).replace("{id}", given)
    headers = [line for line in headers if line[0] != b"content-length"]
    place.harness.clock.advance(1)
    answer = place.ask(operation.method, path, query, headers, [body])
    assert answer.status_code < 500, answer.text
    assert breaches(answer) == []
    return answer
