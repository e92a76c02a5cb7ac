"""Behind a path prefix of a proxy: every link leads to a page below it, wherever it is shown."""

from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit

import httpx
import pytest

from service.dashboard.pages import PAGES
from tests.contract.scenes import Ids, populate
from tests.dashboard.browser import Browser, text_of
from tests.dashboard.test_pages import path_of
from tests.harness import Harness
from tests.markup import Markup

PREFIX = "/hooks"
LINKS = ("href", "src", "action", "hx-get")


@pytest.fixture
async def ids(world: Harness) -> Ids:
    return await populate(world)


@pytest.fixture
async def behind(world: Harness, ids: Ids) -> AsyncIterator[Browser]:
    """A browser that is signed in through a proxy, which cuts the prefix off."""

    async def strip(scope: Any, receive: Any, send: Any) -> None:
        if not scope["path"].startswith(f"{PREFIX}/"):
            await _refuse(send)
            return
        await app({**scope, "path": scope["path"].removeprefix(PREFIX)}, receive, send)

    app, world._asgi = world._asgi, strip  # type: ignore[method-assign]
    one = Browser(world, prefix=PREFIX)
    page = await one.follow(await one.sign_in(next="/generations"))
    assert str(page.url) == f"http://genhook{PREFIX}/dashboard/generations"
    assert page.status_code == 200
    yield one
    await one.client.aclose()


async def _refuse(send: Any) -> None:
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b"outside of the prefix"})


def links_at(url: str, answer: httpx.Response) -> Iterator[tuple[str, str]]:
    """Every link in an answer that is shown on the page at `url`: its attribute and its URL."""
    for tag, name, value in Markup(answer.text).attributes:
        if name in LINKS and value and not value.startswith("#") and tag not in ("img", "video"):
            yield name, urljoin(url, value)


def without_seen(url: str) -> str:
    """The URL that an open page asks for, as if the page showed nothing yet."""
    parts = urlsplit(url)
    return parts._replace(
        query=urlencode([each for each in parse_qsl(parts.query) if each[0] != "seen"])
    ).geturl()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path or "/")
async def test_every_link_of_a_page_and_of_its_parts_leads_to_what_is_there(
    behind: Browser, ids: Ids, page: Any
) -> None:
    first = await behind.get(path_of(page, ids))
    assert first.status_code == 200, text_of(first)
    url, answers, asked = str(first.request.url), [first], set[str]()
    while answers:
        for name, link in links_at(url, answers.pop()):
            parts = urlsplit(link)
            if parts.netloc != "genhook" or link in asked:
                continue
            asked.add(link)
            assert parts.path.startswith(f"{PREFIX}/dashboard"), (name, link)
            if name == "hx-get":
                part = await behind.client.get(without_seen(link), headers={"hx-request": "true"})
                assert part.status_code in (200, 204), (link, part.text)
                answers.append(part)
            elif name == "action":  # Refused without a token, or a filter.
                assert (await behind.client.post(link)).status_code in (403, 405), link
            else:
                assert (await behind.client.get(link)).status_code in (200, 303), link


async def test_the_overview_shows_the_health_of_subscribers_for_as_long_as_it_is_open(
    behind: Browser, ids: Ids
) -> None:
    overview = await behind.get()
    url = str(overview.request.url)
    asks = [link for name, link in links_at(url, overview) if name == "hx-get" and "health" in link]
    for _ in range(3):
        row = await behind.client.get(asks[0], headers={"hx-request": "true"})
        assert "active" in text_of(row)
        asks = [link for name, link in links_at(url, row) if name == "hx-get"]
