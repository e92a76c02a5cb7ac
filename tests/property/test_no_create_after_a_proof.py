"""Nothing is submitted after a callback has named its task, whatever comes in between."""

import asyncio
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.model.generation import SUBMISSION_TRANSITIONS
from tests.faults import crash, rows
from tests.harness import Harness, create_answer, opened

ANSWERS: dict[str, httpx.Response | Exception] = {
    "503": httpx.Response(503),
    "429": httpx.Response(429, headers={"retry-after": "3"}),
    "timeout": httpx.ReadTimeout("slow"),
    "unreachable": httpx.ConnectError("refused"),
    "taken": httpx.Response(200, json=create_answer("task1")),
}
BODIES = {
    "progress": {"data": {"task_id": "task1", "status": "running"}},
    "other progress": {"data": {"task_id": "task1", "status": "running", "progress": 50}},
    "no task": {"data": {"status": "running"}},
}
STEPS = (
    "callback",
    "no task",
    "run",
    "run long",
    "500",
    "404",
    "429",
    "refresh",
    "restart",
    "crash",
)


async def do(world: Harness, step: str, number: int) -> None:
    if step == "callback":
        body = {"data": {"task_id": "task1", "status": "running", "progress": number % 2}}
        assert (await world.call_back(body)).status_code == 200
    elif step == "no task":
        assert (await world.call_back(BODIES["no task"])).status_code == 200
    elif step in ("run", "run long"):
        await world.run(1 if step == "run" else 70)
    elif step == "refresh":
        [row] = await rows(world, "SELECT id FROM generations")
        await world.client.post(f"/v1/generations/{row['id']}/refresh")
    elif step in ("restart", "crash"):
        await (world.restart() if step == "restart" else crash(world))
    else:
        world.upstream.poll_replies.append(httpx.Response(int(step)))


async def live(path: Path, answers: Sequence[str], trust: str, steps: Sequence[str]) -> None:
    async with opened(path, callback_trust=trust, shutdown_seconds=0) as world:
        world.upstream.create_replies.extend(ANSWERS[answer] for answer in answers)
        await world.generate()
        proved_after: int | None = None
        submission = "sending"
        for number, step in enumerate([*steps, "run", "run long", "run long"]):
            await do(world, step, number)
            if step == "callback" and proved_after is None:
                proved_after = len(world.upstream.creates)
            if proved_after is not None:
                assert len(world.upstream.creates) == proved_after, "it was sent after a proof"
            [row] = await rows(world, "SELECT submission, submit_at, task_id FROM generations")
            assert row["submission"] in reachable(submission)
            submission = row["submission"]
            assert row["submit_at"] is None or (submission == "waiting" and not row["task_id"])


def reachable(submission: str) -> set[str]:
    states = {submission}
    for _ in SUBMISSION_TRANSITIONS:
        states |= {after for before in states for after in SUBMISSION_TRANSITIONS[before]}
    return states


@pytest.mark.parametrize("trust", ["confirm", "body"])
@pytest.mark.parametrize("answer", ["503", "429", "timeout", "unreachable"])
async def test_no_create_follows_a_callback_in_every_short_interleaving(
    tmp_path: Path, answer: str, trust: str
) -> None:
    for number, steps in enumerate(itertools.permutations(("callback", "500", "run", "crash"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        await live(folder, [answer, "taken"], trust, steps)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    answers=st.lists(st.sampled_from(sorted(ANSWERS)), min_size=1, max_size=3),
    trust=st.sampled_from(["confirm", "body"]),
    steps=st.lists(st.sampled_from(STEPS), max_size=10),
)
def test_no_create_follows_a_callback_in_any_history(
    tmp_path: Path, answers: list[str], trust: str, steps: list[str]
) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        asyncio.run(live(Path(folder), answers, trust, steps))
