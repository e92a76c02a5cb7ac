"""Filters of lists: a wrong one keeps the form and marks its field, and none is without effect."""

import re

import httpx
import pytest

from service.dashboard.pages import PAGES, Page
from tests.contract.scenes import Ids, populate
from tests.dashboard.browser import Browser, text_of
from tests.dashboard.test_pages import path_of
from tests.harness import Harness

WRONG = re.compile(r'name="(\w+)"[^>]* aria-invalid="true"')
LISTED = re.compile(r"<table|<ul class=\"wall\"|hx-get")


@pytest.fixture
async def ids(world: Harness) -> Ids:
    return await populate(world)


def value_of(page: httpx.Response, name: str) -> str:
    value, *_ = re.findall(rf'<input [^>]*name="{name}" value="([^"]*)"', page.text)
    return str(value)


@pytest.mark.parametrize(
    ("path", "fields", "name", "words"),
    [
        ("/generations", {"status": "failed", "value": "zzz"}, "name", "a value has one"),
        ("/generations", {"status": "failed", "model": "modèle"}, "model", "must"),
        ("/generations", {"from": "yesterday", "model": "imagen4"}, "from", "RFC 3339"),
        ("/generations", {"name": "a b", "value": "c"}, "name", "needs a name"),
        ("/generations", {"name": "a", "value": "\0"}, "value", "without NUL"),
        ("/generations", {"name": "a" * 90, "value": "\0"}, "value", "without NUL"),
        ("/generations", {"status": "wild"}, "status", "must be one of"),
        ("/deliveries", {"status": "dead", "subscriber_id": "me"}, "subscriber_id", "must be"),
        ("/callbacks", {"generation_id": "gen"}, "generation_id", "must be an id"),
        ("/models", {"kind": "smell"}, "kind", "must be one of"),
        ("/usage", {"since": "then", "model": "imagen4"}, "since", "must be"),
        ("/keys", {"tenant": "No Tenant"}, "tenant", "must be"),
    ],
)
async def test_a_wrong_filter_keeps_the_form_with_its_values_and_marks_the_field(
    browser: Browser, ids: Ids, path: str, fields: dict[str, str], name: str, words: str
) -> None:
    page = await browser.client.get(f"http://genhook/dashboard{path}", params=fields)
    assert page.status_code == 400
    assert WRONG.findall(page.text) == [name]
    assert "Nothing is listed: 1 field is wrong." in text_of(page)
    [why] = re.findall(r'<small class="wrong">([^<]*)<', page.text)
    assert words in why
    assert not LISTED.search(page.text), "an empty list would say that nothing matches"
    for other, value in fields.items():
        if other not in ("status", "kind") and "\0" not in value:
            assert value_of(page, other) == value
    if fields.get("status") in ("failed", "dead"):
        assert f'<option value="{fields["status"]}" selected>' in page.text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path or "/")
async def test_a_parameter_that_a_page_does_not_know_is_refused_and_never_without_effect(
    browser: Browser, ids: Ids, page: Page
) -> None:
    path = path_of(page, ids)
    answer = await browser.get(f"{path}?created_after=2026-11-01T00:00:00Z")
    assert answer.status_code == 400
    assert "This page has no filter created_after." in text_of(answer)
    assert (await browser.get(f"{path}?done=x&at=1")).status_code in (200, 303)
    for name in page.filters:
        answer = await browser.get(f"{path}?{name}=&{name}=")
        assert answer.status_code == 400
        assert f"The filter {name} is there more than once." in text_of(answer)


async def test_a_wrong_parameter_without_a_field_leads_back_to_the_page(browser: Browser) -> None:
    for query in ("after=zzz", "created_after=x"):
        page = await browser.get(f"/deliveries?{query}")
        assert page.status_code == 400
        assert re.search(r'href="../dashboard/deliveries">Go back<', page.text)
    page = await browser.get("/dead-letters?subscriber_id=me")
    assert page.status_code == 400
    assert re.search(r'href="../dashboard/dead-letters">Go back<', page.text)
