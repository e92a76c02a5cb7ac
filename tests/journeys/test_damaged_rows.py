"""Rows that cannot be decoded: each moves on alone, and everybody else's work and lists go on."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from service.generations.judge import CONFLICT_CODE
from tests.faults import execute, rows, status_of
from tests.harness import SUBSCRIBER_URL, Harness, create_answer, opened, success_report

HOUR = 3_600
DAY = 24 * HOUR
OTHER_URL = "http://127.0.0.1:7/other"


async def damage(world: Harness, table: str, column: str, id_: str, value: str = "{") -> None:
    key = "generation_id" if table == "generation_bodies" else "id"
    sql = f"UPDATE {table} SET {column} = :value WHERE {key} = :id"  # noqa: S608  a test's own names
    await execute(world, sql, value=value, id=id_)


async def generate(world: Harness, count: int, **fields: Any) -> list[str]:
    return [(await world.generate("cogview-4", **fields))["id"] for _ in range(count)]


BODIES = [("generation_bodies", "input"), ("generations", "event_ids"), ("generations", "route")]


@pytest.mark.parametrize(("table", "column"), BODIES)
async def test_a_damaged_generation_holds_up_no_poll_and_no_list(
    tmp_path: Path, table: str, column: str
) -> None:
    async with opened(tmp_path) as world:
        damaged, *others = await generate(world, 3)
        await damage(world, table, column, damaged)
        for number in (1, 2, 3):
            world.upstream.finish(f"task{number}")
        await world.run(60)
        assert [await status_of(world, id_) for id_ in others] == ["succeeded"] * 2
        listed = (await world.get("/v1/generations"))["data"]
        assert {generation["id"] for generation in listed} == set(others)


async def test_a_damaged_generation_holds_up_no_submission_and_no_deadline(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        world.upstream.create_replies.extend([httpx.Response(503)] * 2)
        damaged, other = await generate(world, 2)
        world.upstream.create_replies.extend([httpx.ReadTimeout("lost")] * 2)
        damaged_too, lost = await generate(world, 2)
        for id_ in (damaged, damaged_too):
            await damage(world, "generation_bodies", "metadata", id_)
        await world.run(60)
        assert len(world.upstream.creates) == 5, "the damaged one was sent or held up the other"
        assert await status_of(world, other) == "processing"
        await world.run(2 * HOUR)
        assert await status_of(world, lost) == "timed_out"


async def test_the_task_of_a_damaged_generation_goes_to_no_other(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        [damaged] = await generate(world, 1)
        await damage(world, "generation_bodies", "input", damaged)
        world.upstream.create_replies.append(httpx.Response(200, json=create_answer("task1")))
        [other] = await generate(world, 1, input={"prompt": "another thing"})
        world.upstream.finish("task1")
        await world.run(600)
        shown = await world.get(f"/v1/generations/{other}")
        assert (shown["task_id"], shown["error"]["code"]) == (None, CONFLICT_CODE)


@pytest.mark.parametrize("trust", ["confirm", "body"])
async def test_a_callback_for_a_damaged_generation_is_stored(tmp_path: Path, trust: str) -> None:
    async with opened(tmp_path, callback_trust=trust) as world:
        damaged = (await world.generate())["id"]
        await damage(world, "generation_bodies", "input", damaged)
        assert (await world.call_back(success_report("task1"))).status_code == 200
        await world.run(1)
        assert len((await world.get("/v1/callbacks"))["data"]) == 1
        await damage(world, "generation_bodies", "input", damaged, '{"prompt": "mended"}')
        world.upstream.finish("task1")
        await world.run(600)
        assert await status_of(world, damaged) == "succeeded"


@pytest.mark.parametrize("is_notified", [False, True])
async def test_a_damaged_subscriber_holds_up_no_other(tmp_path: Path, *, is_notified: bool) -> None:
    async with opened(tmp_path) as world:
        healthy = await world.subscribe(OTHER_URL)
        fields = {"notify_url": SUBSCRIBER_URL} if is_notified else {}
        if not is_notified:
            await world.subscribe()
        [id_] = await generate(world, 1, **fields)
        sql = "SELECT id FROM subscribers WHERE url = :url"
        [subscriber] = await rows(world, sql, url=SUBSCRIBER_URL)
        await damage(world, "subscribers", "event_types", subscriber["id"])
        world.upstream.finish("task1")
        await world.run(60)
        assert await status_of(world, id_) == "succeeded"
        assert "generation.succeeded" in world.subscribers.event_types(OTHER_URL)
        listed = (await world.get("/v1/subscribers"))["data"]
        assert [each["id"] for each in listed] == [healthy["id"]]


async def test_a_damaged_delivery_holds_up_no_other(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe()
        await generate(world, 3)
        await world.run()
        damaged, *others = (await world.get("/v1/deliveries"))["data"]
        await damage(world, "deliveries", "status", damaged["id"])
        listed = (await world.get("/v1/deliveries"))["data"]
        assert [each["id"] for each in listed] == [each["id"] for each in others]


async def test_a_damaged_replay_holds_up_no_other(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        one, other = await world.subscribe(), await world.subscribe(OTHER_URL)
        await generate(world, 1)
        await world.run()
        replays = []
        for subscriber in (one, other):
            body = {
                "subscriber_id": subscriber["id"],
                "since": "2020-01-01T00:00:00Z",
                "until": "2030-01-01T00:00:00Z",
                "only": "all",
            }
            answer = await world.client.post("/v1/replays", json=body)
            assert answer.status_code == 202, answer.text
            replays.append(answer.json()["id"])
        await damage(world, "replays", "event_types", replays[0])
        await world.run()
        await world.run(1)
        assert (await world.get(f"/v1/replays/{replays[1]}"))["status"] == "done"
        assert len(world.subscribers.webhooks_to(OTHER_URL)) == 2


async def test_a_damaged_generation_holds_up_no_retention(tmp_path: Path) -> None:
    async with opened(tmp_path, retention_days=1) as world:
        ids = await generate(world, 3)
        for number in (1, 2, 3):
            world.upstream.finish(f"task{number}")
        await world.run(60)
        await damage(world, "generations", "event_ids", ids[0])
        await damage(world, "generation_bodies", "metadata", ids[1])
        for _ in range(3):
            await world.run(20 * DAY)
        assert [row["id"] for row in await rows(world, "SELECT id FROM generations")] == [ids[0]]
