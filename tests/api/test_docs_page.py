"""The page that shows openapi.yaml: complete, and it loads nothing else."""

import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from service.api.docs import document, render
from tests.contract.contract import DOCUMENT, operations
from tests.harness import Harness, opened

LOADING = {"src", "href", "data", "action", "srcset", "poster", "background"}


class Page(HTMLParser):
    """The tags, attributes and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Harness]:
    async with opened(tmp_path) as harness:
        yield harness


async def fetched(world: Harness) -> httpx.Response:
    answer = await world.anonymous.get("http://genhook/docs")
    assert answer.status_code == 200
    return answer


async def test_every_operation_is_on_the_page_once(world: Harness) -> None:
    page = Page((await fetched(world)).text)
    for name, operation in operations():
        shown = f"{name} {' '.join(operation['summary'].split())}"
        assert page.text.count(f"{shown} {operation['x-scope']}") == 1, name
    for name, operation in operations("webhooks"):
        assert f"{name} {operation['summary']} sent to subscribers" in page.text, name
    webhooks = list(operations("webhooks"))
    assert page.tags.count("summary") == len([*operations(), *webhooks])


async def test_parameters_fields_and_answers_are_on_the_page(world: Harness) -> None:
    text = Page((await fetched(world)).text).text
    assert "Idempotency-Key header Makes the request safe to repeat." in text
    assert "notify_url body A subscriber for this one generation" in text
    assert "id path" in text
    assert "409 The first request with this key is still running." in text


async def test_every_tag_heads_a_section(world: Harness) -> None:
    page = Page((await fetched(world)).text)
    assert page.tags.count("h2") == len(DOCUMENT["tags"])


async def test_the_page_loads_nothing_and_runs_nothing(world: Harness) -> None:
    text = (await fetched(world)).text
    page = Page(text)
    forbidden = {"script", "link", "img", "iframe", "object", "embed", "form", "base", "svg"}
    assert forbidden.isdisjoint(page.tags)
    named = [value for _tag, name, value in page.attributes if name in LOADING]
    assert named == ["/openapi.yaml"]
    assert not any(name.startswith("on") for _tag, name, _value in page.attributes)
    [style] = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style


async def test_the_policy_lets_the_browser_load_nothing(world: Harness) -> None:
    headers = (await fetched(world)).headers
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["x-content-type-options"] == "nosniff"
    rules = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert rules.pop("style-src") == "'unsafe-inline'"
    assert rules.keys() == {"default-src", "base-uri", "form-action", "frame-ancestors"}
    assert set(rules.values()) == {"'none'"}


async def test_the_document_is_served_as_it_is(world: Harness) -> None:
    answer = await world.anonymous.get("http://genhook/openapi.yaml")
    assert answer.headers["content-type"].startswith("application/yaml")
    assert answer.content == document()


async def test_by_setting_the_page_needs_a_key(tmp_path: Path) -> None:
    async with opened(tmp_path, open_docs=False, open_metrics=False) as world:
        for path in ("/docs", "/openapi.yaml", "/metrics"):
            assert (await world.anonymous.get(f"http://genhook{path}")).status_code == 401
            assert (await world.client.get(path)).status_code == 200
        key = {"name": "reader", "scopes": ["read"]}
        created = (await world.client.post("/v1/keys", json=key)).json()
        async with world.new_client(created["key"]) as reader:
            assert (await reader.get("/docs")).status_code == 200
            assert (await reader.get("/metrics")).status_code == 403


def test_texts_of_the_document_cannot_become_markup() -> None:
    text = document().decode().replace("title: genhook", "title: <script>alert(1)</script>")
    assert "<script" not in render(text.encode()).decode()
