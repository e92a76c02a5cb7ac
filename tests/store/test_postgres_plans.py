"""Query plans on PostgreSQL: due work comes from its partial index, and nothing reads a table."""

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from service.store.postgres import Database
from service.store.postgres.connection import TRANSACTION_SETTINGS
from service.store.postgres.statements import statements
from tests import engine, servers
from tests.store.test_plans import DUE_WORK

# A plan depends on what ANALYZE saw: of empty tables, PostgreSQL takes any index.
ROWS = """
INSERT INTO events (id, seq, tenant, type, generation_id, body)
    SELECT 'evt_' || n, n, 't' || n % 3, 'generation.succeeded', 'gen_' || n, ''
    FROM generate_series(1, 5000) n;
INSERT INTO deliveries (tenant, id, subscriber_id, event_id, event_type, due_at, status)
    SELECT 't' || n % 3, 'dlv_' || n, 'sub_' || n % 7, 'evt_' || n, 'generation.succeeded', n,
        CASE WHEN n % 2 = 0 THEN 'pending' ELSE 'delivered' END
    FROM generate_series(1, 5000) n;
ANALYZE events, deliveries;
"""


@pytest.fixture(scope="module")
def oldest() -> Iterator[servers.Server]:
    """The oldest server that is supported: its planner knows fewer ways."""
    with servers.debians() as server:
        yield server


@pytest.fixture(params=["newest", "oldest"])
def url(request: pytest.FixtureRequest, postgres: engine.Schemas, tmp_path: Path) -> str:
    """The URL of a schema without tables."""
    if request.param == "newest":
        return postgres.database_of(tmp_path)
    server: servers.Server = request.getfixturevalue("oldest")
    return server.new_schema(tmp_path.name.lower())


@pytest.fixture
async def connection(url: str) -> AsyncIterator[Any]:
    """A connection with the settings of the service, to a schema whose sizes are known."""
    database = Database(url)
    await database.open()
    await database.migrate()
    await database.close()
    connected = await asyncpg.connect(database.url, server_settings=TRANSACTION_SETTINGS)
    await connected.execute(ROWS)
    yield connected
    await connected.close()


async def explain(connection: Any, name: str) -> str:
    """Return the plan of a named statement for any values, with its locks if it has any."""
    statement = statements()[name]
    sql = statement.sql + (f" FOR UPDATE OF {tables}" if (tables := statement.lock.tables) else "")
    await connection.execute(f"SET plan_cache_mode = force_generic_plan; PREPARE it AS {sql}")
    count = len(set(re.findall(r"\$\d+", sql)))
    values = f"({', '.join(['NULL'] * count)})" if count else ""
    rows = await connection.fetch(f"EXPLAIN (COSTS OFF) EXECUTE it{values}")
    await connection.execute("DEALLOCATE it")
    return "\n".join(row[0] for row in rows)


async def test_due_work_comes_from_its_partial_index(connection: Any) -> None:
    plans = {name: await explain(connection, name) for name in DUE_WORK}
    found = {
        name: index for name, index in DUE_WORK.items() if re.search(rf" {index}\b", plans[name])
    }
    assert found == DUE_WORK


async def test_pending_deliveries_are_read_in_the_order_of_their_due_times(connection: Any) -> None:
    for name in ("deliveries_due", "deliveries_due_ordered", "deliveries_asked", "stats_oldest"):
        assert "Sort" not in await explain(connection, name)
    times = await explain(connection, "deliveries_next_due_times")
    assert "Filter: (attempt_count" not in times


@pytest.mark.parametrize(
    "name",
    ["deliveries_due_ordered", "deliveries_delay_later", "delivery_make_due", "replay_matches"],
)
async def test_deliveries_of_an_event_are_read_by_event(connection: Any, name: str) -> None:
    plan = await explain(connection, name)
    assert "using deliveries_event " in plan, plan
    assert "deliveries_subscriber" not in plan, plan


async def test_no_statement_reads_a_whole_table(connection: Any) -> None:
    plans = {name: await explain(connection, name) for name in statements()}
    scans = {name: re.findall(r"Seq Scan on (\w+)", plan) for name, plan in plans.items()}
    # Confirmations are deleted within seconds.
    few = {"confirmation_next": ["confirmations"], "stats_due": ["confirmations"]}
    assert {name: tables for name, tables in scans.items() if tables} == few
    assert len(plans) > 50


async def test_no_statement_reads_a_whole_table_to_look_for_a_few_rows(connection: Any) -> None:
    for name in statements():
        plan = await explain(connection, name)
        for number in re.findall(r"hashed SubPlan (\d+)", plan):
            _, _, node = plan.partition(f"SubPlan {number}\n")
            assert "Function Scan" in node.partition("\n")[0], plan


async def test_a_callback_reads_the_bodies_of_its_generation_only(connection: Any) -> None:
    """While there are few bodies, PostgreSQL might read all of them."""
    await connection.execute("""
        INSERT INTO callback_bodies SELECT 'gen_' || n, 'd', 'cb_' || n, '', ''
            FROM generate_series(1, 100) n;
        ANALYZE callback_bodies""")
    plan = await explain(connection, "callbacks_kept")
    assert "using callback_bodies_pkey" in plan, plan
    assert re.search(r"Index Cond: \(\(generation_id = ", plan), plan


async def test_a_scan_is_detected(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    good = statements()["generations_to_expire"]
    worse = good._replace(sql=good.sql.replace("g.deadline_at", "(g.deadline_at + 0)"))
    changed = {**statements(), "generations_to_expire": worse}
    monkeypatch.setattr("tests.store.test_postgres_plans.statements", lambda: changed)
    plan = await explain(connection, "generations_to_expire")
    assert "Sort" in plan
