"""Links of results die: each file says when, if upstream or the link itself does."""

from pathlib import Path

import pytest

from tests.harness import opened

pytestmark = pytest.mark.sqlite_only("what an answer means is the same on both")


@pytest.mark.parametrize(
    ("more", "expires_at"),
    [
        ({}, "2026-11-18T11:06:40.000Z"),
        ({"expires_at": "2026-12-01T00:00:00Z"}, "2026-12-01T00:00:00.000Z"),
    ],
)
async def test_a_file_says_when_its_link_dies_by_upstreams_word_or_by_its_signature(
    tmp_path: Path, more: dict[str, str], expires_at: str
) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        url = "https://cdn.example/1.png?Expires=1795000000&Signature=s"
        world.upstream.tasks["task1"] = {"status": "completed", "output": {"url": url, **more}}
        await world.run(61)
        [file] = (await world.get(f"/v1/generations/{generation['id']}"))["output"]["files"]
        assert file["expires_at"] == expires_at
