"""Texts of the greatest length that is allowed, each character of four bytes, and NUL in ids."""

from pathlib import Path

import httpx
import pytest

from tests.faults import rows
from tests.harness import SUBSCRIBER_URL, create_answer, opened, success_report

WIDE = "\U0001f4f7"  # Four bytes in UTF-8.


async def test_the_longest_texts_are_stored_and_found(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        metadata = {f"{number:02}".ljust(64, "n"): WIDE * 500 for number in range(20)}
        await world.generate(metadata=metadata, notify_url=SUBSCRIBER_URL.ljust(2_048, "x"))
        name = next(iter(metadata))
        found = await world.get("/v1/generations", **{f"metadata.{name}": WIDE * 500})
        assert [each["metadata"] for each in found["data"]] == [metadata]


@pytest.mark.parametrize("tail", ["/" + "\u6e2f" * 1_900, "?" + "é" * 1_000])
async def test_a_url_that_is_too_long_once_it_is_encoded_is_refused(
    tmp_path: Path, tail: str
) -> None:
    async with opened(tmp_path) as world:
        body = {
            "model": "imagen4",
            "input": {"prompt": "a harbour"},
            "notify_url": SUBSCRIBER_URL + tail,
        }
        answer = await world.client.post("/v1/generations", json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "address_refused")
        assert "encoded, is longer than 2048" in answer.json()["errors"][0]["message"]
        assert (await world.get("/readyz"))["status"] == "ready"


async def test_an_id_of_the_greatest_length_is_polled_and_found(tmp_path: Path) -> None:
    task_id = WIDE * 512
    async with opened(tmp_path) as world:
        world.upstream.create_replies.append(httpx.Response(200, json=create_answer(task_id)))
        world.upstream.finish(task_id)
        await world.generate()
        await world.call_back(success_report(task_id))
        await world.run(1)
        [row] = await rows(world, "SELECT task_id, status FROM generations")
        assert (row["task_id"], row["status"]) == (task_id, "succeeded")


async def test_an_answer_with_nul_in_its_id_is_of_another_task(tmp_path: Path) -> None:
    async with opened(tmp_path, deadline_seconds=600) as world:
        generation = await world.generate()
        world.upstream.tasks["task1"] = {"task_id": "other9\0a", "status": "completed"}
        await world.run(60)
        timeline = (await world.get(f"/v1/generations/{generation['id']}/timeline"))["data"]
        assert "other_task" in str([entry for entry in timeline if entry["type"] == "poll"])
        await world.run(700)
        await world.run(60)
        assert (await world.get(f"/v1/generations/{generation['id']}"))["status"] == "timed_out"


async def test_a_create_answer_with_nul_in_its_id_is_submitted_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        answer = httpx.Response(200, json=create_answer("task\0a"))
        world.upstream.create_replies.append(answer)
        generation = await world.generate()
        await world.run(1)
        assert (await world.get(f"/v1/generations/{generation['id']}"))["status"] == "processing"
        assert len(world.upstream.creates) == 1
