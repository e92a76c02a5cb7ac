"""Callbacks whose bodies are believed: which of them are proof, and which are only hints."""

from pathlib import Path

import pytest

from tests.faults import rows, status_of
from tests.harness import opened, success_report


@pytest.mark.parametrize(
    "body",
    [
        b'{"data": {"task_id": "task2", "task_id": "task1"}}',
        b'{"data": {"task_id": "task1", "taskId": "task2"}}',
        b'{"data": {"taskId": "task2", "task_id": "task1"}}',
    ],
    ids=["a name twice", "two names", "two names in the other order"],
)
async def test_a_body_that_also_names_the_task_of_another_generation_is_only_a_hint(
    tmp_path: Path, body: bytes
) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        generation = await world.generate()
        url = world.upstream.callback_url()
        await world.generate()  # It is task2.
        end = b', "status": "completed", "results": ["https://x.example/1.png"]}}'
        content = body.replace(b"}}", end)
        assert (await world.anonymous.post(url, content=content)).status_code == 200
        assert await status_of(world, generation["id"]) == "processing"
        assert len(await rows(world, "SELECT * FROM confirmations")) == 1


async def test_a_body_with_an_unknown_second_id_is_proof(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        generation = await world.generate()
        report = success_report("task1")
        report["data"]["taskId"] = "of-the-service-behind"
        assert (await world.call_back(report)).status_code == 200
        assert await status_of(world, generation["id"]) == "succeeded"
