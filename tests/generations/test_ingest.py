"""Outcomes in one group: read together, changed in order, written together."""

import asyncio
from pathlib import Path

import httpx

from tests.faults import rows, status_of
from tests.harness import Harness, opened, success_report

FAILED = {"data": {"task_id": "task1", "status": "failed", "error": "no luck"}}


async def together(world: Harness, *callbacks: tuple[int, object]) -> list[httpx.Response]:
    """Send callbacks whose units wait together, and so are one group."""
    calls = [world.call_back(body, index=index) for index, body in callbacks]
    return list(await asyncio.gather(*calls))


async def test_two_outcomes_of_one_generation_in_one_group_make_one_event(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await world.subscribe()
        generation = await world.generate()
        answers = await together(world, (0, success_report("task1")), (0, FAILED), (0, FAILED))
        assert [answer.status_code for answer in answers] == [200, 200, 200]
        await world.run()
        assert await status_of(world, generation["id"]) == "succeeded"
        types = [row["type"] for row in await rows(world, "SELECT type FROM events ORDER BY seq")]
        assert types == ["generation.submitted", "generation.succeeded"]
        assert sorted(world.subscribers.event_types()) == sorted(types)


async def test_many_outcomes_of_one_group_are_written_with_a_statement_for_each_table(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await world.subscribe(event_types=["generation.succeeded"])
        for _ in range(16):
            await world.generate()
        statements: list[str] = []
        await world.app.database.apply(lambda c: c.set_trace_callback(statements.append))
        bodies = [(number, success_report(f"task{number + 1}")) for number in range(16)]
        await together(world, *bodies)
        await world.app.database.apply(lambda c: c.set_trace_callback(None))
        executed = [s for s in statements if not s.startswith(("--", "BEGIN", "COMMIT"))]
        groups = sum(s.startswith("BEGIN") for s in statements)
        assert groups < 16
        assert len(executed) / 16 <= 8
        [counts] = await rows(
            world, "SELECT count(*) AS n FROM events WHERE type LIKE '%succeeded'"
        )
        assert counts["n"] == 16


async def test_an_outcome_that_cannot_be_stored_fails_alone_in_its_group(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        first = await world.generate()
        second = await world.generate()
        sql = (
            "CREATE TRIGGER refuse BEFORE INSERT ON events "
            f"WHEN NEW.generation_id = '{first['id']}' BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
        await world.app.database.apply(lambda c: c.execute(sql))
        answers = await together(world, (0, success_report("task1")), (1, success_report("task2")))
        assert [answer.status_code for answer in answers] == [500, 200]
        assert await status_of(world, first["id"]) == "processing"
        assert await status_of(world, second["id"]) == "succeeded"
