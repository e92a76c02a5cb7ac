"""Lists: whatever is asked for, the same rows as by looking at every one."""

from collections.abc import AsyncIterator
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import pytest

from service.model.clock import HOUR, MINUTE
from service.model.generation import Generation, GenerationStatus
from service.store import deliveries, generations, pages
from service.store.database import Row
from service.store.sqlite.database import Database, Transaction

NOW = 1_795_000_000_000
STATUSES: tuple[GenerationStatus, ...] = ("processing", "succeeded")
MODELS = ("imagen4", "imagen4-fast")


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


def history() -> list[Generation]:
    """A generation a minute, and one of another tenant."""
    own = [generation(number, NOW + number * MINUTE) for number in range(48)]
    return [*own, generation(90, NOW, "two")]


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    """A database with that history."""
    opened = Database(str(tmp_path / "lists.db"))
    await opened.open()
    await opened.migrate()

    async def insert(tx: Transaction) -> None:
        for one in history():
            await generations.insert(tx, one)

    await opened.write(insert)
    yield opened
    await opened.close()


TIMES = (None, NOW - 1, NOW + 20 * MINUTE, NOW + 33 * MINUTE, NOW + 48 * MINUTE)
METADATA: tuple[dict[str, str], ...] = (
    {},
    {"colour": "1"},
    {"colour": "1", "size": "2"},
    {"colour": "none"},
)
Filter = generations.Filter


def passes(only: Filter, one: Generation) -> bool:
    """True if the filter shows the generation to its tenant."""
    return (
        one.tenant == "one"
        and only.status in (None, one.status)
        and only.model in (None, one.model)
        and (only.created_after is None or one.created_at > only.created_after)
        and (only.created_before is None or one.created_at < only.created_before)
        and only.metadata.items() <= one.metadata.items()
    )


async def ids_of_pages(database: Database, only: Filter, *, ascending: bool) -> list[str]:
    """Ids of every page, one after the other."""
    ids: list[str] = []
    page: pages.Page | None = pages.Page(limit=5, ascending=ascending)
    while page is not None:
        rows, after = await database.read(generations.page, page, "one", only)
        assert len(rows) <= 5
        ids += [row["id"] for row in rows]
        page = msgspec.structs.replace(page, after=after) if after else None
    return ids


@pytest.mark.parametrize("looked_at", [10_000, 7])
@pytest.mark.parametrize("ascending", [False, True])
@pytest.mark.parametrize("metadata", METADATA, ids=str)
async def test_generations_are_those_that_looking_at_every_one_finds(
    database: Database,
    metadata: dict[str, str],
    looked_at: int,
    monkeypatch: pytest.MonkeyPatch,
    *,
    ascending: bool,
) -> None:
    monkeypatch.setattr(pages, "LOOKED_AT_MAX", looked_at)
    every = history()
    sizes = set()
    for status, model, after, before in product(
        (None, *STATUSES), (None, *MODELS, "other"), TIMES, TIMES
    ):
        only = Filter(
            status=status,
            model=model,
            created_after=after,
            created_before=before,
            metadata=metadata,
        )
        ids = sorted((g.id for g in every if passes(only, g)), reverse=not ascending)
        assert await ids_of_pages(database, only, ascending=ascending) == ids, only
        sizes.add(len(ids))
    assert len(sizes) > 1 or metadata == {"colour": "none"}


async def test_a_subscriber_of_another_tenant_has_no_deliveries_and_none_are_looked_at(
    database: Database,
) -> None:
    rows = [
        {
            "tenant": "two",
            "id": f"dlv_{number:032x}",
            "subscriber_id": "sub_two",
            "event_id": "evt_1",
            "event_type": "ping",
            "generation_id": None,
            "trigger": "scheduled",
            "due_at": NOW,
        }
        for number in range(3)
    ]

    async def insert(tx: Transaction) -> None:
        await tx.many("deliveries_insert", rows)

    await database.write(insert)
    only = deliveries.Filter(subscriber_id="sub_two")
    for tenant, count in (("two", 3), ("one", 0)):
        rows_of_page, after = await database.read(deliveries.page, pages.Page(), tenant, only)
        assert (len(rows_of_page), after) == (count, None)

    async def refuse(tx: Transaction) -> pages.Rows:
        class Blind(Transaction):
            async def select(self, sql: str, values: Any) -> list[Row]:
                raise AssertionError(sql, values)

        blind = Blind(tx._connection, tx.now, [])
        return await deliveries.page(blind, pages.Page(), "one", only)

    assert await database.read(refuse) == ([], None)


async def test_a_page_looks_at_a_bounded_number_of_rows_and_goes_on_from_there(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "LOOKED_AT_MAX", 10)
    only = Filter(model="imagen4", status="succeeded", metadata={"colour": "none"})
    assert await database.read(generations.page, pages.Page(), "one", only) == ([], None)
    only = Filter(metadata={"colour": "1"}, model="other")
    rows, after = await database.read(generations.page, pages.Page(), "one", only)
    assert rows == []
    with_colour = [g.id for g in reversed(history()) if g.metadata["colour"] == "1"]
    assert after == with_colour[9]
