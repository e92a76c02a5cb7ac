"""Forms as bodies: how much of them a stranger may send, for how long, and how many at once."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, urlencode

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.api import asgi
from service.dashboard import forms
from service.dashboard.sign_in import FORM_BYTES_MAX
from tests.dashboard.browser import Browser, text_of
from tests.harness import Harness, opened

SIGN_IN = "http://genhook/dashboard/sign-in"


class Slow:
    """A body that begins with so many bytes, and ends when it is told to."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.has_begun, self.may_end = asyncio.Event(), asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"x" * self.size
        self.has_begun.set()
        await self.may_end.wait()
        yield b""


async def post(client: httpx.AsyncClient, url: str, content: Any) -> httpx.Response:
    async with asyncio.timeout(20):
        return await client.post(url, content=content)


async def test_forms_are_counted_among_the_bodies_that_arrive(
    world: Harness, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asgi, "ARRIVING_BYTES_MAX", 1_500)
    first, second = Slow(1_000), Slow(1_000)
    path = "http://genhook/dashboard/keys/create"
    for url, client in ((SIGN_IN, world.anonymous), (path, browser.client)):
        sending = asyncio.create_task(world.anonymous.post(SIGN_IN, content=first))
        await first.has_begun.wait()
        answer = await post(client, url, second)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "Too many bodies" in text_of(answer)
        first.may_end.set()
        assert (await sending).status_code == 403
        first = Slow(1_000)


async def test_a_stranger_may_send_a_few_kilobytes(world: Harness) -> None:
    for size, status in ((FORM_BYTES_MAX, 403), (FORM_BYTES_MAX + 1, 413)):
        answer = await post(world.anonymous, SIGN_IN, b"x" * size)
        assert answer.status_code == status
    answer = await post(world.anonymous, SIGN_IN, Slow(FORM_BYTES_MAX + 1))
    assert answer.status_code == 413


async def test_a_form_that_is_late_is_408_and_ends_the_connection(tmp_path: Path) -> None:
    async with opened(tmp_path, body_seconds=0.0) as world:
        answer = await post(world.anonymous, SIGN_IN, Slow(10))
    assert (answer.status_code, answer.headers["connection"]) == (408, "close")


async def test_a_byte_of_a_query_that_is_no_ascii_breaks_no_page(world: Harness) -> None:
    async def with_raw_byte(scope: Any, receive: Any, send: Any) -> None:
        await world._asgi({**scope, "query_string": b"next=\xff"}, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(with_raw_byte)) as client:
        answer = await client.get("https://genhook/dashboard/sign-in")
    assert answer.status_code == 200
    assert answer.headers["set-cookie"].endswith("; Secure")


@given(st.dictionaries(st.text(max_size=5), st.text(min_size=1, max_size=20), max_size=5))
@example({"a": "= %41+_\r\n\0 ", "_": " =\n", "=": "%"})
def test_a_form_is_read_as_browsers_write_it(fields: dict[str, str]) -> None:
    for quote_via in (quote, quote_plus):
        body = urlencode(fields, quote_via=quote_via).encode()
        assert dict(forms._parse(body)) == fields
        assert dict(forms._parse(body.lower())) == dict(parse_qsl(body.lower().decode()))


@pytest.mark.parametrize("body", ["a=%", "a=%4", "a=%zz", "a=%%41", "a=%4\n1", "a=é", "a=%ff"])
async def test_a_form_that_no_browser_writes_is_refused(browser: Browser, body: str) -> None:
    page = await browser.client.post("/dashboard/models/try", content=body.encode())
    assert page.status_code == 400
