"""Fixtures that every test may use."""

import pytest

from service import ids


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _own_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids never go back in time, and every test has a time of its own."""
    monkeypatch.setattr(ids, "_state", {"ms": 0, "counter": 0})
