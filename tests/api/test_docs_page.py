"""The page that shows openapi.yaml: complete, of this host alone, and with a strict policy."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Route

from service.api.docs import FOLDER, MEDIA_TYPES, document
from tests.chromium import Tab, browsed
from tests.cli.test_serve import KEYS, started
from tests.contract.contract import operations
from tests.harness import Harness, opened

LOADED = re.compile(r'(?:src|href)="([^"]*)"')


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Harness]:
    async with opened(tmp_path) as harness:
        yield harness


async def fetch(world: Harness, path: str) -> httpx.Response:
    return await world.anonymous.get(f"http://genhook{path}")


async def test_what_the_page_loads_is_there_and_relative_to_it(world: Harness) -> None:
    text = (await fetch(world, "/docs")).text
    names = {name for name in LOADED.findall(text) if not name.startswith("data:")}
    assert names == {f"docs/{name}" for name in MEDIA_TYPES} | {"openapi.yaml"}
    for name in names - {"openapi.yaml"}:
        answer = await fetch(world, f"/{name}")
        assert answer.status_code == 200
        media_type = answer.headers["content-type"].partition(";")[0]
        assert media_type == MEDIA_TYPES[name.removeprefix("docs/")]
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["LICENSE", "index.html", "..%2Fdocs.py", "%2Fetc%2Fpasswd", "x"])
async def test_no_other_file_is_served(world: Harness, name: str) -> None:
    assert (await fetch(world, f"/docs/{name}")).status_code == 404


def test_the_licence_of_what_others_wrote_is_beside_it() -> None:
    assert "Apache License" in (FOLDER / "LICENSE").read_text("utf-8")
    assert (FOLDER / "NOTICE").exists()


async def test_the_policy_allows_nothing_inline_and_nothing_of_another_host(world: Harness) -> None:
    answer = await fetch(world, "/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert set(rules.values()) <= {"'none'", "'self'", "data:"}
    assert "<style" not in answer.text
    assert not re.search(r"<script(?! src)| on\w+=", answer.text)


async def test_the_document_is_served_as_it_is(world: Harness) -> None:
    answer = await fetch(world, "/openapi.yaml")
    assert answer.headers["content-type"].startswith("application/yaml")
    assert answer.content == document()


async def test_by_setting_the_page_needs_a_key(tmp_path: Path) -> None:
    async with opened(tmp_path, open_docs=False, open_metrics=False) as world:
        for path in ("/docs", "/openapi.yaml", "/metrics"):
            assert (await fetch(world, path)).status_code == 401
            assert (await world.client.get(path)).status_code == 200
        key = {"name": "reader", "scopes": ["read"]}
        created = (await world.client.post("/v1/keys", json=key)).json()
        async with world.new_client(created["key"]) as reader:
            assert (await reader.get("/docs")).status_code == 200
            assert (await reader.get("/metrics")).status_code == 403


# In a browser.


@contextmanager
def shown(folder: Path) -> Iterator[Tab]:
    """The page in a browser, once it has drawn the operations."""
    with started(folder, "serve", "--port", "0", **KEYS) as genhook, browsed() as tab:
        tab.page.goto(f"{genhook.url}/docs")
        tab.page.wait_for_selector(".opblock")
        yield tab


def test_a_browser_shows_every_operation_and_asks_no_other_host(tmp_path: Path) -> None:
    with shown(tmp_path) as tab:
        blocks = tab.page.locator(".opblock").all_inner_texts()
        texts = [" ".join(text.replace("\u200b", "").split()) for text in blocks]
        for name, operation in [*operations(), *operations("webhooks")]:
            summary = " ".join(operation["summary"].split())
            assert any(name in text and summary in text for text in texts), name
        assert tab.complaints == []
        hosts = {urlsplit(url).hostname for _, url in tab.requests if "data:" not in url}
        assert hosts == {"127.0.0.1"}


def test_a_browser_shows_allowed_values_required_marks_and_examples(tmp_path: Path) -> None:
    with shown(tmp_path) as tab:
        create = tab.page.locator("#operations-subscribers-createSubscriber")
        create.locator(".opblock-summary-control").click()
        create.locator(".highlight-code").first.wait_for()
        assert "https://shop.example/webhooks/genhook" in create.inner_text()
        create.get_by_text("The API key is unknown or revoked.").first.wait_for()
        codes = create.locator(".examples-select option").all_inner_texts()
        assert {"invalid_request", "idempotency_key_reused", "address_refused"} <= set(codes)
        listing = tab.page.locator("#operations-generations-listGenerations")
        listing.locator(".opblock-summary-control").click()
        listing.locator(".parameters").first.wait_for()
        assert "timed_out" in listing.inner_text()
        assert tab.complaints == []


def test_behind_a_path_a_request_from_the_page_goes_below_that_path(tmp_path: Path) -> None:
    with started(tmp_path, "serve", "--port", "0", **KEYS) as genhook, browsed() as tab:

        def below(route: Route) -> None:
            """Be a proxy that takes a path off before genhook sees it."""
            url = route.request.url.replace("/proxied/", "/")
            route.fulfill(response=route.fetch(url=url))

        tab.page.route("**/proxied/**", below)
        tab.page.goto(f"{genhook.url}/proxied/docs")
        health = tab.page.locator("#operations-operations-getHealth")
        health.locator(".opblock-summary-control").click()
        health.locator(".try-out__btn").click()
        health.locator(".execute").click()
        health.locator(".live-responses-table").wait_for()
        assert tab.requests[-1][1] == f"{genhook.url}/proxied/healthz"
        assert "200" in health.locator(".live-responses-table").inner_text()
        assert tab.complaints == []
