"""What a unit changes, it has locked: on PostgreSQL another process may be changing it."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from service.model.generation import Generation
from service.model.subscriber import Subscriber
from service.store import generations, rows, subscribers
from service.store.database import Transaction
from tests import engine
from tests.store.test_lists import generation
from tests.store.test_units import opened

pytestmark = pytest.mark.parametrize("database_engine", engine.ENGINES, indirect=True)


async def test_nothing_is_changed_that_was_not_locked(tmp_path: Path) -> None:
    subscriber = Subscriber(
        id="sub_1", tenant="default", url="", retry_schedule_seconds=[0], created_at=1, updated_at=1
    )

    stored = generation(1, 1_000)

    async def change_generation(tx: Transaction) -> None:
        read = await rows.read_by_id(tx, Generation, stored.id)
        assert read is not None
        await generations.update(tx, [(read, replace(read, submit_count=1))])

    async with opened(tmp_path) as database:
        await database.migrate()
        await database.write(generations.insert, stored)
        await database.write(rows.insert, subscriber)
        with pytest.raises(AssertionError, match="not locked"):
            await database.write(change_generation)
        for change in (subscribers.update, subscribers.delete):
            with pytest.raises(AssertionError, match="not locked"):
                await database.write(change, subscriber)
        with pytest.raises(AssertionError, match="not locked"):
            await database.write(subscribers.update_tenant, "default", b"")
