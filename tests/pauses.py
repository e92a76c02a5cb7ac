"""A plugin of pytest: random pauses at the database and at subscribers, and rows in random order.

Tests, and code, that rely on who comes first fail with it. The seed that pytest prints repeats the
pauses of each test, too.
"""

import asyncio
import random  # noqa: TID251  it has a seed
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

import pytest

from service.store.database import Row
from service.store.postgres.connection import Pool
from service.store.postgres.transaction import Transaction
from service.store.sqlite.connection import Connection
from tests import engine
from tests.harness import Subscribers

P = ParamSpec("P")
T = TypeVar("T")
TURNS_MAX = 8  # Of the event loop.
PAUSE_SECONDS_MAX = 0.003
_random = random.Random()  # Not the module's own, which Hypothesis must be able to repeat.


async def pause() -> None:
    """Let others come first: half of the times for some turns of the loop, else for some time."""
    chance = _random.random()
    if chance < 0.5:
        for _ in range(round(2 * chance * TURNS_MAX)):
            await asyncio.sleep(0)  # noqa: TID251  it waits for no time
    elif chance < 0.7:
        await asyncio.sleep((chance - 0.5) * 5 * PAUSE_SECONDS_MAX)  # noqa: TID251  it is the point


def with_pauses(call: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Return the function with a pause before it begins, and one before its result is known."""

    async def paused(*args: P.args, **kwargs: P.kwargs) -> T:
        await pause()
        try:
            return await call(*args, **kwargs)
        finally:
            await pause()

    return paused


def shuffle_unordered_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shuffle the rows of every statement that gives them no order."""
    fetch = Transaction.all

    async def fetch_shuffled(tx: Transaction, name: str, /, **values: object) -> list[Row]:
        rows = list(await fetch(tx, name, **values))
        if not engine.is_ordered(name):
            _random.shuffle(rows)
        return rows

    monkeypatch.setattr(Transaction, "all", fetch_shuffled)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin the pauses of a test anew."""
    _random.seed(f"{item.config.getoption('randomly_seed')} {item.nodeid}")


def pytest_configure() -> None:
    """Replace what the tests use with its slower form, in each process of pytest."""
    for owner, name in ((Subscribers, "send"), (Connection, "apply"), (Pool, "_begin")):
        setattr(owner, name, with_pauses(getattr(owner, name)))
    engine.reverse_unordered_rows = shuffle_unordered_rows
