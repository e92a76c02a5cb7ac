"""Query plans of lists: an index returns rows in order; filters check a bounded number of rows."""

import re
import sqlite3
from collections.abc import AsyncIterator, Collection
from itertools import combinations
from typing import Any

import pytest

from service.api.call import PAGING
from service.api.routes import OPERATIONS
from service.store import callbacks, deliveries, events, generations, pages, subscribers
from service.store.database import Row
from service.store.sqlite.group import Transaction
from service.store.sqlite.statements import DIALECT

FILTERS: dict[str, dict[str, Any]] = {
    "/v1/generations": {
        "status": "succeeded",
        "model": "imagen4",
        "created_after": 1_795_000_000_000,
        "created_before": 1_795_000_000_000,
        "metadata.": {"order": "7", "customer": "9"},
    },
    "/v1/callbacks": {"generation_id": "gen_1", "verdict": "late"},
    "/v1/deliveries": {
        "status": "dead",
        "subscriber_id": "sub_1",
        "event_id": "evt_1",
        "generation_id": "gen_1",
    },
    "/v1/events": {"type": "ping", "generation_id": "gen_1"},
    "/v1/subscribers": {},
    "/v1/replays": {},
    "/v1/keys": {},
}
LISTS = [
    (path, names)
    for path, filters in FILTERS.items()
    for size in range(len(filters) + 1)
    for names in combinations(filters, size)
]
PAGES = [
    pages.Page(after=after, ascending=ascending)
    for after in (None, "x_1")
    for ascending in (False, True)
]

# The steps that read the rows of the list search by one of these. All rows of a metadata value, a
# subscriber, an event or a generation belong to one tenant, which the list has checked.
RANGES = re.compile(
    r"SEARCH .*(tenant=\?|\(id=\?|subscriber_id=\?|event_id=\?|generation_id=\?"
    r"|name=\? AND value=\?)"
)
# An event or a generation has few rows in these, so they may be sorted.
FEW_ROWS = re.compile(r"deliveries_event|callback_bodies|[ce] USING")
# Steps that read at most one row for each row of the list.
ONE_ROW = re.compile(
    r"SCAN (json_each|e VIRTUAL)|SEARCH (g USING PRIMARY KEY \(id=\?\)"
    r"|o (EXISTS )?USING PRIMARY KEY \(tenant=\? AND name=\? AND value=\? AND generation_id=\?\)"
    r"|b USING|events USING (COVERING )?INDEX sqlite_autoindex_events_1)"
)


