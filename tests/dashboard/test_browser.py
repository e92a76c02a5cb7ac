"""A real browser: a person's way through the pages, and what axe-core finds on each of them.

It needs Chromium: `apt-get install chromium`.
"""

import asyncio
import http.server
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from service.dashboard.acts import ACTS
from service.dashboard.pages import PAGES
from service.model.callback import VERDICTS
from service.model.delivery import STATUSES
from service.model.generation import OPEN, TERMINAL
from tests import chromium
from tests.cli.test_serve import ADMIN_KEY, KEYS, served, started
from tests.dashboard.seed import SETTINGS, seed
from tests.dashboard.test_pages import path_of
from tests.harness import ADMIN_KEY as SEED_KEY
from tests.harness import opened

AXE = (Path(__file__).parent / "axe" / "axe.min.js").read_text(encoding="utf-8")
SEED_SECRET = "s" * 32 + "0123456789"
PICTURE = b"<svg xmlns='http://www.w3.org/2000/svg' width='64' height='64'/>"
SCROLLING = (
    "[...document.querySelectorAll('.scroll')].filter(each => each.scrollWidth > each.clientWidth)"
    ".map(each => each.querySelector('thead').textContent)"
)
EXCESS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
SERIOUS = ("serious", "critical")
SIZES = [(width, scheme) for width in (360, 1280) for scheme in ("light", "dark")]
# A folder for a screenshot of each page, to look at with the list in docs/dashboard.md.
SCREENSHOTS = os.environ.get("SCREENSHOTS")  # noqa: TID251  a setting of the tests
expect.set_options(timeout=30_000)

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def browser() -> Iterator[Browser]:
    with chromium.launched() as browser:
        yield browser


class Receiver(http.server.BaseHTTPRequestHandler):
    """Refuses what comes to /refuses until it is told to take it."""

    is_well = False

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200 if type(self).is_well or self.path != "/refuses" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


class Watched(chromium.Tab):
    """A page of a signed-in person."""

    def __init__(self, browser: Browser, **options: Any) -> None:
        super().__init__(browser.new_context(**options).new_page())
        self.page.set_default_timeout(30_000)

    def sign_in(self, url: str, key: str) -> None:
        self.page.goto(f"{url}/dashboard")
        self.page.get_by_label("API key").fill(key)
        self.page.get_by_role("button", name="Sign in").click()
        expect(self.page.get_by_role("heading", level=1)).to_have_text("Overview")


def subscribe(client: httpx.Client, url: str, **fields: Any) -> str:
    answer = client.post("/v1/subscribers", json={"url": url, **fields})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def test_a_person_signs_in_tries_a_model_and_repairs_a_receiver(
    tmp_path: Path, browser: Browser
) -> None:
    Receiver.is_well = False
    line = ("serve", "--dev", "--sandbox", "--port", "0")
    with served(Receiver) as receiver, started(tmp_path, *line, **KEYS) as running:
        with running.client() as client:
            subscribe(client, f"{receiver}/takes", description="Takes")
            subscribe(
                client, f"{receiver}/refuses", description="Refuses", retry_schedule_seconds=[0]
            )
        watched = Watched(browser)
        page = watched.page
        watched.sign_in(running.url, ADMIN_KEY)
        _try_a_model(page)
        _act_on_the_subscriber(page)
        Receiver.is_well = True
        _replay_the_dead_letters(page)
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
        assert watched.complaints == []
        own = urlsplit(running.url).netloc
        assert all(kinds == {"image"} for host, kinds in watched.hosts.items() if host != own)
        assert len(watched.hosts) == 2
        running.end()


def _menu(page: Page, name: str) -> None:
    page.get_by_role("navigation", name="Pages").get_by_role("link", name=name).click()


def _try_a_model(page: Page) -> None:
    _menu(page, "Models")
    page.get_by_role("link", name="Try imagen4-fast").click()
    page.get_by_label("prompt", exact=False).first.fill("A lighthouse at dusk")
    page.get_by_role("button", name="Go on to the price").click()
    page.get_by_role("button", name="Spend 4 credits").click()
    expect(page.get_by_text("The generation was submitted.")).to_be_visible()
    picture = page.get_by_role("img", name="Result 1 of 1")
    expect(picture).to_be_visible()  # Nobody loads the page again.
    page.wait_for_function("document.querySelector('.media img').naturalWidth > 0")
    assert page.locator(".axis circle").count() > 4
    expect(page.get_by_role("cell", name="A callback was received")).to_be_visible()


