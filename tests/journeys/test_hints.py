"""A hint of a callback is given up only where upstream keeps saying that there is no such task."""

from pathlib import Path

import httpx
import pytest

from service.store import generations
from tests.faults import rows
from tests.harness import opened


async def test_a_hint_is_given_up_after_more_polls_than_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generations, "EXCHANGES_MAX", 2)
    async with opened(tmp_path) as world:
        await world.generate()
        world.upstream.poll_replies.extend([httpx.Response(404)] * 50)
        await world.call_back()
        for _ in range(60):
            await world.run(30)
        assert await rows(world, "SELECT * FROM confirmations") == []


async def test_a_404_after_other_trouble_gives_up_no_hint(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate()
        world.upstream.poll_replies.extend([httpx.Response(503)] * 5 + [httpx.Response(404)])
        await world.call_back()
        while world.upstream.poll_replies:
            await world.run(10)
        assert len(await rows(world, "SELECT * FROM confirmations")) == 1
