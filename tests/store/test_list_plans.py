"""Query plans of lists: whatever is asked for, an index has the rows, and has them in order."""

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
from service.store import pages
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
# The columns by which an index finds what a filter asks for.
COLUMNS = {
    "metadata.": {"name", "value"},
    "created_after": {"id"},
    "created_before": {"id"},
}
# Filters beside one that leaves a few rows: those are looked at.
FEW = {"event_id", "generation_id"}
# Steps that find one row, or none, for each row of a page.
SINGLE = re.compile(
    r"SEARCH (g USING PRIMARY KEY \(id=\?\)"
    r"|m\d USING PRIMARY KEY \(tenant=\? AND name=\? AND value=\? AND generation_id=\?\)"
    r"|b USING|events USING (COVERING )?INDEX sqlite_autoindex_events_1)"
)
TENANT_INDEXES = {"SUBSCRIBERS": ["tenant = :tenant", "is_notify = 0"]}


class Explained(Transaction):
    """A transaction whose lists are empty; the plans of their statements are kept.

    Of several ways that could be read, the one with the number `least` is said to be the shortest.
    """

    def __init__(self, connection: sqlite3.Connection, least: int = 0) -> None:
        super().__init__(connection, 0, [])
        self.least = least
        self.counted = 0
        self.counts: list[str] = []
        self.plan: list[str] = []

    async def one(self, name: str, /, **_values: object) -> Row | None:
        assert name == "delivery_tenant"
        return {"tenant": "default"}

    async def select(self, sql: str, values: Any) -> list[Row]:
        rows = self._connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)
        steps = [row[3] for row in rows]
        if not sql.startswith("SELECT count(*)"):
            self.plan = steps
            return []
        self.counts += steps
        self.counted += 1
        return [{"count": 5 if self.counted - 1 == self.least else 9}]


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


async def ask(tx: Transaction, path: str, asked: Collection[str], page: pages.Page) -> None:
    """The list of the route, with these filters."""
    only = {name.rstrip("."): WORDS[path][name] for name in asked}
    if path == "/v1/generations":
        await pages.generations(tx, page, "default", pages.Generations(**only))
    elif path == "/v1/callbacks":
        await pages.callbacks(tx, page, ["default", ""], pages.Callbacks(**only))
    elif path == "/v1/deliveries":
        await pages.deliveries(tx, page, "default", pages.Deliveries(**only))
    elif path == "/v1/events":
        await pages.events(tx, page, "default", pages.Events(**only))
    else:
        noun = path.split("/")[2].upper()
        where = TENANT_INDEXES.get(noun, ["tenant = :tenant"])
        await pages.page(tx, getattr(pages, noun), page, where, {"tenant": "default"})


def subsets(path: str) -> list[tuple[str, ...]]:
    names = sorted(WORDS[path])
    return [each for size in range(len(names) + 1) for each in combinations(names, size)]


ASKED = [(path, asked) for path in WORDS for asked in subsets(path)]
PAGES = [
    pages.Page(after=after, ascending=ascending)
    for after in (None, "x_1")
    for ascending in (False, True)
]


def columns_of(step: str) -> set[str]:
    return set(re.findall(r"(\w+)[=<>]", step))


def unanswered(asked: Collection[str], step: str) -> set[str]:
    """The columns of what is asked for by which the step does not find its rows."""
    needed = {name for name in asked if name in FEW} or set(asked)
    if "metadata." in needed and step.startswith("SEARCH m"):
        needed -= {"status", "model"}  # Counted, and they leave more.
    elif "metadata." in needed:
        needed -= {"metadata."}  # The same the other way round.
    columns = set().union(*(COLUMNS.get(name, {name}) for name in needed)) | {"tenant"}
    found = columns_of(step)
    if step.startswith("SEARCH m") and "generation_id" in found:
        found.add("id")
    if "deliveries_subscriber" in step or "callbacks_generation" in step:
        found.add("tenant")  # There is one for each of them.
    if "events_generation" in step:
        found.add("tenant")
    return columns - found


def test_every_filter_of_the_api_is_asked_for_here() -> None:
    known = {
        each.path: set(each.query - PAGING)
        for each in OPERATIONS
        if each.method == "GET" and each.query >= PAGING
    }
    assert known == {path: set(words) for path, words in WORDS.items()}


@pytest.mark.parametrize("page", PAGES, ids=str)
@pytest.mark.parametrize(("path", "asked"), ASKED, ids=str)
async def test_an_index_finds_what_a_list_is_asked_for_in_its_order(
    connection: sqlite3.Connection, path: str, asked: tuple[str, ...], page: pages.Page
) -> None:
    ways = 3 if "metadata." in asked else 1
    for least in range(ways):
        tx = Explained(connection, least)
        await ask(tx, path, asked, page)
        walks = [s for s in tx.plan if re.match("SEARCH|SCAN", s) and not SINGLE.match(s)]
        walks = [s for s in walks if "INDEX generations_odd" not in s]
        assert walks, tx.plan
        for step in walks:
            assert step.startswith("SEARCH"), tx.plan
            assert not unanswered(asked, step), tx.plan
            if not re.search("callbacks_generation|deliveries_event", step):  # A few: sorted.
                assert page.after is None or re.search(r"(id|rowid|seq)[<>]", step), tx.plan
                assert not [s for s in tx.plan if "TEMP B-TREE" in s], tx.plan
        assert not [s for s in tx.counts if "TEMP B-TREE" in s or "SCAN g" in s or "SCAN m" in s]


async def test_a_filter_without_an_index_would_be_noticed(
    connection: sqlite3.Connection,
) -> None:
    connection.execute("DROP INDEX deliveries_status")
    connection.execute("CREATE INDEX deliveries_status ON deliveries (tenant, id)")
    tx = Explained(connection)
    await ask(tx, "/v1/deliveries", ["status"], pages.Page())
    assert unanswered(["status"], tx.plan[0]) == {"status"}


async def test_an_index_out_of_order_would_be_noticed(connection: sqlite3.Connection) -> None:
    connection.execute("DROP INDEX generations_model")
    connection.execute("CREATE INDEX generations_model ON generations (tenant, model, status)")
    connection.execute("DROP INDEX deliveries_status")
    connection.execute("CREATE INDEX deliveries_status ON deliveries (tenant, status, due_at)")
    tx = Explained(connection)
    await ask(tx, "/v1/deliveries", ["status"], pages.Page())
    assert [s for s in tx.plan if "TEMP B-TREE" in s]
