"""What a unit changes, it has locked: on PostgreSQL another process may be changing it."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from service.model.generation import Generation
from service.model.subscriber import Subscriber
from service.store import generations, rows, subscribers, tasks
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


async def test_a_task_is_taken_only_from_a_generation_that_still_has_it(tmp_path: Path) -> None:
    """It may have got another one since it was read, which stays."""
    stored = replace(generation(1, 1_000), task_id="its-own", next_poll_at=5)
    async with opened(tmp_path) as database:
        await database.migrate()
        await database.write(generations.insert, replace(stored, task_id=None))

        async def update(tx: Transaction) -> None:
            [before] = (await generations.lock_many(tx, [stored.id])).values()
            await generations.update(tx, [(before, stored)])

        await database.write(update)
        for task_id, left in (("another", ("its-own", 5)), ("its-own", (None, None))):
            await database.write(tasks.remove_task, stored.id, task_id)
            after = await database.read(rows.read_by_id, Generation, stored.id)
            assert after is not None
            assert (after.task_id, after.next_poll_at) == left
