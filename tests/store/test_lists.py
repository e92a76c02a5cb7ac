"""Lists of generations: every filter returns the same rows as a check of every generation.

They run on both databases.
"""

from collections.abc import AsyncIterator
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import pytest

from service.model.clock import HOUR, MINUTE
from service.model.generation import Generation, GenerationStatus
from service.store import deliveries, generations, pages
from service.store.database import Transaction
from service.store.generations import Filter
from service.store.writes import Database
from tests import engine
from tests.store.test_units import opened

pytestmark = pytest.mark.parametrize("database_engine", engine.ENGINES, indirect=True)
NOW = 1_795_000_000_000
STATUSES: tuple[GenerationStatus, ...] = ("processing", "succeeded")
MODELS = ("imagen4", "imagen4-fast")
TIMES = (None, NOW - 1, NOW + 20 * MINUTE, NOW + 33 * MINUTE, NOW + 48 * MINUTE)
METADATA: tuple[dict[str, str], ...] = (
    {},
    {"colour": "1"},
    {"colour": "1", "size": "2"},
    {"colour": "none"},
)


def generation(number: int, created_at: int, tenant: str = "one") -> Generation:
    return Generation(
        id=f"gen_{created_at:012x}7{number:019x}",
        tenant=tenant,
        model=MODELS[number % 2],
        status=STATUSES[number // 2 % 2],
        route="poll",
        input={},
        metadata={"colour": str(number % 3), "size": str(number % 4)},
        created_at=created_at,
        deadline_at=created_at + HOUR,
        nonce="n",
        submission="taken",
    )


# One generation a minute, and one of another tenant.
GENERATIONS = [
    *(generation(number, NOW + number * MINUTE) for number in range(48)),
    generation(90, NOW, "two"),
]


@pytest.fixture
async def database(database_engine: str, tmp_path: Path) -> AsyncIterator[Database]:
    """A database with GENERATIONS."""

    async def insert(tx: Transaction) -> None:
        for new in GENERATIONS:
            await generations.insert(tx, new)

    async with opened(tmp_path) as database:
        await database.migrate()
        await database.write(insert)
        yield database


def passes(only: Filter, candidate: Generation) -> bool:
    """Return whether tenant "one" sees the generation with this filter."""
    return (
        candidate.tenant == "one"
        and only.status in (None, candidate.status)
        and only.model in (None, candidate.model)
        and (only.created_after is None or candidate.created_at > only.created_after)
        and (only.created_before is None or candidate.created_at < only.created_before)
        and only.metadata.items() <= candidate.metadata.items()
    )


async def ids_of_all_pages(database: Database, only: Filter, *, ascending: bool) -> list[str]:
    ids: list[str] = []
    page = pages.Page(limit=5, ascending=ascending)
    while True:
        rows, after = await database.read(generations.list_page, page, "one", only)
        assert len(rows) <= 5
        ids += [row["id"] for row in rows]
        if after is None:
            return ids
        page = msgspec.structs.replace(page, after=after)


@pytest.mark.parametrize("scanned_max", [10_000, 7])
@pytest.mark.parametrize("ascending", [False, True])
@pytest.mark.parametrize("metadata", METADATA, ids=str)
async def test_a_filter_returns_the_generations_that_pass_it(
    database: Database,
    metadata: dict[str, str],
    scanned_max: int,
    monkeypatch: pytest.MonkeyPatch,
    *,
    ascending: bool,
) -> None:
    monkeypatch.setattr(pages, "SCANNED_MAX", scanned_max)
    sizes = set()
    filters = [*product((None, *STATUSES), (None, *MODELS, "other"), TIMES, TIMES)]
    # A read of a server takes ten times as long: some of them are as good.
    for status, model, after, before in filters[:: 1 if engine.schemas is None else 11]:
        only = Filter(
            status=status,
            model=model,
            created_after=after,
            created_before=before,
            metadata=metadata,
        )
        ids = [candidate.id for candidate in GENERATIONS if passes(only, candidate)]
        ids.sort(reverse=not ascending)
        assert await ids_of_all_pages(database, only, ascending=ascending) == ids, only
        sizes.add(len(ids))
    assert len(sizes) > 1 or metadata == {"colour": "none"}


async def test_a_subscriber_of_another_tenant_has_no_deliveries_and_none_are_read(
    database: Database,
) -> None:
    row = {
        "tenant": "two",
        "subscriber_id": "sub_two",
        "event_id": "evt_1",
        "event_type": "ping",
        "generation_id": None,
        "trigger": "scheduled",
        "due_at": NOW,
    }

    async def insert(tx: Transaction) -> None:
        rows = [{**row, "id": f"dlv_{number:032x}"} for number in range(3)]
        await tx.many("deliveries_insert", rows)

    await database.write(insert)
    only = deliveries.Filter(subscriber_id="sub_two")
    rows, after = await database.read(deliveries.list_page, pages.Page(), "two", only)
    assert (len(rows), after) == (3, None)

    async def read_without_lists(tx: Transaction) -> pages.Rows:
        def scan(_tx: Transaction, sql: str, values: Any) -> None:
            raise AssertionError(sql, values)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(tx), "scan", scan)
            return await deliveries.list_page(tx, pages.Page(), "one", only)

    assert await database.read(read_without_lists) == ([], None)


async def test_a_page_checks_a_bounded_number_of_rows_and_the_next_continues_there(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "SCANNED_MAX", 10)
    only = Filter(model="imagen4", status="succeeded", metadata={"colour": "none"})
    assert await database.read(generations.list_page, pages.Page(), "one", only) == ([], None)
    only = Filter(metadata={"colour": "1"}, model="other")
    rows, after = await database.read(generations.list_page, pages.Page(), "one", only)
    assert rows == []
    newest_first = [new.id for new in reversed(GENERATIONS) if new.metadata["colour"] == "1"]
    assert after == newest_first[9]


async def test_a_page_ends_early_at_its_limit_of_bytes_and_continues(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PAGE_BYTES", 700)
    seen: list[str] = []
    after: str | None = None
    while True:
        page = pages.Page(limit=40, after=after)
        rows, after = await database.read(generations.list_page, page, "one", Filter())
        assert 1 <= len(rows) < 10
        seen += [row["id"] for row in rows]
        if after is None:
            break
    assert seen == sorted((g.id for g in GENERATIONS if g.tenant == "one"), reverse=True)


async def test_a_row_larger_than_the_limit_is_a_page_of_its_own(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PAGE_BYTES", 1)
    rows, after = await database.read(generations.list_page, pages.Page(), "one", Filter())
    assert [row["id"] for row in rows] == [after]