def _act_on_the_subscriber(page: Page) -> None:
    _menu(page, "Subscribers")
    page.get_by_role("link", name="Takes").click()
    page.get_by_role("button", name="Send a test").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("The receiver took the test")
    page.get_by_role("link", name="Back to the subscriber").click()
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_text("The subscriber is paused")).to_be_visible()


def _replay_the_dead_letters(page: Page) -> None:
    _menu(page, "Dead letters")
    expect(page.get_by_role("cell", name="The receiver answered 503.").nth(1)).to_be_visible()
    page.get_by_label("Subscriber").select_option(
        page.get_by_role("option", name="Refuses").get_attribute("value")
    )
    page.get_by_role("button", name="Count the events").click()
    page.get_by_role("button", name="Replay 2 events").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("done")
    expect(page.get_by_text("2 of 2 events")).to_be_visible()
    page.get_by_role("link", name="Deliveries to the subscriber").click()
    expect(page.get_by_text("delivered", exact=True).nth(1)).to_be_visible()


@pytest.fixture
def seeded(tmp_path: Path) -> dict[str, str]:
    async def fill() -> dict[str, str]:
        async with opened(tmp_path, secret_keys=(SEED_SECRET,), **SETTINGS) as world:
            return await seed(world)

    return asyncio.run(fill())


def show_picture(route: Route) -> None:
    route.fulfill(body=PICTURE, content_type="image/svg+xml")


def test_axe_finds_no_serious_fault_on_any_page_in_either_scheme_and_on_a_phone(
    tmp_path: Path, seeded: dict[str, str], browser: Browser
) -> None:
    faults: list[str] = []
    with started(tmp_path, "serve", "--port", "0", **environ_of(tmp_path)) as running:
        watched = Watched(browser)
        page = watched.page
        page.context.route("https://cdn.example/**", show_picture)
        page.goto(f"{running.url}/dashboard/sign-in")
        faults += faults_of(page)
        watched.sign_in(running.url, SEED_KEY)
        for each in PAGES:
            page.goto(f"{running.url}/dashboard{path_of(each, seeded)}")
            expect(page.locator("[hx-trigger^=load]")).to_have_count(0)  # Its parts are there.
            faults += faults_of(page)
        for path in filtered():
            page.goto(f"{running.url}/dashboard{path}")
            faults += faults_of(page, SIZES[:1] + SIZES[-1:])
        for path, fields in answering(seeded):
            post(page, f"{running.url}/dashboard{path}", fields)
            faults += faults_of(page)
        page.goto(f"{running.url}/dashboard/subscribers/{seeded['sub']}/edit")
        page.get_by_label("In flight at most").fill("many")
        page.get_by_role("button", name="Save the changes").click()
        expect(page.get_by_role("alert")).to_be_visible()
        faults += faults_of(page)
        refused = re.compile(r"status of (409|422)")
        watched.complaints = [each for each in watched.complaints if not refused.search(each)]
        assert watched.complaints == []
        page.goto(f"{running.url}/dashboard/nothing")
        faults += faults_of(page)
        running.end()
    assert not faults, "\n".join(faults)


def environ_of(folder: Path) -> dict[str, str]:
    """The settings of a service on what `seeded` has stored."""
    return {
        "GENHOOK_DATABASE_URL": f"sqlite:///{folder}/genhook.db",
        "GENHOOK_SECRET_KEYS": SEED_SECRET,
        "GENHOOK_ADMIN_KEY": SEED_KEY,
        "GENHOOK_WORKER": "off",
    }


def test_no_table_scrolls_sideways_in_a_window_of_1280_px(
    tmp_path: Path, seeded: dict[str, str], browser: Browser
) -> None:
    scrolling: dict[str, list[str]] = {}
    with started(tmp_path, "serve", "--port", "0", **environ_of(tmp_path)) as running:
        watched = Watched(browser, viewport={"width": 1_265, "height": 800})  # With a scroll bar.
        watched.sign_in(running.url, SEED_KEY)
        for each in PAGES:
            watched.page.goto(f"{running.url}/dashboard{path_of(each, seeded)}")
            expect(watched.page.locator("[hx-trigger^=load]")).to_have_count(0)
            if found := watched.page.evaluate(SCROLLING):
                scrolling[each.path] = found
        running.end()
    assert not scrolling


def filtered() -> Iterator[str]:
    """The lists, by each of the states that their rows can have."""
    for path, statuses in (("generations", (*OPEN, *TERMINAL)), ("deliveries", STATUSES)):
        yield from (f"/{path}?status={status}" for status in statuses)
    yield from (f"/callbacks?verdict={verdict}" for verdict in VERDICTS)


