"""Query plans: due work comes from its partial index, and nothing reads a whole table."""

import re
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from service.store.sqlite.database import Database
from service.store.sqlite.statements import statements

Explain = Callable[[str], list[str]]

# What the worker asks again and again: the index that has to answer, and it alone.
DUE_WORK = {
    "generations_to_submit": "generations_submit",
    "generation_next_submit": "generations_submit",
    "generations_to_poll": "generations_poll",
    "generation_next_poll": "generations_poll",
    "generations_expired": "generations_deadline",
    "generation_next_deadline": "generations_deadline",
    "deliveries_lanes": "deliveries_due",
    "deliveries_due": "deliveries_due",
    "deliveries_due_ordered": "deliveries_due",
    "delivery_next_due": "deliveries_due",
    "stats_count_pending": "deliveries_due",
    "replays_due": "replays_due",
    "replay_next_due": "replays_due",
    "replay_ahead": "deliveries_replay",
    "replay_deliveries_cancel": "deliveries_replay",
    "callbacks_rejected_old": "callbacks_rejected",
}
# Scans that are none of a table that grows, or that stop after a few rows.
SMALL = (
    "VIRTUAL TABLE",  # json_each over what was given.
    "SCAN lane",  # A recursive query's own rows: one for each subscriber.
    "SCAN (subquery",  # Counted in a subquery that has a limit.
    "SCAN q",  # Confirmations: rows live for a second.
    "SCAN tenants",  # A handful.
    "INDEX replays_running",  # A partial index: at most one running replay for a subscriber.
    "INDEX callbacks_rejected",  # A partial index of bounded size.
)


@pytest.fixture
async def explain(tmp_path: Path) -> AsyncIterator[Explain]:
    """The plan of a named statement, as SQLite tells it, for a schema without rows."""
    path = str(tmp_path / "plans.db")
    database = Database(path)
    await database.open()
    await database.migrate()
    await database.close()
    connection = sqlite3.connect(path)

    def plan(name: str) -> list[str]:
        sql = statements()[name]
        values = dict.fromkeys(re.findall(r":(\w+)", sql), "[]")
        rows = connection.execute(f"EXPLAIN QUERY PLAN {sql}", values).fetchall()
        return [row[3] for row in rows]

    yield plan
    connection.close()


@pytest.mark.parametrize("name", DUE_WORK)
async def test_due_work_comes_from_its_partial_index(explain: Explain, name: str) -> None:
    plan = explain(name)
    assert any(f"INDEX {DUE_WORK[name]}" in step for step in plan), plan
    assert not [step for step in plan if "TEMP B-TREE" in step], plan


@pytest.mark.parametrize(
    "name", ["deliveries_due_ordered", "deliveries_hold", "delivery_unhold", "replay_matches"]
)
async def test_the_deliveries_of_an_event_are_found_by_it_and_not_among_all_of_a_subscriber(
    explain: Explain, name: str
) -> None:
    plan = explain(name)
    assert any("INDEX deliveries_event (event_id=?)" in step for step in plan), plan
    assert not [s for s in plan if "deliveries_subscriber" in s], plan


@pytest.mark.parametrize("name", ["deliveries_cancel", "stats_oldest", "stats_count_pending"])
async def test_pending_deliveries_of_a_subscriber_are_found_apart_from_what_has_ended(
    explain: Explain, name: str
) -> None:
    plan = explain(name)
    pending = re.compile(r"INDEX deliveries_due \(subscriber_id=\?")
    assert any(pending.search(step) for step in plan), plan
    assert not [step for step in plan if "TEMP B-TREE" in step], plan


async def test_the_indexes_of_due_work_hold_due_work_only(tmp_path: Path) -> None:
    database = Database(str(tmp_path / "plans.db"))
    await database.open()
    await database.migrate()
    found = await database.apply(
        lambda c: {
            row["name"]: row["sql"]
            for row in c.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'index'")
        }
    )
    await database.close()
    for name in set(DUE_WORK.values()):
        assert " WHERE " in found[name].replace("\n", " ")


async def test_no_statement_reads_a_whole_table(explain: Explain) -> None:
    names = [name for name in statements() if not name.endswith("_cursor")]
    scans = {
        name: [
            step
            for step in explain(name)
            if step.startswith("SCAN") and not any(word in step for word in SMALL)
        ]
        for name in names
    }
    assert {name: steps for name, steps in scans.items() if steps} == {}
    assert len(names) > 50


async def test_a_scan_would_be_noticed(explain: Explain, monkeypatch: pytest.MonkeyPatch) -> None:
    known = dict(statements())
    known["worse"] = known["generations_to_poll"].replace("g.next_poll_at", "+g.next_poll_at")
    monkeypatch.setattr("tests.store.test_plans.statements", lambda: known)
    plan = explain("worse")
    assert any(step.startswith("SCAN") for step in plan)
    assert any("TEMP B-TREE" in step for step in plan)
