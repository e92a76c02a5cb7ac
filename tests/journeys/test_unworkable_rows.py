"""A row that cannot be worked holds no other row, whatever work is due, and goes on once it can."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from service.generations import send
from service.generations import stuck as stuck_module
from service.generations.stuck import Stuck
from service.model.errors import StorageError
from tests.faults import rows
from tests.harness import Harness, Reply, opened

pytestmark = pytest.mark.sqlite_only("its triggers are of SQLite")

POLLED = "ideogram-v3-turbo"  # No callbacks; usually done after 3 s.
COUNT = 4  # The first one is made unworkable: it is due first.
HOUR = 3_600
WORK = ("poll", "confirm", "submit", "expire")
ENDS = {"poll": "succeeded", "confirm": "succeeded", "submit": "taken", "expire": "timed_out"}
BREAK = {
    "unreadable": "UPDATE generation_bodies SET input = '{' WHERE generation_id = '%s'",
    "unchangeable": "CREATE TRIGGER refuse BEFORE UPDATE ON generations WHEN NEW.id = '%s' "
    "BEGIN SELECT RAISE(ABORT, 'no'); END",
}
MEND = {
    "unreadable": "UPDATE generation_bodies SET input = '{}' WHERE generation_id = '%s'",
    "unchangeable": "DROP TRIGGER refuse",
}


async def execute(world: Harness, sql: str) -> None:
    await world.app.database.apply(lambda connection: connection.execute(sql))


async def make_due(world: Harness, work: str) -> list[str]:
    """Make generations for which this work is due, the first one first; return their ids."""
    replies: dict[str, Reply] = {"submit": httpx.Response(503), "expire": httpx.ReadTimeout("slow")}
    world.upstream.create_replies.extend([replies[work]] * COUNT if work in replies else [])
    ids = []
    for number in range(COUNT):
        ids.append((await world.generate(POLLED if work == "poll" else "imagen4"))["id"])
        world.upstream.finish(f"task{number + 1}")
        world.clock.advance(0.01)
    if work == "confirm":
        for index in range(COUNT):
            assert (await world.call_back({}, index=index)).status_code == 200
            world.clock.advance(0.01)
    return ids


async def ended(world: Harness, work: str) -> set[str]:
    column = "submission" if work == "submit" else "status"
    found = await rows(world, "SELECT id, status, submission FROM generations")
    return {row["id"] for row in found if row[column] == ENDS[work]}


@pytest.mark.parametrize("fault", BREAK)
@pytest.mark.parametrize("work", WORK)
async def test_a_row_that_cannot_be_worked_holds_no_other(
    tmp_path: Path, work: str, fault: str
) -> None:
    async with opened(tmp_path, poll_rate_per_second=2.0) as world:
        bad_id, *good_ids = await make_due(world, work)
        await execute(world, BREAK[fault] % bad_id if "%s" in BREAK[fault] else BREAK[fault])
        await world.run(HOUR if work == "expire" else 0)
        for _ in range(12):
            await world.run(1)
        assert await ended(world, work) == {*good_ids}
        assert not world.app.worker.has_failed
        assert world.upstream.polls.count("task1") <= 5
        await execute(world, MEND[fault] % bad_id if "%s" in MEND[fault] else MEND[fault])
        for _ in range(10):
            await world.run(60)
        assert bad_id in await ended(world, work)
        assert len(world.upstream.creates) == COUNT * (2 if work == "submit" else 1)


async def test_more_unreadable_rows_than_are_remembered_hold_no_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stuck_module, "STUCK_MAX", 1)
    async with opened(tmp_path) as world:
        await make_due(world, "poll")
        await execute(world, "UPDATE generation_bodies SET input = '{'")
        world.clock.advance(5)
        started, next_at = await world.app.worker.poller.run_due(world.clock.now)
        assert started == 0
        assert next_at is None or next_at > world.clock.now


@pytest.mark.parametrize("work", ["submit", "expire"])
async def test_rows_without_their_bodies_are_looked_at_again_later(
    tmp_path: Path, work: str
) -> None:
    async with opened(tmp_path) as world:
        await make_due(world, work)
        await execute(world, "DELETE FROM generation_bodies")
        world.clock.advance(2 * HOUR)
        worker, now = world.app.worker, world.clock.now
        for _ in range(2):
            if work == "submit":
                _, next_at = await worker.submitter.run_due(now)
            else:
                next_at = await worker.poller.expire_due(now)
        assert next_at is None or next_at > now


async def test_a_submission_whose_request_cannot_be_made_has_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any) -> str:
        raise OverflowError("no such number")

    async with opened(tmp_path) as world:
        monkeypatch.setattr(send, "callback_url", fail)
        await world.generate()
        await world.run(1)
        monkeypatch.undo()
        [row] = await rows(world, "SELECT submission FROM generations")
        assert row["submission"] == "waiting"
        for _ in range(10):
            await world.run(2)
        [row] = await rows(world, "SELECT submission FROM generations")
        assert (row["submission"], len(world.upstream.creates)) == ("taken", 1)


def test_a_row_is_passed_over_for_longer_each_time_and_forgotten_once_it_went_well() -> None:
    stuck, now = Stuck(), 0
    delays = []
    for _ in range(9):
        stuck.put("gen_1", now, OSError("no"))
        until = stuck.next_at(None, now)
        assert until is not None
        assert stuck.ids(until - 1) == ["gen_1"]
        assert stuck.ids(until) == []
        delays.append((until - now) // 1_000)
        now = until
    assert delays == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert stuck.next_at(7, now) == 7
    assert stuck.ids(now + 600_000) == []
    stuck.put("gen_1", now, OSError("no"))
    assert stuck.next_at(None, now) == now + 5_000


def test_a_row_that_the_database_did_not_store_is_passed_over_for_a_minute_at_most() -> None:
    stuck, now, delays = Stuck(), 0, []
    for _ in range(8):
        stuck.put("gen_1", now, StorageError("disk full"))
        until = stuck.next_at(None, now)
        assert until is not None
        delays.append((until - now) // 1_000)
        now = until
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_try_that_a_client_asked_for_passes_a_row_over_for_no_longer() -> None:
    stuck = Stuck()
    for now in (0, 1_000, 2_000):
        stuck.put("gen_1", now, OSError("no"))
    assert stuck.next_at(None, 2_000) == 5_000
    stuck.forget("gen_1")
    assert stuck.ids(2_000) == []


def test_no_more_rows_are_passed_over_than_fit() -> None:
    stuck = Stuck()
    for number in range(1_200):
        stuck.put(f"gen_{number}", 0, OSError("no"))
    assert len(stuck.ids(1)) == 1_000
