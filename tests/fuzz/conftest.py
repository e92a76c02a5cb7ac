"""Ends the worlds that fuzzing opened."""

from collections.abc import Iterator

import pytest

from tests.fuzz import world


@pytest.fixture(autouse=True)
def worlds() -> Iterator[None]:
    """Worlds of its own for each test, however many examples that has."""
    yield
    world.close()
