"""Due work in turn by tenant: who is asked first, and how few tenants are looked at for that."""

import json
import sqlite3
from typing import Any

import pytest

from service.store.sqlite.statements import statements

NOW = 1_000_000
LISTS = {"tenants": "[]", "without": "[]", "apart": "[]", "full": "[]"}
INSERT = """INSERT INTO generations (id, tenant, model, status, route, deadline_at, nonce,
    submission, submit_at, next_poll_at)
    VALUES (?, ?, 'm', 'queued', 'poll', ?, 'n', 'waiting', ?, ?)"""


def store(connection: sqlite3.Connection, tenant: str, count: int, due_at: int = NOW) -> None:
    connection.executemany(
        INSERT,
        [
            (f"{tenant}-{number}", tenant, NOW + 10, due_at + number, due_at + number)
            for number in range(-count, 0)
        ],
    )


def find(connection: sqlite3.Connection, name: str, **values: Any) -> list[str]:
    sql, bind, _ = statements()[name]
    defaults = {**LISTS, "now": NOW, "searched": 1_000, "limit": 64, "after": ""}
    return [row[0] for row in connection.execute(sql, bind({**defaults, **values})).fetchall()]


def steps_of(connection: sqlite3.Connection, name: str, **values: Any) -> int:
    """Return how many hundreds of instructions a statement takes."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    connection.set_progress_handler(count, 100)
    find(connection, name, **values)
    connection.set_progress_handler(None, 0)
    return steps


BOTH = pytest.mark.parametrize("name", ["generations_to_poll", "generations_to_submit"])


@BOTH
def test_each_tenant_has_a_first_turn_before_any_has_a_second(
    connection: sqlite3.Connection, name: str
) -> None:
    for tenant, count in (("a", 5), ("b", 1), ("c", 2)):
        store(connection, tenant, count)
    order = ["a--5", "b--1", "c--2", "a--4", "c--1", "a--3", "a--2", "a--1"]
    assert find(connection, name) == order
    assert find(connection, name, limit=4) == order[:4]


@BOTH
@pytest.mark.parametrize(
    ("after", "order"), [("", "abc"), ("a", "bca"), ("b", "cab"), ("bb", "cab"), ("c", "abc")]
)
def test_the_turns_begin_after_the_tenant_that_was_served_last(
    connection: sqlite3.Connection, name: str, after: str, order: str
) -> None:
    for tenant in "abc":
        store(connection, tenant, 1)
    assert find(connection, name, after=after) == [f"{tenant}--1" for tenant in order]
    assert find(connection, name, after=after, limit=2) == [f"{t}--1" for t in order[:2]]


@BOTH
def test_who_has_nothing_eligible_takes_no_turn(connection: sqlite3.Connection, name: str) -> None:
    store(connection, "a", 2)
    store(connection, "b", 2, NOW + 1_000)
    store(connection, "c", 2)
    store(connection, "d", 1)
    values = {"tenants": json.dumps(["a"]), "without": json.dumps(["c--2"])}
    assert find(connection, name, limit=2, **values) == ["c--1", "d--1"]


@BOTH
def test_no_more_tenants_are_looked_at_than_have_a_turn(
    connection: sqlite3.Connection, name: str
) -> None:
    for number in range(30):
        store(connection, f"t{number:03}", 20)
    few = steps_of(connection, name, limit=10)
    for number in range(30, 300):
        store(connection, f"t{number:03}", 20)
    assert steps_of(connection, name, limit=10) <= few + few // 10
    assert find(connection, name, limit=3, after="t298") == ["t299--20", "t000--20", "t001--20"]
