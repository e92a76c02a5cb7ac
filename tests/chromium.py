"""Chromium, driven by playwright. A test that needs it is skipped where there is none."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")  # Debian's, and others.
PATH = next(filter(None, map(shutil.which, NAMES)), None)
needed = pytest.mark.skipif(PATH is None, reason="there is no Chromium: apt-get install chromium")


@contextmanager
def launched() -> Iterator[Browser]:
    """Run a browser."""
    with sync_playwright() as playwright:
        # Its sandbox needs rights that root in a container has not.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=PATH, args=arguments)
        yield browser
        browser.close()


class Tab:
    """A page; what its console complains of, and the URLs of all that it asks for."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def _hear(self, message: object) -> None:
        if getattr(message, "type", "") in ("error", "warning"):
            self.complaints.append(getattr(message, "text", ""))


@contextmanager
def browsed() -> Iterator[Tab]:
    """Open a page in a new browser."""
    with launched() as browser:
        yield Tab(browser.new_page(viewport={"width": 1280, "height": 900}))
