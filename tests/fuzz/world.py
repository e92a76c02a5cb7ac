"""Runs a whole service for tests that are not async, and checks its answers and its log."""

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
from service.telemetry.redact import REDACTED, Redactor
from service.telemetry.secret_names import cut_texts
from service.upstream.callback_url import Claim
from tests.contract.contract import breaches
from tests.contract.scenes import Ids, path_of, populate
from tests.harness import ADMIN_KEY, Harness, opened

BODY_BYTES = 4_096  # The limit of a callback, small enough to be reached.
HINTS = (b"ghk_", b"aio_", b"whsec_", b"whsk_", b"callbacks", b"earer", b"EARER")
_DOTS = re.compile(
    r"(^|/)\.{1,2}(?=/|$)"
)  # httpx removes such steps from its record of the request.
Headers = Sequence[tuple[bytes, bytes]]


class World:
    """A harness that runs on a loop of its own."""

    def __init__(self, **overrides: Any) -> None:
        self._stack, self._runner = AsyncExitStack(), asyncio.Runner()
        self._folder = tempfile.TemporaryDirectory()
        context = opened(Path(self._folder.name), callback_body_bytes=BODY_BYTES, **overrides)
        self.harness: Harness = self.run(self._enter(context))
        self.ids: Ids = {}
        self._uses_left = 0

    async def _enter(self, context: AbstractAsyncContextManager[Harness]) -> Harness:
        return await self._stack.enter_async_context(context)

    def close(self) -> None:
        """Stop the service and remove its files."""
        self.run(self._stack.aclose())
        self._runner.close()
        self._folder.cleanup()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run the coroutine; fail if it logs an error."""
        with structlog.testing.capture_logs() as lines:
            result = self._runner.run(work)
        errors = [line for line in lines if line["log_level"] == "error"]
        assert not errors, errors
        return result

    def ask(
        self,
        method: str,
        path: str,
        query: bytes = b"",
        headers: Headers = (),
        pieces: Sequence[bytes] = (b"",),
    ) -> httpx.Response:
        """Return the answer to a request in the form in which a server passes it on."""
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
        """Return the token of an open generation; every hundredth call creates a new one."""
        self._uses_left -= 1
        if self._uses_left < 0:
            self._uses_left = 100
            self.run(self.harness.generate())
        self.harness.clock.advance(1)  # At most 20 rejected callbacks a second are stored.
        return self.harness.upstream.callback_url().rpartition("/")[2]

    def revoked(self) -> str:
        """Return a token that is signed with the right key but has another nonce."""
        tokens, now = self.harness.app.worker.context.tokens, self.harness.clock()
        claim = tokens.read(self.token(), now)
        assert isinstance(claim, Claim)
        return tokens.mint(claim.generation_id, "bm9uY2Vub25jZW5vbmNlbm", claim.expires_at)


_worlds: dict[str, World] = {}


def world(trust: str = "confirm") -> World:
    """Return the world with that trust; it lives until `close`."""
    if trust not in _worlds:
        new = _worlds[trust] = World(callback_trust=trust)
        new.ids = new.run(populate(new.harness))
    return _worlds[trust]


def close() -> None:
    """Close every world."""
    while _worlds:
        _worlds.popitem()[1].close()


# Callbacks


def read_callback(data: bytes) -> None:
    """Read a byte for the world and the token, a line for a header, then the body."""
    kind = data[0] if data else 0
    head, _, body = data[1:].partition(b"\n")
    name, _, value = head.partition(b":")
    headers = [(name.lower(), value)] if name.lower() != b"content-length" else []
    service = world(("confirm", "body")[kind & 1])
    token = (service.token(), service.revoked())[kind >> 1 & 1]
    check_callback(service, token, headers, [body[:100], body[100:]], good=not kind >> 1 & 1)


def check_callback(
    service: World, token: str, headers: Headers, pieces: Sequence[bytes], *, good: bool
) -> dict[str, Any]:
    """Check that token and size alone decide the answer, and that the API shows the callback."""
    whole = b"".join(pieces)
    answer = service.ask("POST", f"/callbacks/apiinone/{token}", b"", headers, pieces)
    fits = len(whole) <= BODY_BYTES and not _announces_more(headers)
    assert answer.status_code == ((200 if fits else 413) if good else 404), answer.text
    shown = service.ask("GET", "/v1/callbacks/cb" + answer.headers["x-request-id"][3:])
    assert shown.status_code == 200, "it was not stored"
    assert breaches(shown) == []
    callback: dict[str, Any] = shown.json()
    if answer.status_code == 200:
        assert callback["verdict"] != "rejected"
        _check_body(callback, whole)
    else:
        assert callback["verdict"] == "rejected"
        assert callback["reason"]
    return callback


def _announces_more(headers: Headers) -> bool:
    lengths = [int(v) for n, v in headers if n == b"content-length" and v.isdigit()]
    return any(length > BODY_BYTES for length in lengths)


def _check_body(callback: Mapping[str, Any], body: bytes) -> None:
    shown, body = callback["body"].encode(), cut_texts(body, REDACTED.encode())
    if callback["body_encoding"] == "base64":
        shown = base64.b64decode(callback["body"])
    if not any(hint in body for hint in HINTS):
        assert shown == body
    else:
        redact = Redactor().text
        assert shown in (body, redact(body.decode("latin-1")).encode("latin-1")) or (
            shown.decode() == redact(body.decode())
        )


# Upstream's reports, through the whole service


def check_believed(body: bytes) -> dict[str, Any]:
    """Check that a believed callback is answered 200 and leaves a generation that can be read."""
    service = world("body")
    generation = service.run(service.harness.generate(notify_url="http://127.0.0.1:7/notify"))
    token = service.harness.upstream.callback_url().rpartition("/")[2]
    service.harness.clock.advance(1)
    check_callback(service, token, [], [body], good=True)
    return _end(service, generation["id"])


def check_polled(status: int, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """Check that after an answer to a poll the generation is open or has ended, and can be read."""
    service = world()
    generation = service.run(service.harness.generate(notify_url="http://127.0.0.1:7/notify"))
    service.harness.upstream.poll_replies.append(_response(status, headers, body))
    service.harness.clock.advance(200)
    generation = _end(service, generation["id"])
    assert not service.harness.upstream.poll_replies, "upstream was not polled"
    return generation


def check_created(status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Check that after an answer to a submission ours is documented, and the list can be read."""
    service = world()
    service.harness.clock.advance(600)  # A 429 before pauses everything for five minutes at most.
    sent = len(service.harness.upstream.creates)
    service.harness.upstream.create_replies.append(_response(status, headers, body))
    request = msgspec.json.encode({"model": "imagen4", "input": {"prompt": "a small harbour"}})
    answer = service.ask("POST", "/v1/generations", pieces=[request])
    assert breaches(answer) == []
    assert len(service.harness.upstream.creates) == sent + 1
    listed = service.ask("GET", "/v1/generations", b"limit=1")
    assert breaches(listed) == []
    service.harness.clock.advance(1)


