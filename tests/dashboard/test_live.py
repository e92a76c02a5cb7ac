"""Lists that are open: they ask again, get only what changed, and leave their reader in place."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from tests import chromium
from tests.cli.test_serve import ADMIN_KEY, KEYS, served, started
from tests.contract.scenes import another_tenant, populate
from tests.dashboard.browser import Browser, policy_of, text_of
from tests.dashboard.test_browser import Receiver, Watched, subscribe
from tests.harness import Harness

LISTS = ("/generations", "/deliveries", "/dead-letters", "/callbacks")
ASKED = re.compile(r"[?&]seen=")
ASKS = re.compile(r'id="live" hx-get="([^"]+)"[^>]*hx-trigger="every 5s"')


def link_of(answer: httpx.Response) -> str:
    """What an open list asks for, below /dashboard."""
    [link] = ASKS.findall(answer.text)
    return "/" + str(link).replace("&amp;", "&").rpartition("dashboard/")[2]


@pytest.mark.parametrize("path", LISTS)
async def test_an_open_list_gets_nothing_until_it_has_changed(
    world: Harness, browser: Browser, path: str
) -> None:
    await populate(world)
    link = link_of(await browser.get(path))
    assert (await browser.get(link, HX_Request="true")).status_code == 204
    assert (await browser.get(link)).status_code == 200, "a person who opens the link sees the page"
    await populate(world)
    changed = await browser.get(link, HX_Request="true")
    assert changed.status_code == 200
    assert link_of(changed) != link
    assert (await browser.get(link_of(changed), HX_Request="true")).status_code == 204


async def test_an_open_list_asks_with_its_filters_and_its_cursor(
    world: Harness, browser: Browser
) -> None:
    await populate(world)
    for path, fields in (
        ("/deliveries", {"status": "dead", "subscriber_id": "sub_" + "0" * 32}),
        ("/callbacks", {"verdict": "accepted"}),
        ("/dead-letters", {"after": "dlv_" + "f" * 32}),
        (
            "/generations",
            {"status": "failed", "from": "2026-11-01T00:00", "name": "a", "value": "b"},
        ),
    ):
        answer = await browser.client.get(f"http://genhook/dashboard{path}", params=fields)
        query = {name: value for name, [value] in parse_qs(urlsplit(link_of(answer)).query).items()}
        assert query.keys() >= {"seen"}
        assert {name: query.get(name) for name in fields} == fields


async def test_a_picture_of_an_unknown_host_makes_the_wall_load_anew_and_of_a_known_one_not(
    world: Harness, browser: Browser
) -> None:
    link = link_of(await browser.get("/generations"))
    for number, host in enumerate(("one", "one", "two"), 1):
        await world.generate()
        world.upstream.finish(f"task{number}", f"https://{host}.example/{number}.png")
        await world.run(60)
        answer = await browser.get(link, HX_Request="true")
        if number == 2:
            assert answer.status_code == 200
            assert answer.text.count("<img") == 2
            link = link_of(answer)  # It names the hosts of the policy, which stays.
        else:
            assert (answer.status_code, answer.headers.get("hx-refresh")) == (204, "true")
            page = await browser.get("/generations")
            assert f"https://{host}.example" in policy_of(page)["img-src"]
            link = link_of(page)


async def test_an_open_list_of_who_signed_out_leads_to_the_form(
    world: Harness, browser: Browser
) -> None:
    link = link_of(await browser.get("/deliveries"))
    await browser.post("/sign-out")
    answer = await browser.get(link, HX_Request="true")
    assert (answer.status_code, answer.headers["hx-refresh"]) == (204, "true")


async def test_an_open_list_shows_nothing_of_others(world: Harness, browser: Browser) -> None:
    async with await another_tenant(world) as client:
        ids = await populate(world, client)
    for path in LISTS:
        answer = await browser.get(f"{path}?seen=0", HX_Request="true")
        assert answer.status_code == 200
        assert not any(id_ in answer.text for id_ in ids.values()), text_of(answer)


# In a browser. Its clock stands still until the test moves it; the service's is the machine's.


class Open:
    """A service with a sandbox and two receivers, and the page of a person who is signed in."""

    def __init__(self, client: httpx.Client, watched: Watched, url: str) -> None:
        self.client, self.watched, self.url = client, watched, url

    @property
    def page(self) -> Page:
        return self.watched.page

    def generate(self, prompt: str) -> None:
        """Make a generation, and wait until it has ended and its webhooks are refused."""
        body = {"model": "imagen4-fast", "input": {"prompt": prompt}}
        made = self.client.post("/v1/generations", json=body).json()
        path = f"/v1/generations/{made['id']}"
        assert self.client.get(path, params={"wait": 60}).json()["status"] == "succeeded"
        count = 0
        while count < 2:  # Submitted, and succeeded.
            query = {"status": "dead", "generation_id": made["id"]}
            count = len(self.client.get("/v1/deliveries", params=query).json()["data"])

    def open(self, path: str) -> None:
        self.page.goto(f"{self.url}/dashboard{path}")
        self.page.evaluate("window.isSame = true")

    def wait(self, seconds: int) -> None:
        self.page.clock.run_for(seconds * 1_000)

    def ask_again(self) -> None:
        """Let the page ask, and wait for the answer."""
        with self.page.expect_response(lambda answer: "seen=" in answer.url):
            self.wait(6)
        self.wait(1)  # htmx swaps and settles by timers.

    def count(self, kind: str) -> int:
        return sum(each == kind for each, _ in self.watched.requests)

    def value(self, script: str) -> Any:
        return self.page.evaluate(script)


@contextmanager
def opened_in(folder: Path) -> Iterator[Open]:
    line = ("serve", "--dev", "--sandbox", "--port", "0")
    Receiver.is_well = False
    with (
        served(Receiver) as receiver,
        started(folder, *line, **KEYS) as running,
        running.client() as client,
        chromium.launched() as browser,
    ):
        client.timeout = httpx.Timeout(70)
        subscribe(client, f"{receiver}/refuses", retry_schedule_seconds=[0])
        watched = Watched(browser, viewport={"width": 360, "height": 560})
        watched.page.clock.install()
        watched.sign_in(running.url, ADMIN_KEY)
        # An installed clock runs until it is paused, also in the pages that are opened later.
        watched.page.clock.pause_at(watched.page.evaluate("Date.now()") / 1_000 + 3_600)
        yield Open(client, watched, running.url)
        assert watched.complaints == []
        running.end()


TOP = "document.querySelector('.card:nth-last-child(2)').getBoundingClientRect().top"


@pytest.mark.timeout(300)
def test_a_wall_that_changes_leaves_filter_focus_and_place(tmp_path: Path) -> None:
    with opened_in(tmp_path) as one:
        for number in range(4):
            one.generate(f"number {number}")
        one.open("/generations")
        # Not every browser keeps the place by itself, and those that do not always.
        one.value("document.documentElement.style.overflowAnchor = 'none'")
        one.page.get_by_label("Model").fill("imag")
        one.value("window.scrollTo(0, document.querySelector('.card:nth-child(2)').offsetTop)")
        top = one.value(TOP)
        assert one.value("window.scrollY") > 0
        one.generate("the fifth")
        one.generate("the sixth")  # A row has two.
        one.ask_again()
        expect(one.page.locator(".card")).to_have_count(6)
        assert one.page.get_by_label("Model").input_value() == "imag"
        assert one.value("document.activeElement.name") == "model"
        assert abs(one.value(TOP) - top) < 2, "the row that was read has moved"
        assert one.value("window.isSame"), "the page was loaded anew"
        _ask_nothing_while_hidden(one)


def _ask_nothing_while_hidden(one: Open) -> None:
    one.value("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    one.generate("the seventh")
    before = one.count("xhr")
    one.wait(60)
    assert one.count("xhr") == before
    one.value("delete document.hidden")
    one.ask_again()
    expect(one.page.locator(".card")).to_have_count(7)


NOW = "new Date().toISOString().slice(0, 19).replace('T', ' ') + ' UTC'"
REFUSALS: dict[str, Callable[[Route], None]] = {
    "503": lambda route: route.fulfill(status=503),
    "no connection": lambda route: route.abort(),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("refuse", REFUSALS.values(), ids=REFUSALS)
def test_while_it_gets_no_good_answer_a_page_says_that_it_may_be_out_of_date(
    tmp_path: Path, refuse: Callable[[Route], None]
) -> None:
    with opened_in(tmp_path) as one:
        one.open("/generations")
        note = one.page.get_by_role("alert")
        opened_at = one.value(NOW)
        one.ask_again()
        answered_at = one.value(NOW)
        expect(note).to_be_hidden()
        one.page.route(ASKED, refuse)
        for _ in range(2):
            with one.page.expect_request(ASKED):
                one.wait(6)
            expect(note).to_contain_text("This page may be out of date")
            assert opened_at < one.value("document.querySelector('#stale time').textContent")
            assert answered_at >= one.value("document.querySelector('#stale time').textContent")
        one.page.unroute(ASKED)
        one.ask_again()
        expect(note).to_be_hidden()
        assert one.watched.complaints
        one.watched.complaints.clear()  # The console names what failed.


@pytest.mark.timeout(300)
def test_a_good_answer_to_one_part_does_not_hide_that_another_is_out_of_date(
    tmp_path: Path,
) -> None:
    with opened_in(tmp_path) as one:
        health = re.compile(r"/health$")
        with one.page.expect_response(health):
            one.open("")
        note = one.page.get_by_role("alert")
        one.wait(1)
        expect(one.page.locator("tr[hx-trigger='every 60s']")).to_have_count(1)
        one.page.route(health, REFUSALS["503"])
        with one.page.expect_response(health):
            one.wait(62)
        expect(note).to_contain_text("This page may be out of date")
        with one.page.expect_response(lambda answer: answer.url.endswith("/dashboard")):
            one.wait(31)  # The rest of the page.
        one.wait(1)
        expect(note).to_be_visible()
        one.page.unroute(health)
        with one.page.expect_response(health):
            one.wait(62)
        one.wait(1)
        expect(note).to_be_hidden()
        assert one.watched.complaints
        one.watched.complaints.clear()


@pytest.mark.timeout(300)
def test_a_part_that_a_page_comes_without_is_asked_for_until_it_comes(tmp_path: Path) -> None:
    with opened_in(tmp_path) as one:
        [subscriber] = one.client.get("/v1/subscribers").json()["data"]
        stats = re.compile(r"/stats$")
        one.page.route(stats, REFUSALS["503"])
        with one.page.expect_response(stats):
            one.open(f"/subscribers/{subscriber['id']}")
        expect(one.page.get_by_role("alert")).to_be_visible()
        one.page.unroute(stats)
        with one.page.expect_response(stats):
            one.wait(62)
        one.wait(1)
        expect(one.page.get_by_role("heading", name="Waiting")).to_be_visible()
        expect(one.page.get_by_role("alert")).to_be_hidden()
        assert one.watched.complaints
        one.watched.complaints.clear()


@pytest.mark.timeout(300)
def test_a_wall_whose_first_picture_is_of_an_unknown_host_waits_for_the_form(
    tmp_path: Path,
) -> None:
    with opened_in(tmp_path) as one:
        one.open("/generations")
        one.page.get_by_label("Metadata name").fill("order")
        one.generate("the first")
        documents = one.count("document")
        for _ in range(3):
            one.ask_again()
        assert one.count("document") == documents, "the page was loaded anew"
        expect(one.page.get_by_text("This page is out of date")).to_be_visible()
        assert one.page.get_by_label("Metadata name").input_value() == "order"
        one.page.get_by_label("Metadata name").fill("")
        one.page.get_by_label("Metadata name").blur()
        one.wait(6)
        expect(one.page.locator(".card img")).to_have_count(1)


@pytest.mark.timeout(300)
def test_tables_that_change_leave_focus_selection_and_what_is_scrolled(tmp_path: Path) -> None:
    with opened_in(tmp_path) as one:
        one.generate("number 0")
        for number, path in enumerate(LISTS[1:], 1):
            one.open(path)
            rows = one.page.locator("#live tbody tr")
            count = rows.count()
            link = one.page.locator("#live tbody tr a").first
            name = link.text_content()
            link.focus()
            one.value("document.querySelector('.scroll').scrollLeft = 150")
            left = one.value("document.querySelector('.scroll').scrollLeft")
            assert left > 0, path
            one.generate(f"number {number}")
            one.value("getSelection().selectAllChildren(document.querySelector('#live tbody tr'))")
            asked = one.count("xhr")
            one.wait(60)
            assert (one.count("xhr"), rows.count()) == (asked, count), "under a selection"
            one.value("getSelection().removeAllRanges()")
            one.ask_again()
            expect(rows).not_to_have_count(count)
            assert one.value("document.querySelector('.scroll').scrollLeft") == left, path
            assert one.value("document.activeElement.textContent") == name, path
            assert one.value("window.isSame")
