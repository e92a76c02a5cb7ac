"""Hang-ups and late bodies over real sockets: who waits is told, and one of two answers."""

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.harness import ADMIN_KEY, opened
from tests.logs import Console
from tests.wire.test_entrance import answer_to, post, send_text, serving, status_of, texts


class Waiting:
    """An application that reads the body, waits until its client hangs up, and then answers."""

    def __init__(self) -> None:
        self.waits, self.ends = asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        self.waits.set()
        assert (await receive())["type"] == "http.disconnect"
        assert (await receive())["type"] == "http.disconnect"  # Whoever asks again.
        self.ends.set()
        await send_text(send, f"{scope['path']};".encode())


@pytest.mark.parametrize("body", [b"", b"{}"])
async def test_who_waits_is_told_that_its_client_has_closed_the_connection(body: bytes) -> None:
    app = Waiting()
    async with serving(app) as port, asyncio.timeout(60):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post("/a", body, close=False))
        await app.waits.wait()
        writer.close()
        await app.ends.wait()


async def test_a_client_that_only_sends_no_more_is_answered_at_once() -> None:
    async with serving(Waiting()) as port:
        for requests, answers in ((1, ["/0"]), (3, ["/0", "/1", "/2"])):
            sent = b"".join(post(f"/{n}", b"{}", close=False) for n in range(requests))
            # In one segment with the request, or after it.
            assert texts(await answer_to(port, sent, ends=True)) == answers


async def test_a_long_poll_of_a_client_that_sends_no_more_gets_the_generation_as_it_is(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        id_ = (await world.generate())["id"]
        head = f"GET /v1/generations/{id_}?wait=60 HTTP/1.1\r\nHost: x\r\n"
        request = f"{head}Authorization: Bearer {ADMIN_KEY}\r\n\r\n".encode()
        async with serving(world.app) as port, asyncio.timeout(30):
            answer = await answer_to(port, request, ends=True)
        assert status_of(answer) == 200
        assert b'"status":"processing"' in answer


async def test_a_late_body_is_refused_once_by_who_reads_it(
    tmp_path: Path, console: Console
) -> None:
    async with opened(tmp_path, body_seconds=0.05) as world:
        await world.generate()
        console.configure("info")
        target = urlsplit(world.upstream.callback_url()).path
        key = f"Authorization: Bearer {ADMIN_KEY}\r\n".encode()
        async with serving(world.app, grace=60, body_seconds=0.05) as port:
            late = await answer_to(port, post("/v1/subscribers", b"{}", more=key)[:-1])
            callback = await answer_to(port, post(target, b"{}")[:-1])
    assert (status_of(late), status_of(callback)) == (408, 408)
    lines = [line for line in console.lines() if line["event"] in ("request.refused", "callback")]
    assert [line.get("code") or line["reason"] for line in lines] == ["request_timeout"] * 2
    assert lines[0]["path"] == "/v1/subscribers"
    for line, answer in zip(lines, (late, callback), strict=True):
        assert f"\r\nx-request-id: {line['request_id']}\r\n".encode() in answer
