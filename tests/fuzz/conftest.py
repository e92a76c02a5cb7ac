"""Closes the worlds that a fuzz test opened."""

from collections.abc import Iterator

import pytest

from tests.fuzz import world


@pytest.fixture(autouse=True)
def worlds() -> Iterator[None]:
    """Give each test worlds of its own, which all its examples share."""
    yield
    world.close()