def _response(status: int, headers: Mapping[str, str], body: bytes) -> httpx.Response:
    lines = [(name.encode(), value.encode("utf-8", "replace")) for name, value in headers.items()]
    return httpx.Response(status, headers=lines, stream=httpx.ByteStream(body))


def _end(service: World, generation_id: str) -> dict[str, Any]:
    service.run(service.harness.run())
    shown = service.ask("GET", f"/v1/generations/{generation_id}")
    assert shown.status_code == 200
    assert breaches(shown) == []
    timeline = service.ask("GET", f"/v1/generations/{generation_id}/timeline")
    assert timeline.status_code == 200
    assert breaches(timeline) == []
    generation: dict[str, Any] = shown.json()
    sent = [
        each for each in service.harness.subscribers.webhooks if generation_id.encode() in each.body
    ]
    assert all(each.event["data"]["id"] == generation_id for each in sent)
    ends = [each for each in sent if each.event["type"] == f"generation.{generation['status']}"]
    assert bool(ends) == (generation["status"] in ("succeeded", "failed", "timed_out"))
    service.harness.subscribers.webhooks.clear()
    return generation


# Requests


def read_request(data: bytes) -> None:
    """Read a byte for the operation, a line each for id and query, headers, then the body."""
    head, _, body = data[1:].partition(b"\n\n")
    id_, query, *lines = [*head.split(b"\n"), b""][: 2 + 20]
    headers = [(n.strip().lower(), v.strip()) for n, _, v in (x.partition(b":") for x in lines)]
    check_request(data[0] if data else 0, id_.decode("utf-8", "replace"), query, headers, body)


def check_request(
    index: int, id_: str, query: bytes, headers: Headers, body: bytes
) -> httpx.Response:
    """Check that the answer to any request of an operation is documented and no 5xx."""
    operation, service = OPERATIONS[index % len(OPERATIONS)], world()
    path = path_of(operation, service.ids)
    id_ = _DOTS.sub(r"\1x", id_)
    if id_ or operation.method == "DELETE":
        path = operation.path.replace("{id:path}", id_).replace("{id}", id_)
    headers = [line for line in headers if line[0] != b"content-length"]
    service.harness.clock.advance(1)
    answer = service.ask(operation.method, path, query, headers, [body])
    assert answer.status_code < 500, answer.text
    assert breaches(answer) == []
    return answer
