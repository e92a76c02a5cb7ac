"""Editing a subscriber on the pages: what is sent, what stays, and what a wrong value does."""

import html
import json
import re
from typing import Any

import httpx
import pytest

from tests.dashboard.browser import Browser, commands, text_of, token_of
from tests.dashboard.test_pages import HOSTILE
from tests.harness import SUBSCRIBER_URL, Harness
from tests.markup import Markup

FIELD = re.compile(r'<(?:input|textarea)[^>]* name="(\w+)"(?:[^>]* value="([^"]*)")?')
AREA = re.compile(r'<textarea[^>]* name="(\w+)"[^>]*>\n(.*?)</textarea>', re.DOTALL)
CHOSEN = re.compile(r'<select[^>]* name="(\w+)".*?<option value="(\w+)" selected', re.DOTALL)
CHECKED = re.compile(r'name="event_types" value="([\w.]+)" checked')
MANY = {
    "description": "Shop\nfor pictures",
    "event_types": ["generation.failed", "generation.succeeded"],
    "filter": {"models": ["imagen4", "a,b"], "metadata": {"team": "a\nb", "o": "=1"}},
    "headers": {"X-Team": "pictures", "X-Other": "two"},
    "rate_per_second": 0.25,
    "retry_schedule_seconds": [0, 60],
    "ordered": True,
    "payload": "thin",
}


def form_of(page: httpx.Response) -> dict[str, Any]:
    """The fields of the form as a browser would send them: line ends as CRLF."""
    fields: dict[str, Any] = {
        name: value for name, value in FIELD.findall(page.text) if name != "event_types"
    }
    fields |= dict(AREA.findall(page.text)) | dict(CHOSEN.findall(page.text))
    fields = {name: html.unescape(value) for name, value in fields.items()}
    sent = {name: text.replace("\n", "\r\n") for name, text in fields.items() if name != "token"}
    return sent | {"event_types": CHECKED.findall(page.text)}


async def edit(browser: Browser, id_: str, **changes: Any) -> httpx.Response:
    """Load the form, change fields of it, and send it."""
    path = f"/subscribers/{id_}/edit"
    page = await browser.get(path)
    return await browser.post(path, token_of(page), **(form_of(page) | changes))


@pytest.fixture
async def subscriber(world: Harness) -> dict[str, Any]:
    return await world.subscribe(**MANY)


async def view(world: Harness, id_: str) -> dict[str, Any]:
    return await world.get(f"/v1/subscribers/{id_}")


async def test_a_form_that_is_sent_as_it_was_shown_changes_nothing(
    world: Harness, browser: Browser, subscriber: dict[str, Any]
) -> None:
    before = await view(world, subscriber["id"])
    world.clock.advance(60)
    page = await browser.follow(await edit(browser, subscriber["id"]))
    assert "Nothing was changed" in text_of(page)
    assert await view(world, subscriber["id"]) == before  # updated_at, too: no call was made.


async def test_every_field_can_be_changed(
    world: Harness, browser: Browser, subscriber: dict[str, Any]
) -> None:
    changes = {
        "url": f"{SUBSCRIBER_URL}/two",
        "description": "x\r\ny",
        "event_types": ["ping", "generation.failed"],
        "models": "flux-2\r\n imagen4 ",
        "metadata": '{"team": "films"}',
        "headers": "x-team: [redacted]\r\n\r\nX-New : a: b ",
        "max_in_flight": " 7 ",
        "rate_per_second": "",
        "retry_schedule_seconds": "5, 10,\r\n20",
        "ordered": "false",
        "payload": "cloudevents",
    }
    page = await browser.follow(await edit(browser, subscriber["id"], **changes))
    assert "The subscriber is changed" in text_of(page)
    changed = await view(world, subscriber["id"])
    expected = {
        "url": f"{SUBSCRIBER_URL}/two",
        "description": "x\ny",
        "event_types": ["ping", "generation.failed"],
        "filter": {"models": ["flux-2", "imagen4"], "metadata": {"team": "films"}},
        "headers": {"X-New": "[redacted]", "x-team": "[redacted]"},
        "max_in_flight": 7,
        "rate_per_second": None,
        "retry_schedule_seconds": [5, 10, 20],
        "ordered": False,
        "payload": "cloudevents",
    }
    assert {name: changed[name] for name in expected} == expected
    await world.client.post(f"/v1/subscribers/{subscriber['id']}/test")
    sent = world.subscribers.webhooks_to(f"{SUBSCRIBER_URL}/two")[0].headers
    assert (sent["x-team"], sent["X-New"]) == ("pictures", "a: b")


