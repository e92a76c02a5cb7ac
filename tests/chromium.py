"""Chromium, driven by playwright. A test that needs it is skipped without it, except in CI."""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from tests import programs

NAMES = ("chromium", "chromium-browser", "google-chrome")  # Debian's, and others.


@contextmanager
def launched() -> Iterator[Browser]:
    """Run a browser."""
    path = programs.find(*NAMES)
    with sync_playwright() as playwright:
        # Its sandbox needs rights that root in a container has not.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


class Tab:
    """A page; what its console complains of, and all that it asks for, as kind and URL."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[tuple[str, str]] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda one: self.requests.append((one.resource_type, one.url)))

    @property
    def hosts(self) -> dict[str, set[str]]:
        """By host and port, the kinds of what the page asked for there."""
        kinds: dict[str, set[str]] = {}
        for kind, url in self.requests:
            kinds.setdefault(urlsplit(url).netloc, set()).add(kind)
        return kinds

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{self.page.url}: {message.text}")


@contextmanager
def browsed() -> Iterator[Tab]:
    """Open a page in a new browser."""
    with launched() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(90_000)
        yield Tab(page)
