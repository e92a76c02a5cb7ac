"""Requests that no HTTP client can send, straight to the ASGI application."""

from pathlib import Path
from typing import Any

import msgspec

from service.telemetry import metrics
from tests.harness import ADMIN_KEY, Harness, opened

EMPTY = {"type": "http.request", "body": b""}


async def request(world: Harness, *messages: dict[str, Any], **scope: Any) -> tuple[int, Any]:
    """Send a request; the status and the JSON of the answer."""
    waiting, answer = list(messages), list[Any]()

    async def receive() -> Any:
        return waiting.pop(0)

    async def send(message: Any) -> None:
        answer.append(message)

    headers = [(b"authorization", f"Bearer {ADMIN_KEY}".encode())]
    common = {"type": "http", "query_string": b"", "headers": headers}
    await world.app({**common, **scope}, receive, send)
    body = answer[1]["body"]
    return answer[0]["status"], msgspec.json.decode(body) if body else None


async def test_a_client_that_disconnects_within_its_body_creates_nothing(tmp_path: Path) -> None:
    before = metrics.requests.values.get(("499",), 0)
    begun = {"type": "http.request", "body": b'{"model": "imagen4"', "more_body": True}
    gone = {"type": "http.disconnect"}
    async with opened(tmp_path) as world:
        answer = await request(world, begun, gone, method="POST", path="/v1/generations")
        assert answer == (499, None)
        assert metrics.requests.values[("499",)] == before + 1
        assert world.upstream.creates == []
        assert (await world.get("/v1/generations"))["data"] == []


async def test_a_query_that_is_not_ascii_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        options = {"method": "GET", "path": "/v1/events", "query_string": b"limit=\x80"}
        status, problem = await request(world, EMPTY, **options)
        assert (status, problem["code"]) == (400, "invalid_query")
        status, problem = await request(world, EMPTY, **{**options, "path": "/v1/nowhere"})
        assert (status, problem["code"]) == (404, "not_found")
