"""Rows that no version of genhook writes: they are put off, and hold up no other row."""

from pathlib import Path

import httpx
import pytest

from tests.harness import Harness, opened

HOUR = 3_600
SPAN = {"since": "2026-11-18T00:00:00Z", "until": "2026-12-01T00:00:00Z", "only": "all"}
OPEN = "UPDATE generations SET status = 'processing', submission = 'taken'"
SPOIL = "UPDATE generation_bodies SET metadata = '[' WHERE generation_id = :id"
REPAIR = "UPDATE generation_bodies SET metadata = '{}' WHERE generation_id = :id"
FORGET_TASK = "UPDATE generations SET task_id = NULL, next_poll_at = NULL WHERE id = :id"


async def execute(world: Harness, sql: str, id_: str) -> None:
    await world.app.database.apply(lambda c: c.execute(sql, {"id": id_}))


async def status_of(world: Harness, id_: str) -> str:
    return str((await world.get(f"/v1/generations/{id_}"))["status"])


@pytest.mark.parametrize(
    "due",
    [
        f"{OPEN}, next_poll_at = 1 WHERE id = :id",
        f"{OPEN}, next_poll_at = 1, deadline_at = 1 WHERE id = :id",
        f"{OPEN}, next_poll_at = NULL, deadline_at = 1 WHERE id = :id",
        "INSERT INTO confirmations VALUES (:id, 1)",
    ],
    ids=["poll", "overdue", "expire", "confirm"],
)
async def test_a_generation_that_cannot_be_read_holds_no_other(tmp_path: Path, due: str) -> None:
    async with opened(tmp_path) as world:
        bad, lost = (await world.generate())["id"], (await world.generate())["id"]
        other = (await world.generate())["id"]
        await execute(world, due, bad)
        await execute(world, SPOIL, bad)
        # Its deadline alone is due, as after a submission without an answer.
        await execute(world, FORGET_TASK, lost)
        world.upstream.finish("task3")
        await world.call_back()
        await world.run(2)
        assert await status_of(world, other) == "succeeded"
        await world.run(HOUR - 4)
        await world.run(3)
        assert await status_of(world, lost) == "timed_out"
        await execute(world, REPAIR, bad)
        world.upstream.finish("task1")
        await world.run(2 * HOUR)
        await world.run(2 * HOUR)
        assert await status_of(world, bad) in ("succeeded", "timed_out")


async def test_a_submission_that_cannot_be_read_holds_no_other(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        world.upstream.create_replies.extend([httpx.Response(503)] * 2)
        bad = (await world.generate())["id"]
        await world.generate()
        await execute(world, SPOIL, bad)
        await world.run(60)
        assert len(world.upstream.creates) == 3


async def test_a_replay_that_cannot_be_run_holds_no_other(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        urls = ("http://127.0.0.1:7/bad", "http://127.0.0.1:7/good")
        subscribers = [await world.subscribe(url) for url in urls]
        await world.generate()
        await world.run()
        for subscriber in subscribers:
            body = {"subscriber_id": subscriber["id"], **SPAN}
            answer = await world.client.post("/v1/replays", json=body)
            assert answer.status_code == 202, answer.text
        sql = "UPDATE replays SET event_types = 'x', due_at = 1 WHERE subscriber_id = :id"
        await execute(world, sql, subscribers[0]["id"])
        await world.run(1)
        await world.run(1)
        assert len(world.subscribers.webhooks_to(urls[1])) == 2
        assert len(world.subscribers.webhooks_to(urls[0])) == 1
