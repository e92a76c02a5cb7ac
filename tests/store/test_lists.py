"""Lists: whatever is asked for, the same rows as by looking at every one."""

from collections.abc import AsyncIterator, Callable
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import pytest

from service.model.clock import HOUR, MINUTE
from service.model.generation import Generation, GenerationStatus
from service.store import generations, pages
from service.store.database import Row
from service.store.sqlite.database import Database, Transaction

NOW = 1_795_000_000_000
STATUSES: tuple[GenerationStatus, ...] = ("processing", "succeeded")
MODELS = ("imagen4", "imagen4-fast")


def generation(number: int, drawn_at: int, created_at: int, tenant: str = "one") -> Generation:
    return Generation(
        id=f"gen_{drawn_at:012x}7{number:019x}",
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
    """A generation a minute; some were stored long after their id was drawn, or before it."""
    late = {7: 3 * HOUR, 20: 2 * MINUTE, 33: -HOUR}
    made = []
    for number in range(48):
        at = NOW + number * MINUTE
        made.append(generation(number, at, at + late.get(number, 0)))
    return [*made, generation(90, NOW, NOW, "two")]


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
Keeps = Callable[[Generation], bool]


def keeps(only: pages.Generations) -> Keeps:
    """True for the generations that are asked for."""

    def kept(one: Generation) -> bool:
        return (
            one.tenant == "one"
            and only.status in (None, one.status)
            and only.model in (None, one.model)
            and (only.created_after is None or one.created_at > only.created_after)
            and (only.created_before is None or one.created_at < only.created_before)
            and only.metadata.items() <= one.metadata.items()
        )

    return kept


async def walked(database: Database, only: pages.Generations, *, ascending: bool) -> list[str]:
    """Ids of every page, one after the other."""
    found: list[str] = []
    page = pages.Page(limit=5, ascending=ascending)
    more = True
    while more:
        rows, more = await database.read(pages.generations, page, "one", only)
        found += [row["id"] for row in rows]
        page = msgspec.structs.replace(page, after=found[-1] if found else None)
    return found


@pytest.mark.parametrize("ascending", [False, True])
@pytest.mark.parametrize("metadata", METADATA, ids=str)
async def test_generations_are_those_that_looking_at_every_one_finds(
    database: Database, metadata: dict[str, str], *, ascending: bool
) -> None:
    every = history()
    sizes = set()
    for status, model, after, before in product(
        (None, *STATUSES), (None, *MODELS, "other"), TIMES, TIMES
    ):
        only = pages.Generations(
            status=status,
            model=model,
            created_after=after,
            created_before=before,
            metadata=metadata,
        )
        wanted = sorted((g.id for g in every if keeps(only)(g)), reverse=not ascending)
        assert await walked(database, only, ascending=ascending) == wanted, only
        sizes.add(len(wanted))
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
            "created_at": NOW,
        }
        for number in range(3)
    ]

    async def insert(tx: Transaction) -> None:
        await tx.many("deliveries_insert", rows)

    await database.write(insert)
    only = pages.Deliveries(subscriber_id="sub_two")
    for tenant, count in (("two", 3), ("one", 0)):
        found, more = await database.read(pages.deliveries, pages.Page(), tenant, only)
        assert (len(found), more) == (count, False)

    async def refuse(tx: Transaction) -> tuple[list[Row], bool]:
        class Blind(Transaction):
            async def select(self, sql: str, values: Any) -> list[Row]:
                raise AssertionError(sql, values)

        blind = Blind(tx._connection, tx.now, [])
        return await pages.deliveries(blind, pages.Page(), "one", only)

    assert await database.read(refuse) == ([], False)
