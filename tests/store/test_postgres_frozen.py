"""A process that is frozen between two requests: connections end, and it cannot hear of it."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from service.model.errors import StorageError
from service.store.postgres import Database, ownership
from service.store.shards import NONE
from tests.faults import DelayedAnswer
from tests.harness import opened
from tests.store.test_postgres import database, increment, kill_all, number

__all__ = ["database"]  # The fixture.


def freeze_and_kill(database: Database) -> None:
    """End every connection while the event loop of the process does not run."""
    thread = threading.Thread(target=lambda: asyncio.run(kill_all(database)))
    thread.start()
    thread.join()


async def test_connections_that_ended_while_the_process_was_frozen_fail_no_unit(
    database: Database,
) -> None:
    """Lambda thaws a process with a request: it hears of both in the same moment."""
    await asyncio.gather(*(database.read(number) for _ in range(4)))
    assert database._pool._connections.get_idle_size() >= 2
    freeze_and_kill(database)
    assert await database.read(number) == 0
    freeze_and_kill(database)
    assert await database.write(increment) == 0
    assert await database.write_problem() is None


async def test_a_connection_that_ends_within_a_transaction_fails_its_unit(
    database: Database,
) -> None:
    """What was asked for may have been done: it is not asked for again."""
    runs: list[int] = []

    async def unit(tx: Any) -> int:
        runs.append(await number(tx))
        await kill_all(database)
        return await increment(tx)

    with pytest.raises(StorageError):
        await database.write(unit)
    assert runs == [0]
    assert await database.read(number) == 0


async def test_a_server_that_ends_every_connection_is_not_asked_for_ever(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    async def fail(transaction: Any) -> None:
        tries.append(1)
        raise ConnectionResetError("the server is gone")

    monkeypatch.setattr(asyncpg.transaction.Transaction, "start", fail)
    with pytest.raises(StorageError, match="the server is gone"):
        await database.read(number)
    assert 1 <= len(tries) <= 11
    monkeypatch.undo()
    assert await database.read(number) == 0


@pytest.mark.usefixtures("postgres")
@pytest.mark.parametrize("is_lost", [True, False])
async def test_an_answer_to_a_question_of_a_session_that_was_lost_is_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_lost: bool
) -> None:
    """The process was frozen: who has the shard now has asked itself."""
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 3_600)  # One would find the shards still held.
    async with opened(tmp_path) as world:
        generation = await world.generate()
        delayed = DelayedAnswer(httpx.ReadTimeout("no answer in time"))
        world.upstream.poll_replies.append(delayed.reply)
        ticking = asyncio.create_task(world.run(400))
        await delayed.requested.wait()
        holding = world.app.database.holding
        held = holding._shards, holding._until, holding._clock
        if is_lost:
            holding.put(NONE, 0.0, held[2])
        delayed.release()
        await world.app.worker.poller.settle()
        holding.put(*held)
        await ticking
        answer = await world.get(f"/v1/generations/{generation['id']}/timeline")
        outcomes = [e["detail"].get("outcome") for e in answer["data"] if e["type"] == "poll"]
        assert ("unwell" not in outcomes) == is_lost