def answering(ids: dict[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The acts whose answer is a page of its own, one that is refused, and the price of a trial."""
    for act in ACTS:
        if act.result:
            yield act.path.replace("{id}", ids["sub"]), dict(act.example)
    yield f"/generations/{ids['gen']}/cancel", {}
    yield "/subscribers/create", {"url": "nothing"}
    yield "/models/try", {"model": "imagen4-fast", "input.prompt": "a harbour"}
    yield "/models/try", {"model": "imagen4-fast", "input.prompt": ""}


def post(page: Page, url: str, fields: dict[str, str]) -> None:
    """Send a form with these fields, as a person would who has filled it in."""
    script = """([url, fields]) => {
        const token = document.querySelector("[name=token]").value
        const form = Object.assign(document.createElement("form"), {method: "post", action: url})
        for (const [name, value] of Object.entries({...fields, token})) {
            form.append(Object.assign(document.createElement("input"), {name, value}))
        }
        document.body.append(form)
        form.submit()
    }"""
    with page.expect_navigation():
        page.evaluate(script, [url, fields])


def faults_of(page: Page, sizes: list[tuple[int, str]] = SIZES) -> Iterator[str]:
    """What axe-core calls serious, and pages that are wider than the screen."""
    for width, scheme in SIZES if SCREENSHOTS else ():
        _show(page, width, scheme)
        page.screenshot(
            path=f"{SCREENSHOTS}/{_word(page.url)}-{width}-{scheme}.png", full_page=True
        )
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    page.evaluate(AXE)
    for width, scheme in sizes:
        _show(page, width, scheme)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        for violation in found["violations"]:
            if violation["impact"] in SERIOUS:
                nodes = [node["html"][:160] for node in violation["nodes"][:3]]
                yield f"{page.url} {width} {scheme} {violation['id']}: {json.dumps(nodes)}"
        if (excess := page.evaluate(EXCESS)) > 0:
            yield f"{page.url} is {excess} px wider than {width} px"


def test_a_phone_shows_the_timeline_without_scrolling_and_cuts_long_names(
    tmp_path: Path, browser: Browser
) -> None:
    line = ("serve", "--dev", "--sandbox", "--port", "0")
    with started(tmp_path, *line, **KEYS) as running:
        with running.client() as client:
            client.timeout = httpx.Timeout(70)
            id_ = subscribe(client, "http://127.0.0.1:9/" + "u" * 2_000, description="n" * 500)
            body = {"model": "imagen4-fast", "input": {"prompt": "A lighthouse at dusk"}}
            made = client.post("/v1/generations", json=body).json()["id"]
            ended = client.get(f"/v1/generations/{made}", params={"wait": 60}).json()
            assert ended["status"] == "succeeded"
        watched = Watched(browser, viewport={"width": 360, "height": 800})
        page = watched.page
        watched.sign_in(running.url, ADMIN_KEY)
        page.goto(f"{running.url}/dashboard/generations/{made}")
        timeline = page.get_by_role("region", name="Timeline")
        assert timeline.evaluate("each => each.scrollWidth - each.clientWidth") == 0
        expect(timeline.get_by_role("cell", name="The request was stored.")).to_be_visible()
        # A mark at an end is whole.
        axis = page.locator(".axis svg").first
        assert axis.evaluate("each => getComputedStyle(each).overflow") == "visible"
        page.goto(f"{running.url}/dashboard/subscribers")
        row = page.get_by_role("row").nth(1).bounding_box()
        assert row
        assert row["height"] < 200
        page.goto(f"{running.url}/dashboard/subscribers/{id_}")
        heading = page.get_by_role("heading", level=1).bounding_box()
        assert heading
        assert heading["height"] < 160
        page.goto(f"{running.url}/dashboard/keys")
        page.get_by_text("New key").click()
        page.get_by_label("Name").fill("k" * 100)
        page.get_by_role("button", name="Create the key").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("The key is created")
        assert page.evaluate(EXCESS) == 0
        running.end()


def _show(page: Page, width: int, scheme: Any) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)


def _word(url: str) -> str:
    """A page's path as the name of a file: an id becomes the noun's word."""
    path = url.partition("/dashboard")[2].strip("/") or "overview"
    return re.sub(r"\W+", "-", re.sub(r"\b[a-z]+_[0-9a-f]{32}", "one", path))