async def test_of_a_filter_that_changes_in_part_the_rest_stays(
    world: Harness, browser: Browser, subscriber: dict[str, Any]
) -> None:
    await browser.follow(await edit(browser, subscriber["id"], models=""))
    changed = await view(world, subscriber["id"])
    assert changed["filter"] == {"models": [], "metadata": MANY["filter"]["metadata"]}  # type: ignore[index]
    assert changed["description"] == MANY["description"]


async def test_what_somebody_else_changed_meanwhile_stays(
    world: Harness, browser: Browser, subscriber: dict[str, Any]
) -> None:
    path = f"/subscribers/{subscriber['id']}"
    page = await browser.get(f"{path}/edit")
    await world.client.patch(f"/v1{path}", json={"max_in_flight": 3})
    form = form_of(page) | {"description": "New"}
    await browser.post(f"{path}/edit", token_of(page), **form)
    changed = await view(world, subscriber["id"])
    assert (changed["description"], changed["max_in_flight"]) == ("New", 3)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("url", "http://10.0.0.1/", "/url"),
        ("url", "http://127.0.0.1:8/other-origin", "/headers/X-Team must be given"),
        ("url", "", "/url"),
        ("description", "x" * 501, "/description"),
        ("description", "\0", "/description"),
        ("event_types", "generation.lost", "/event_types/0"),
        ("models", "a a", "/filter/models"),
        ("metadata", "{", "must be a JSON object of texts"),
        ("metadata", "[" * 5_000, "must be a JSON object of texts"),
        ("metadata", '{"a": 1}', "must be a JSON object of texts"),
        ("metadata", '{"a": "1", "a": "2"}', "contains a name twice"),
        ("metadata", '{"a b": "1"}', "/filter/metadata/a b"),
        ("headers", "no colon", "must have a name, a colon and a value"),
        ("headers", "A: 1\nA: 2", "contains a header twice"),
        ("headers", "webhook-id: 1", "/headers/webhook-id is set by genhook"),
        ("headers", "X-None: [redacted]", "none is stored"),
        ("headers", "Host: x", "/headers/Host"),
        ("max_in_flight", "0", "/max_in_flight"),
        ("max_in_flight", "many", "must be a whole number"),
        ("max_in_flight", "\u0663", "must be a whole number"),
        ("max_in_flight", "9" * 5_000, "must be a whole number"),
        ("rate_per_second", "nan", "must be a number such as 0.5"),
        ("rate_per_second", "inf", "must be a number such as 0.5"),
        ("rate_per_second", "0,5", "must be a number such as 0.5"),
        ("rate_per_second", "0", "/rate_per_second"),
        ("retry_schedule_seconds", "soon", "must be whole seconds"),
        ("retry_schedule_seconds", "", "/retry_schedule_seconds"),
        ("retry_schedule_seconds", "5 604801", "/retry_schedule_seconds/1"),
        ("payload", "none", "/payload"),
    ],
)
async def test_a_wrong_value_changes_nothing_is_kept_in_the_form_and_said_at_its_field(
    world: Harness,
    browser: Browser,
    subscriber: dict[str, Any],
    name: str,
    value: str,
    message: str,
) -> None:
    before = await view(world, subscriber["id"])
    page = await edit(browser, subscriber["id"], **{name: value, "ordered": "false"})
    assert page.status_code == 422
    assert message in text_of(page)
    assert "Nothing was changed" in text_of(page)
    assert await view(world, subscriber["id"]) == before
    fields = form_of(page)
    assert fields["ordered"] == "false"
    if name not in ("payload", "event_types", "description"):
        assert fields[name] == value.replace("\n", "\r\n")
    # Sent again with the right value, only what differs from the beginning is changed.
    fields[name] = form_of(await browser.get(f"/subscribers/{subscriber['id']}/edit"))[name]
    path = f"/subscribers/{subscriber['id']}/edit"
    await browser.follow(await browser.post(path, token_of(page), **fields))
    after = await view(world, subscriber["id"])
    assert after | {"updated_at": 0} == before | {"ordered": False, "updated_at": 0}


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
async def test_the_texts_of_strangers_stay_texts_in_the_form(
    world: Harness, browser: Browser, text: str
) -> None:
    text = text[:500].strip()
    subscriber = await world.subscribe(description=text, filter={"metadata": {"t": text}})
    page = await browser.get(f"/subscribers/{subscriber['id']}/edit")
    markup = Markup(page.text)
    assert markup.tags.count("script") == 2
    assert not any(name == "onerror" for _tag, name, _value in markup.attributes)
    assert form_of(page)["description"] == text
    assert json.loads(form_of(page)["metadata"]) == {"t": text}
    # A refused form shows what a stranger could have put into any of its fields.
    fields = dict.fromkeys(("url", "models", "headers", "max_in_flight", "payload"), text)
    page = await edit(browser, subscriber["id"], **fields)
    assert page.status_code == 422
    assert Markup(page.text).tags.count("script") == 2
    assert form_of(page)["models"] == text


