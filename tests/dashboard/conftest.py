"""Fixtures of the pages' tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.dashboard.browser import Browser
from tests.harness import Harness, opened


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Harness]:
    async with opened(tmp_path) as harness:
        yield harness


@pytest.fixture
async def browser(world: Harness) -> AsyncIterator[Browser]:
    """A browser that is signed in with the admin key."""
    one = Browser(world)
    answer = await one.sign_in()
    assert answer.status_code == 303, answer.text
    yield one
    await one.client.aclose()
