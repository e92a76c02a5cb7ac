"""Which files of a generation a page embeds, and from which hosts."""

import re

import pytest

from service.dashboard.media import HOSTS_MAX, Medium, read_files
from tests.dashboard.browser import Browser, policy_of
from tests.harness import Harness

NOW = 1_795_000_000_000


def read(**file: str) -> Medium:
    [medium] = read_files({"output": {"files": [file]}}, NOW)
    return medium


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://CDN.example/a.png", "https://cdn.example"),
        ("http://cdn.example:8080/a.png?x=1", "http://cdn.example:8080"),
    ],
)
def test_a_picture_is_shown_from_its_host(url: str, origin: str) -> None:
    medium = read(url=url, media_type="image/png")
    assert (medium.kind, medium.url, medium.origin) == ("image", url, origin)
    assert medium.can_be_embedded


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "data:text/html,<script>",
        "ftp://cdn.example/a.png",
        "https://user@cdn.example/a.png",
        "https://cdn.example\\@evil.example/a.png",
        "https://*/a.png",
        "https://cdn.example;script-src/a.png",
        "https://cdn.example 'unsafe-inline'/a.png",
        "https://cdn.example:99999/a.png",
        "https://[::1/a.png",
        "https:///a.png",
        "gs://bucket/a.png",
        "",
    ],
)
def test_an_odd_url_is_neither_linked_nor_in_the_policy(url: str) -> None:
    medium = read(url=url, media_type="image/png")
    assert (medium.url, medium.origin) == ("", "")
    assert not medium.can_be_embedded


def test_a_file_without_a_media_type_is_known_by_its_name() -> None:
    assert read(url="https://cdn.example/a.mp4?sig=1").kind == "video"
    assert read(url="https://cdn.example/a.wav").kind == "audio"
    assert read(url="https://cdn.example/a.svgz.exe").kind == "file"
    assert read(url="https://cdn.example/a", media_type="text/html").kind == "file"


def test_a_file_that_has_expired_or_is_only_linked_opens_no_host() -> None:
    url = "https://cdn.example/a.png"
    assert read(url=url, expires_at="2026-11-18T00:00:00.000Z").is_expired
    assert not read(url=url, expires_at="2126-11-18T00:00:00.000Z").is_expired
    assert not read(url=url, expires_at="2026-11-18T00:00:00.000Z").can_be_embedded
    assert not read(url="https://cdn.example/a.zip").can_be_embedded


async def test_a_page_embeds_files_of_only_so_many_hosts_and_links_the_others(
    world: Harness, browser: Browser
) -> None:
    generation = await world.generate()
    urls = [f"https://h{n}.example/a.png" for n in range(HOSTS_MAX + 5)]
    world.upstream.tasks["task1"] = {"status": "completed", "output": {"image_urls": urls}}
    await world.run(60)
    page = await browser.get(f"/generations/{generation['id']}")
    assert len(policy_of(page)["img-src"].split()) == 1 + HOSTS_MAX  # `'self'`, too.
    assert page.text.count("<img") == HOSTS_MAX
    assert set(urls) <= set(re.findall(r'href="([^"]+)"', page.text))


def test_a_generation_without_files_has_none() -> None:
    assert read_files({"output": None}, NOW) == []
    assert read_files({}, NOW) == []
