"""Pages say only what is so: who is signed in, what was done, and why a list is empty."""

import html
import re
from pathlib import Path
from typing import Any

import httpx
import jinja2
import msgspec
import pytest
from jinja2 import nodes

from service.dashboard.media import read_files
from service.model.errors import StorageError
from tests.contract.scenes import NOUNS, Ids, populate
from tests.dashboard.browser import Browser, links, text_of
from tests.dashboard.test_live import link_of
from tests.dashboard.test_offers import reader_with
from tests.harness import Harness, create_answer, opened

TEMPLATES = Path(__file__).parents[2] / "service/dashboard/templates"
HEADERS = re.compile(r"<body hx-headers='\{\"X-Form-Token\": \"([^\"]+)\"\}'>")


@pytest.fixture
async def ids(world: Harness) -> Ids:
    return await populate(world)


def form_token(page_text: str) -> str:
    """What an open page sends with its questions."""
    [token] = HEADERS.findall(page_text)
    return html.unescape(token)


@pytest.mark.parametrize("path", ["", "/generations", "/deliveries"])
async def test_an_open_page_whose_reader_is_not_signed_in_any_more_loads_anew(
    world: Harness, browser: Browser, path: str
) -> None:
    page = await browser.get(path)
    token = form_token(page.text)
    link = link_of(page) if path else ""
    answer = await browser.get(link, HX_Request="true", X_Form_Token=token)
    assert answer.status_code == (204 if path else 200)
    assert "hx-refresh" not in answer.headers
    await browser.post("/sign-out")  # In another tab.
    await browser.sign_in()
    answer = await browser.get(link, HX_Request="true", X_Form_Token=token)
    assert (answer.status_code, answer.headers["hx-refresh"]) == (204, "true")
    assert form_token((await browser.get(path)).text) != token


async def test_an_open_page_stays_while_secret_keys_are_rotated(tmp_path: Path) -> None:
    first, second = "s" * 32, "n" * 32
    async with opened(tmp_path) as world:
        browser = Browser(world)
        await browser.sign_in()
        page = await browser.get("/generations")
        world.settings = msgspec.structs.replace(world.settings, secret_keys=(first, second))
        await world.restart()  # As another process of the same service.
        cookies = browser.client.cookies
        browser = Browser(world)
        browser.client.cookies = cookies
        fields = {"HX_Request": "true", "X_Form_Token": form_token(page.text)}
        answer = await browser.get(link_of(page), **fields)
        assert (answer.status_code, "hx-refresh" in answer.headers) == (204, False)


async def test_what_was_done_is_said_for_a_moment_and_not_by_a_bookmark(
    world: Harness, browser: Browser
) -> None:
    subscriber = await world.subscribe()
    answer = await browser.post(f"/subscribers/{subscriber['id']}/pause")
    page = await browser.follow(answer)
    assert "The subscriber is paused" in text_of(page)
    world.clock.advance(-5)  # A process whose clock is behind shows the page.
    assert "The subscriber is paused" in text_of(await browser.follow(answer))
    world.clock.advance(16)
    assert "The subscriber is paused" not in text_of(await browser.follow(answer))
    for query in ("done=subscribers.pause", "done=subscribers.pause&at=", "done=x&at=9"):
        page = await browser.get(f"/subscribers/{subscriber['id']}?{query}")
        assert (page.status_code, "is paused" in text_of(page)) == (200, False)


async def test_an_operator_revokes_the_key_that_it_made_for_a_tenant(
    world: Harness, browser: Browser
) -> None:
    operator = await reader_with(world, "operator")
    token = form_token((await operator.get("/keys")).text)
    await operator.post("/keys/create", token, name="a look", scopes="read", tenant="second")
    page = await operator.get("/keys?tenant=second")
    [path] = {link for link in links(page) if link.endswith("/revoke")}
    assert 'name="tenant" value="second"' in page.text
    page = await operator.post(path.removeprefix("/dashboard"), token, tenant="second")
    page = await operator.follow(page)
    assert page.url.params["tenant"] == "second"
    assert "The key is revoked" in text_of(page)
    [key] = (await world.get("/v1/keys", tenant="second"))["data"]
    assert key["revoked_at"]


async def test_an_act_that_took_long_is_said_as_well(world: Harness, browser: Browser) -> None:
    def answer_late(_body: dict[str, Any]) -> httpx.Response:
        world.clock.advance(15)
        return httpx.Response(200, json=create_answer("task1"))

    world.upstream.on_create = answer_late
    form = {"model": "imagen4", "input.prompt": "a small harbour", "confirmed": "yes"}
    page = await browser.follow(await browser.post("/models/try", **form))
    assert "The generation was submitted" in text_of(page)


async def test_a_lost_secret_is_replaced_without_an_overlap(
    world: Harness, browser: Browser
) -> None:
    id_ = (await world.subscribe())["id"]
    page = await browser.post(f"/subscribers/{id_}/replace-secret")
    assert "The old one signs nothing any more" in text_of(page)
    assert (await world.get(f"/v1/subscribers/{id_}/secret"))["previous_expires_at"] is None


