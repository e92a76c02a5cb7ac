"""Query plans of lists: an index has the rows in order, and other filters look at a bounded few."""

import re
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from service.api.call import PAGING
from service.api.routes import OPERATIONS
from service.store import callbacks, deliveries, events, generations, pages, subscribers
from service.store.database import Row
from service.store.sqlite.database import Database, Transaction

WORDS: dict[str, dict[str, Any]] = {
    "/v1/generations": {
        "status": "succeeded",
        "model": "imagen4",
        "created_after": 1_795_000_000_000,
        "created_before": 1_795_000_000_000,
        "metadata.": {"order": "7", "customer": "9"},
    },
    "/v1/callbacks": {"generation_id": "gen_1", "verdict": "late"},
    "/v1/deliveries": {"status": "dead", "subscriber_id": "sub_1", "event_id": "evt_1"},
    "/v1/events": {"type": "ping", "generation_id": "gen_1"},
    "/v1/subscribers": {},
    "/v1/replays": {},
    "/v1/keys": {},
}
# What a row of the range is found by, where that is not the tenant. All rows of a metadata value, a
# subscriber, an event or a generation belong to one tenant, which the list has checked.
RANGES = re.compile(
    r"tenant=\?|\(id=\?|subscriber_id=\?|event_id=\?|generation_id=\?|name=\? AND value=\?"
)
# Indexes of which a few rows are read for a page, so that they may be sorted.
FEW = re.compile(r"deliveries_event|callback_bodies|[ce] USING")
# Steps that find one row, or none, for each row of a page.
SINGLE = re.compile(
    r"SCAN json_each|SEARCH (g USING PRIMARY KEY \(id=\?\)"
    r"|o USING PRIMARY KEY \(tenant=\? AND name=\? AND value=\? AND generation_id=\?\)"
    r"|b USING|events USING (COVERING )?INDEX sqlite_autoindex_events_1)"
)


class Explained(Transaction):
    """A transaction whose lists are empty; the plans of their statements are kept."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection, 0, [])
        self.plans: list[list[str]] = []
        self.statements: list[str] = []

    async def one(self, name: str, /, **_values: object) -> Row | None:
        assert name == "delivery_tenant"
        return {"tenant": "default"}

    async def select(self, sql: str, values: Any) -> list[Row]:
        rows = self._connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)
        self.plans.append([row[3] for row in rows])
        self.statements.append(sql)
        return [{"key": "x_9", "id": "x_9"}] if "OFFSET" in sql else []


@pytest.fixture
async def connection(tmp_path: Path) -> Any:
    """A connection to a database with the schema and no rows."""
    path = str(tmp_path / "plans.db")
    database = Database(path)
    await database.open()
    await database.migrate()
    await database.close()
    with opened(path) as connected:
        yield connected


@contextmanager
def opened(path: str) -> Iterator[sqlite3.Connection]:
    connected = sqlite3.connect(path)
    yield connected
    connected.close()


async def ask(tx: Transaction, path: str, names: Collection[str], page: pages.Page) -> None:
    """Read the list of the route, with these filters."""
    only = {name.rstrip("."): WORDS[path][name] for name in names}
    if path == "/v1/generations":
        await generations.page(tx, page, "default", generations.Filter(**only))
    elif path == "/v1/callbacks":
        await callbacks.page_of_all(tx, page, "default", callbacks.Filter(**only))
    elif path == "/v1/deliveries":
        await deliveries.page(tx, page, "default", deliveries.Filter(**only))
    elif path == "/v1/events":
        await events.page(tx, page, "default", events.Filter(**only))
    else:
        noun = path.split("/")[2]
        source = subscribers.LISTED if noun == "subscribers" else pages.of_tenant(noun)
        await pages.read(tx, source, page, {"tenant": "default"})


def subsets(path: str) -> list[tuple[str, ...]]:
    names = sorted(WORDS[path])
    return [each for size in range(len(names) + 1) for each in combinations(names, size)]


FILTERS = [(path, names) for path in WORDS for names in subsets(path)]
PAGES = [
    pages.Page(after=after, ascending=ascending)
    for after in (None, "x_1")
    for ascending in (False, True)
]


def test_every_filter_of_the_api_is_tried_here() -> None:
    known = {
        each.path: set(each.query - PAGING)
        for each in OPERATIONS
        if each.method == "GET" and each.query >= PAGING
    }
    assert known == {path: set(words) for path, words in WORDS.items()}


def complaints(plan: Collection[str], page: pages.Page) -> list[str]:
    """What is wrong with a plan: a scan, no range, an order that the index does not have."""
    walks = [s for s in plan if re.match("SEARCH|SCAN", s) and not SINGLE.match(s)]
    few = any(FEW.search(step) for step in walks)
    wrong = [step for step in walks if not (step.startswith("SEARCH") and RANGES.search(step))]
    if not few:
        ordered = re.compile(r"(id|rowid|seq)[<>]")
        wrong += [s for s in walks if page.after is not None and not ordered.search(s)]
        wrong += [step for step in plan if "TEMP B-TREE" in step]
    return wrong or ([] if walks else ["nothing is walked"])


@pytest.mark.parametrize("page", PAGES, ids=str)
@pytest.mark.parametrize(("path", "names"), FILTERS, ids=str)
async def test_an_index_has_the_rows_of_a_list_in_their_order(
    connection: sqlite3.Connection, path: str, names: tuple[str, ...], page: pages.Page
) -> None:
    tx = Explained(connection)
    await ask(tx, path, names, page)
    assert tx.plans
    for plan in tx.plans:
        assert complaints(plan, page) == [], plan


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
async def test_filters_that_the_index_does_not_answer_look_at_a_bounded_number_of_rows(
    connection: sqlite3.Connection, names: tuple[str, ...], *, is_bounded: bool
) -> None:
    tx = Explained(connection)
    await ask(tx, "/v1/generations", names, pages.Page())
    assert (":last" in tx.statements[-1]) == is_bounded


async def test_a_list_without_its_index_would_be_noticed(connection: sqlite3.Connection) -> None:
    connection.execute("DROP INDEX deliveries_ended")
    connection.execute(
        "CREATE INDEX deliveries_ended ON deliveries (status, due_at) "
        "WHERE status IN ('dead', 'canceled')"
    )
    tx = Explained(connection)
    await ask(tx, "/v1/deliveries", ["status"], pages.Page())
    assert complaints(tx.plans[-1], pages.Page())


async def test_an_index_out_of_order_would_be_noticed(connection: sqlite3.Connection) -> None:
    connection.execute("DROP INDEX generations_model")
    connection.execute("CREATE INDEX generations_model ON generations (tenant, model, status)")
    tx = Explained(connection)
    await ask(tx, "/v1/generations", ["model"], pages.Page())
    assert any("TEMP B-TREE" in step for step in complaints(tx.plans[-1], pages.Page()))
