"""The fixture of the sandbox's tests."""

from collections.abc import AsyncIterator

import pytest

from tests.sandbox.bench import Bench, opened


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with opened() as bench:
        yield bench
