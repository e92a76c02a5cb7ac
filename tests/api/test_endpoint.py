"""Requests that no HTTP client can send, straight to the ASGI application."""

from pathlib import Path
from typing import Any

from service.telemetry import metrics
from tests.harness import ADMIN_KEY, opened


async def test_a_client_that_disconnects_within_its_body_creates_nothing(tmp_path: Path) -> None:
    messages = [
        {"type": "http.request", "body": b'{"model": "imagen4"', "more_body": True},
        {"type": "http.disconnect"},
    ]
    answers: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        answers.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/generations",
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {ADMIN_KEY}".encode())],
    }
    before = metrics.requests.values.get(("499",), 0)
    async with opened(tmp_path) as world:
        await world.app(scope, receive, send)
        assert answers[0]["status"] == 499
        assert metrics.requests.values[("499",)] == before + 1
        assert world.upstream.creates == []
        assert (await world.get("/v1/generations"))["data"] == []