@pytest.mark.parametrize("noun", ["generations", "subscribers", "replays", "keys", "deliveries"])
async def test_a_page_past_the_end_of_a_list_does_not_say_that_there_is_nothing(
    browser: Browser, ids: Ids, noun: str
) -> None:
    page = await browser.get(f"/{noun}?after={NOUNS[noun]}_{'0' * 32}")
    assert page.status_code == 200
    assert "Nothing matches on this page of the list" in text_of(page)
    assert "Newest" in text_of(page)


@pytest.mark.parametrize(
    ("value", "words"), [("{", "input_urls cannot be read"), ("[1]", "input_urls/0 must be")]
)
async def test_an_error_of_the_form_names_the_whole_field(
    browser: Browser, value: str, words: str
) -> None:
    form = {"model": "flux-2", "input.prompt": "a harbour", "input.input_urls": value}
    page = await browser.post("/models/try", **form)
    assert page.status_code == 422
    assert words in text_of(page)


async def test_a_refused_act_leads_back_to_a_page(
    world: Harness, browser: Browser, ids: Ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    revoke = f"/keys/{ids['key']}/revoke"
    token = form_token((await browser.get("/keys")).text)
    span = {"since": "2026-11-18T00:00", "until": "2026-12-18T00:00", "confirmed": "yes"}
    with monkeypatch.context() as patch:
        patch.setattr(type(world.app.context.database), "write", _refuse)
        page = await browser.post(revoke, token)
        assert page.status_code == 503
        assert re.search(r'href="[./]*/dashboard/keys">Go back<', page.text)
        page = await browser.post("/replays/create", token, subscriber_id=ids["sub"], **span)
        assert page.status_code == 503
        assert re.search(r'href="[./]*/dashboard/dead-letters">Go back<', page.text)
    page = await browser.post(f"/generations/gen_{'0' * 32}/cancel")
    assert page.status_code == 404
    assert "Go back" not in text_of(page), "there is no page of what is not there"


async def _refuse(*_: object, **__: object) -> None:
    raise StorageError("The disk is full.")


async def test_a_price_that_is_cut_off_is_said_to_be_more(browser: Browser) -> None:
    form = {"model": "imagen4", "input.prompt": "a harbour"}
    page = await browser.post("/models/try", **form, **{"input.num_images": "999999999"})
    assert "1,000,000,000 credits or more" in text_of(page)
    page = await browser.post("/models/try", **form)
    assert "or more" not in text_of(page)


async def test_a_sign_in_leads_back_to_a_filter_with_a_space(world: Harness) -> None:
    answer = await Browser(world).sign_in(next="/generations?name=a&value=spring+sale")
    assert answer.headers["location"] == "../dashboard/generations?name=a&value=spring+sale"


async def test_a_browser_without_cookies_is_told_why_it_cannot_sign_in(world: Harness) -> None:
    stranger = Browser(world)
    page = await stranger.post("/sign-in", "token", key="ghk_" + "x" * 40)
    assert page.status_code == 403
    assert "sent no cookie" in text_of(page)
    await stranger.get("/sign-in")
    page = await stranger.post("/sign-in", "token", key="ghk_" + "x" * 40)
    assert "too old" in text_of(page)


async def test_the_counts_of_usage_add_up(world: Harness, browser: Browser, ids: Ids) -> None:
    page = await browser.get("/usage")
    rows = re.findall(r"<tr><td>[^<]+</td>(.*?)</tr>", page.text)
    counts = [[int(n.replace(",", "")) for n in re.findall(r">([\d,]+)<", row)] for row in rows]
    assert counts
    for generations, *ended, _credits in counts:
        assert generations == sum(ended), "all have ended"


@pytest.mark.parametrize("host", ["bücher.example", "[::1]:9000"])
def test_a_file_of_a_host_that_no_policy_can_name_is_linked(host: str) -> None:
    url = f"https://{host}/a.png"
    [medium] = read_files({"output": {"files": [{"url": url}]}}, 0)
    assert (medium.url, medium.origin) == (url, "")


def names_unused(*templates: str) -> set[str]:
    """The names that templates set, and that neither they nor what they include use."""
    trees = [jinja2.Environment(autoescape=True).parse(text) for text in templates]
    names = [name for tree in trees for name in tree.find_all(nodes.Name)]
    assigned = [each.target for tree in trees for each in tree.find_all(nodes.Assign)]
    made = {each.name for each in assigned if isinstance(each, nodes.Name)}
    return made - {name.name for name in names if name.ctx == "load"}


def test_templates_use_what_they_set() -> None:
    assert names_unused("{% set a = b %}", "{% set b = 1 %}") == {"a"}
    templates = list(TEMPLATES.glob("*.html"))
    assert len(templates) > 20
    assert names_unused(*(path.read_text("utf-8") for path in templates)) == set()