class ExplainingTransaction(Transaction):
    """Stores the SQL and the plan of every list, and returns no rows."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection, 0, [])
        self.plans: list[list[str]] = []
        self.statements: list[str] = []

    async def one(self, name: str, /, **_values: object) -> Row | None:
        assert name == "delivery_tenant"
        return {"tenant": "default"}

    async def select(self, sql: str, values: Any) -> list[Row]:
        return [row async for row in self.scan(sql, values)]

    async def scan(self, sql: str, values: Any) -> AsyncIterator[Row]:
        composed = DIALECT.compose(sql)
        rows = self._connection.execute(f"EXPLAIN QUERY PLAN {composed.sql}", composed.bind(values))
        self.plans.append([row[3] for row in rows])
        self.statements.append(sql)
        if "OFFSET" in sql:
            yield {"key": "x_9", "id": "x_9"}


async def explain(
    connection: sqlite3.Connection,
    path: str,
    names: Collection[str] = (),
    page: pages.Page = PAGES[0],
) -> ExplainingTransaction:
    """Read the list of a route with the filters of these names."""
    tx = ExplainingTransaction(connection)
    only = {name.rstrip("."): FILTERS[path][name] for name in names}
    match path.removeprefix("/v1/"):
        case "generations":
            await generations.list_page(tx, page, "default", generations.Filter(**only))
        case "callbacks":
            values = map(only.get, ("verdict", "generation_id"))
            await callbacks.list_page_with_unowned(tx, page, "default", *values)
        case "deliveries":
            await deliveries.list_page(tx, page, "default", deliveries.Filter(**only))
        case "events":
            await events.list_page(tx, page, "default", *map(only.get, ("type", "generation_id")))
        case table:
            is_subscribers = table == "subscribers"
            source = subscribers.LIST_SOURCE if is_subscribers else pages.Source(table=table)
            await pages.read(tx, source, page, {"tenant": "default"})
    return tx


def faults(plan: Collection[str], page: pages.Page) -> list[str]:
    """Return the steps of a plan that scan, search without a range, or sort many rows."""
    reads = [step for step in plan if re.match("SEARCH|SCAN", step) and not ONE_ROW.match(step)]
    faulty = [step for step in reads if not RANGES.match(step)]
    if not any(FEW_ROWS.search(step) for step in reads):
        faulty += [step for step in plan if "TEMP B-TREE" in step]
        if page.after is not None:
            faulty += [step for step in reads if not re.search(r"(id|rowid|seq)[<>]", step)]
    if any("LIST SUBQUERY" in step for step in plan):
        # The list names the few rows: a walk would look for each row of the tenant in it.
        faulty += [step for step in reads if re.search(r"\(tenant=\? AND (id|seq)[<>]", step)]
    return faulty if reads else ["no step reads the list"]


def test_every_filter_of_the_api_is_covered() -> None:
    filters = {
        operation.path: operation.query - PAGING - {"tenant"}  # An operator chooses whose rows.
        for operation in OPERATIONS
        if operation.method == "GET" and operation.query >= PAGING
    }
    assert filters == {path: set(values) for path, values in FILTERS.items()}


@pytest.mark.parametrize("page", PAGES, ids=str)
@pytest.mark.parametrize(("path", "names"), LISTS, ids=str)
async def test_an_index_returns_the_rows_of_a_list_in_order(
    connection: sqlite3.Connection, path: str, names: tuple[str, ...], page: pages.Page
) -> None:
    tx = await explain(connection, path, names, page)
    assert tx.plans
    for plan in tx.plans:
        assert faults(plan, page) == [], plan


@pytest.mark.parametrize(
    ("names", "is_bounded"),
    [
        ((), False),
        (("status",), True),
        (("model", "created_after"), False),
        (("model", "status"), True),
        (("metadata.",), True),
    ],
    ids=str,
)
async def test_filters_that_the_index_does_not_answer_check_a_bounded_number_of_rows(
    connection: sqlite3.Connection, names: tuple[str, ...], *, is_bounded: bool
) -> None:
    tx = await explain(connection, "/v1/generations", names)
    is_scan_bounded = "OFFSET" in tx.statements[0] and ":last" in tx.statements[-1]
    assert is_scan_bounded == is_bounded


@pytest.mark.parametrize("page", PAGES, ids=str)
@pytest.mark.parametrize("names", [("generation_id",), ("generation_id", "type")], ids=str)
async def test_events_of_a_generation_are_read_by_their_ids(
    connection: sqlite3.Connection, names: tuple[str, ...], page: pages.Page
) -> None:
    tx = await explain(connection, "/v1/events", names, page)
    steps = [step for plan in tx.plans for step in plan if " e " in step]
    assert steps
    assert all("(id=?" in step for step in steps)


@pytest.mark.parametrize("page", PAGES, ids=str)
@pytest.mark.parametrize("names", [names for path, names in LISTS if "gen" in path], ids=str)
async def test_a_range_of_ids_has_one_bound_on_each_side(
    connection: sqlite3.Connection, names: tuple[str, ...], page: pages.Page
) -> None:
    tx = await explain(connection, "/v1/generations", names, page)
    for sql in tx.statements:
        bounds = re.findall(r"(?:g\.id|m\.generation_id) ([<>])", sql)
        assert len(bounds) == len(set(bounds)), sql


async def test_a_list_without_its_index_is_detected(connection: sqlite3.Connection) -> None:
    connection.execute("DROP INDEX deliveries_ended")
    connection.execute(
        "CREATE INDEX deliveries_ended ON deliveries (status, due_at) "
        "WHERE status IN ('dead', 'canceled')"
    )
    tx = await explain(connection, "/v1/deliveries", ["status"])
    assert faults(tx.plans[-1], PAGES[0])


async def test_an_index_in_another_order_is_detected(connection: sqlite3.Connection) -> None:
    connection.execute("DROP INDEX generations_model")
    connection.execute("CREATE INDEX generations_model ON generations (tenant, model, status)")
    tx = await explain(connection, "/v1/generations", ["model"])
    assert any("TEMP B-TREE" in step for step in faults(tx.plans[-1], PAGES[0]))
