"""A page in Chromium, driven by playwright; a test that needs it is skipped where there is none."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")  # Debian's, and others.


def find_browser() -> str:
    """Return the path of the browser, or skip the test. `.ci/run` installs it."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None and "CI" not in os.environ:  # noqa: TID251  set by the pipeline
        pytest.skip("there is no chromium: apt-get install chromium")
    assert path is not None, "the pipeline has no chromium"
    return path


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
def browsed(width: int = 1280, height: int = 900) -> Iterator[Tab]:
    """Open a page in a new browser."""
    with sync_playwright() as playwright:
        # The sandbox of Chromium needs rights that root in a container has not.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=find_browser(), args=arguments)
        yield Tab(browser.new_page(viewport={"width": width, "height": height}))
        browser.close()
