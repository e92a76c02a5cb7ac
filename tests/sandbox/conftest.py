"""The fixture of the sandbox's tests."""

from collections.abc import AsyncIterator

import pytest

from tests.sandbox.harness import SandboxHarness, running_sandbox


@pytest.fixture
async def harness() -> AsyncIterator[SandboxHarness]:
    async with running_sandbox() as harness:
        yield harness