async def test_a_form_whose_beginning_cannot_be_read_is_refused(
    world: Harness, browser: Browser, subscriber: dict[str, Any]
) -> None:
    for was in ("", "{", "[]", '{"url": 1}', "[" * 5_000):
        page = await edit(browser, subscriber["id"], was=was, description="x")
        assert page.status_code == 400, was
    assert (await view(world, subscriber["id"]))["description"] == MANY["description"]


async def test_the_form_shows_the_call_that_sets_what_it_shows(
    world: Harness, browser: Browser, subscriber: dict[str, Any]
) -> None:
    page = await browser.get(f"/subscribers/{subscriber['id']}/edit")
    [change] = [each for each in commands(page) if "-X PATCH" in each]
    before = await view(world, subscriber["id"])
    assert (await browser.run(change)).status_code == 200
    after = await view(world, subscriber["id"])
    assert after | {"updated_at": 0} == before | {"updated_at": 0}
    shown = json.loads(re.findall(r"-d '(.*)'", change)[0])
    assert shown == {name: before[name] for name in shown}


async def test_the_form_needs_the_scope_the_token_and_the_tenant(
    world: Harness, browser: Browser, subscriber: dict[str, Any]
) -> None:
    path = f"/subscribers/{subscriber['id']}/edit"
    form = form_of(await browser.get(path)) | {"description": "Mine"}
    assert (await browser.post(path, "wrong", **form)).status_code == 403
    for fields in ({"scopes": ["read"]}, {"scopes": ["manage"], "tenant": "other"}):
        key = await world.client.post("/v1/keys", json={"name": "k", **fields})
        stranger = Browser(world)
        await stranger.sign_in(key.json()["key"])
        token = token_of(await stranger.get("/workers"))
        answer = await stranger.post(path, token, **form)
        assert answer.status_code == (403 if "tenant" not in fields else 404)
    assert (await view(world, subscriber["id"]))["description"] == MANY["description"]


async def test_a_subscriber_is_disabled_and_resumed(
    world: Harness, browser: Browser, subscriber: dict[str, Any]
) -> None:
    path = f"/subscribers/{subscriber['id']}"
    page = await browser.follow(await browser.post(f"{path}/disable"))
    assert "It is disabled: manual" in text_of(page)
    assert f"{path}/disable" not in page.text
    page = await browser.follow(await browser.post(f"{path}/resume"))
    assert (await view(world, subscriber["id"]))["status"] == "active"
