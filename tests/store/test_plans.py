"""Query plans: due work comes from its partial index, and nothing reads a whole table."""

import sqlite3
from collections import defaultdict
from collections.abc import Callable

import pytest

from service.store.sqlite.statements import statements

Explain = Callable[[str], list[str]]

# Statements that the worker repeats, and the index that must answer each.
DUE_WORK = {
    "generations_to_submit": "generations_submit",
    "generation_next_submit": "generations_submit",
    "generations_to_poll": "generations_poll",
    "generation_next_poll": "generations_poll",
    "generations_to_expire": "generations_deadline",
    "generation_next_deadline": "generations_deadline",
    "deliveries_next_due_times": "deliveries_due",
    "deliveries_due": "deliveries_due",
    "deliveries_due_ordered": "deliveries_due",
    "deliveries_asked": "deliveries_asked",
    "delivery_next_due": "deliveries_due",
    "stats_counts": "deliveries_due",
    "replays_due": "replays_due",
    "replay_next_due": "replays_due",
    "replay_count_untried": "deliveries_replay",
    "replay_deliveries_cancel": "deliveries_replay",
    "callbacks_rejected_old": "callbacks_rejected",
}
# Statements that sort what they chose by an index: so many rows of each tenant.
SORTED = ("generations_to_poll", "generations_to_submit")
# Parts of allowed scans: these tables stay small, or the scan ends after a few rows.
SMALL_SCANS = (
    "VIRTUAL TABLE",  # json_each over a parameter.
    "SCAN CONSTANT ROW",  # Values without a table.
    "SCAN lane",  # The rows of the recursive query: one for each subscriber.
    "SCAN (subquery",  # The subquery has a limit.
    "SCAN few",  # So are those called that have a limit.
    "SCAN due",  # It has a limit.
    "SCAN q",  # Confirmations are deleted within seconds.
    "SCAN tenants",  # There are few tenants.
    "INDEX replays_running",  # A partial index: at most one running replay for a subscriber.
    "INDEX callbacks_rejected",  # A partial index that retention keeps small.
)


@pytest.fixture
def explain(connection: sqlite3.Connection) -> Explain:
    """A function that returns SQLite's plan of a named statement."""

    def plan(name: str) -> list[str]:
        sql, bind, _ = statements()[name]
        values = bind(defaultdict(lambda: "[]"))
        return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)]

    return plan


@pytest.mark.parametrize("name", DUE_WORK)
def test_due_work_comes_from_its_partial_index(explain: Explain, name: str) -> None:
    plan = explain(name)
    assert any(f"INDEX {DUE_WORK[name]}" in step for step in plan), plan
    assert name in SORTED or not [step for step in plan if "TEMP B-TREE" in step], plan


@pytest.mark.parametrize(
    "name",
    ["deliveries_due_ordered", "deliveries_delay_later", "delivery_make_due", "replay_matches"],
)
def test_deliveries_of_an_event_are_read_by_event_and_not_by_subscriber(
    explain: Explain, name: str
) -> None:
    plan = explain(name)
    assert any("INDEX deliveries_event (event_id=?)" in step for step in plan), plan
    assert not [step for step in plan if "deliveries_subscriber" in step], plan


@pytest.mark.parametrize("name", ["deliveries_cancel", "stats_oldest", "stats_counts"])
def test_pending_deliveries_of_a_subscriber_are_read_without_the_ended_ones(
    explain: Explain, name: str
) -> None:
    plan = explain(name)
    assert any("INDEX deliveries_due (subscriber_id=?" in step for step in plan), plan
    assert not [step for step in plan if "TEMP B-TREE" in step], plan


def test_the_indexes_of_due_work_are_partial(connection: sqlite3.Connection) -> None:
    indexes = dict(connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'index'"))
    for name in set(DUE_WORK.values()):
        assert " WHERE " in indexes[name].replace("\n", " ")


def test_no_statement_reads_a_whole_table(explain: Explain) -> None:
    scans = [
        (name, step)
        for name in statements()
        for step in explain(name)
        if step.startswith("SCAN") and not any(part in step for part in SMALL_SCANS)
    ]
    assert scans == []
    assert len(statements()) > 50


def test_a_scan_is_detected(explain: Explain, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = dict(statements())
    good = changed["generations_to_expire"]
    changed["worse"] = good._replace(sql=good.sql.replace("g.deadline_at", "+g.deadline_at"))
    monkeypatch.setattr("tests.store.test_plans.statements", lambda: changed)
    plan = explain("worse")
    assert any(step.startswith("SCAN") for step in plan)
    assert any("TEMP B-TREE" in step for step in plan)


def test_deliveries_are_counted_without_a_look_at_their_rows(explain: Explain) -> None:
    searches = [step for step in explain("stats_counts") if step.startswith("SEARCH")]
    assert len(searches) == 3
    assert all("USING COVERING INDEX deliveries_" in step for step in searches), searches
