"""Make the pictures of the pages in docs/images: `python -m tests.dashboard.pictures`.

They show a real service with the sandbox. It needs Chromium.
"""

import http.server
import tempfile
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Page

from tests import chromium
from tests.cli.test_serve import ADMIN_KEY, KEYS, served, started

FOLDER = Path(__file__).parents[2] / "docs" / "images"
WIDTH = 1_000
COLOURS = 256
PROMPTS = (
    *("A lighthouse at dusk", "A night train in snow", "A fox in the rain", "Terraces of rice"),
    *("A harbour at night", "A market at dawn [sandbox: fail]", "A paper boat on a river"),
    *("A greenhouse in winter", "Wind turbines at sea"),
)
MODELS = ("imagen4-fast", "imagen4", "flux-2")


class Receiver(http.server.BaseHTTPRequestHandler):
    """Takes everything but what comes to /archive."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(503 if self.path == "/archive" else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def fill(client: httpx.Client, receiver: str) -> str:
    """Create two subscribers and generations that end; return the id of the first."""
    for path, name in (("/shop", "Web shop"), ("/archive", "Archive")):
        subscriber = {"url": f"{receiver}{path}", "description": name}
        client.post("/v1/subscribers", json=subscriber).raise_for_status()
    ids = []
    for index, prompt in enumerate(PROMPTS):
        body = {"model": MODELS[index % len(MODELS)], "input": {"prompt": prompt}}
        ids.append(str(client.post("/v1/generations", json=body).raise_for_status().json()["id"]))
    for id_ in ids:
        client.get(f"/v1/generations/{id_}", params={"wait": 30}).raise_for_status()
    return ids[0]


def take(page: Page, url: str, name: str, height: int) -> None:
    """Save a picture of a page, in few colours, once all that it asks for is there."""
    page.set_viewport_size({"width": WIDTH, "height": height})
    page.goto(url)
    page.wait_for_load_state("networkidle")
    path = FOLDER / f"{name}.png"
    page.screenshot(path=path)
    image = Image.open(path).convert("RGB")
    # A method that keeps the colour of a single mark.
    image.quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


def main() -> None:
    """Make the three pictures."""
    line = ("serve", "--dev", "--sandbox", "--port", "0")
    with (
        tempfile.TemporaryDirectory() as folder,
        served(Receiver) as receiver,
        started(Path(folder), *line, **KEYS) as running,
        chromium.browsed() as tab,
    ):
        with running.client() as client:
            first = fill(client, receiver)
        page, root = tab.page, f"{running.url}/dashboard"
        page.goto(root)
        page.get_by_label("API key").fill(ADMIN_KEY)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_load_state()
        take(page, root, "overview", 860)
        take(page, f"{root}/generations", "generations", 820)
        take(page, f"{root}/generations/{first}", "generation", 960)
        running.end()


if __name__ == "__main__":
    main()
