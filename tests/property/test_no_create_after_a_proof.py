"""Nothing is submitted after a proof that upstream has it, whatever comes in between.

A proof is a recorded answer, or a callback with a good token, whatever upstream answers about the
task that it names.
"""

import asyncio
import contextlib
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.model.generation import SUBMISSION_TRANSITIONS
from tests import engine
from tests.faults import DelayedAnswer, crash, rows
from tests.harness import Harness, create_answer, opened, success_report

ANSWERS: dict[str, httpx.Response | Exception] = {
    "503": httpx.Response(503),
    "429": httpx.Response(429, headers={"retry-after": "3"}),
    "500": httpx.Response(500),
    "timeout": httpx.ReadTimeout("slow"),
    "unreachable": httpx.ConnectError("refused"),
    "taken": httpx.Response(200, json=create_answer("task1")),
}
BODIES: dict[str, Any] = {
    "callback": {"data": {"task_id": "task1", "status": "running"}},
    "success": success_report("task1"),
    "no task": {"data": {"status": "running"}},
    "garbage": b"<html>",
}
POLLS = ("500", "404", "429")
ENDS = ("restart", "crash")
PLAIN = ("answer", *BODIES, *POLLS, "absent", *ENDS, "run", "run long", "refresh")


class Step(NamedTuple):
    """An action; `during` it happens while a request of that kind to upstream is under way."""

    action: str
    during: str | None = None


class History:
    """One generation, checked after each step."""

    def __init__(self, world: Harness, answers: Sequence[str]) -> None:
        self.world = world
        self.first = DelayedAnswer(ANSWERS[answers[0]])
        world.upstream.create_replies.append(self.first.reply)
        world.upstream.create_replies.extend(ANSWERS[answer] for answer in answers[1:])
        self.request: asyncio.Task[httpx.Response] | None = None
        self.submission = "sending"
        self.creates_max: int | None = None  # Set by the first proof.

    async def begin(self) -> None:
        body = {"model": "imagen4", "input": {"prompt": "a small harbour"}}
        request = self.world.client.post("/v1/generations", json=body)
        self.request = asyncio.create_task(request)
        await self.first.requested.wait()

    async def do(self, step: Step) -> None:
        if step.during is None:
            await self.act(step.action)
            return
        upstream = self.world.upstream
        replies = upstream.create_replies if step.during == "create" else upstream.poll_replies
        answer = replies.popleft() if replies else None
        default = create_answer("task1") if step.during == "create" else BODIES["callback"]
        fallback = httpx.Response(200, json=default)
        is_usable = isinstance(answer, httpx.Response | Exception)
        delayed = DelayedAnswer(answer if is_usable else fallback)  # type: ignore[arg-type]
        replies.appendleft(delayed.reply)
        running = asyncio.create_task(self.world.run(2))
        asked = asyncio.create_task(delayed.requested.wait())
        await asyncio.wait({running, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if step.action in ENDS:
            running.cancel()
        if step.action == "refresh" or running.done():  # Else it would wait for this answer.
            delayed.release()
        await self.act(step.action)
        delayed.release()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        replies.clear()

    async def act(self, action: str) -> None:
        world = self.world
        if action in BODIES:
            await self.call_back(BODIES[action])
        elif action == "answer":
            await self.answer()
        elif action in POLLS:
            world.upstream.poll_replies.append(httpx.Response(int(action)))
        elif action == "absent":
            world.upstream.poll_replies.extend([httpx.Response(404)] * 20)
        elif action in ("run", "run long"):
            await world.run(1 if action == "run" else 70)
        elif action == "refresh":
            [row] = await rows(world, "SELECT id FROM generations")
            await world.client.post(f"/v1/generations/{row['id']}/refresh")
        else:
            await (world.restart() if action == "restart" else crash(world))
            await self.answer()

    async def call_back(self, body: Any) -> None:
        options = {"content": body} if isinstance(body, bytes) else {"body": body}
        assert (await self.world.call_back(**options)).status_code == 200
        self.prove()

    async def answer(self) -> None:
        """Let upstream's first answer arrive, if the request still waits for it."""
        self.first.release()
        if self.request is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self.request
        self.request = None

    def prove(self) -> None:
        if self.creates_max is None:
            self.creates_max = len(self.world.upstream.creates)

    async def check(self) -> None:
        count = len(self.world.upstream.creates)
        assert self.creates_max is None or count == self.creates_max, "it was sent after a proof"
        [row] = await rows(self.world, "SELECT submission, submit_at, task_id FROM generations")
        assert row["submission"] in reachable(self.submission)
        self.submission = row["submission"]
        assert row["submit_at"] is None or (self.submission == "waiting" and not row["task_id"])
        if self.submission in ("taken", "lost", "refused"):
            self.prove()


async def live(path: Path, answers: Sequence[str], trust: str, steps: Sequence[Step]) -> None:
    async with opened(path, callback_trust=trust, shutdown_seconds=0) as world:
        history = History(world, answers)
        await history.begin()
        for step in [*steps, *map(Step, ("answer", "run", "run long", "run long"))]:
            await history.do(step)
            await history.check()


def reachable(submission: str) -> set[str]:
    states = {submission}
    for _ in SUBMISSION_TRANSITIONS:
        states |= {after for before in states for after in SUBMISSION_TRANSITIONS[before]}
    return states


@pytest.mark.parametrize("trust", ["confirm", "body"])
@pytest.mark.parametrize("answer", ["503", "timeout"])
@pytest.mark.parametrize("end", ENDS)
async def test_no_create_follows_a_proof_in_every_short_interleaving(
    tmp_path: Path, answer: str, trust: str, end: str
) -> None:
    for number, actions in enumerate(itertools.permutations(("answer", "callback", "run", end))):
        folder = tmp_path / str(number)
        folder.mkdir()
        await live(folder, [answer, "taken"], trust, [*map(Step, ("500", *actions))])


STEPS = st.one_of(
    st.builds(Step, st.sampled_from(PLAIN)),
    st.builds(Step, st.sampled_from(PLAIN), st.sampled_from(("create", "poll"))),
)


EXAMPLES = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
HISTORIES = {
    "answers": st.lists(st.sampled_from(sorted(ANSWERS)), min_size=1, max_size=3),
    "trust": st.sampled_from(["confirm", "body"]),
    "steps": st.lists(STEPS, max_size=8),
}


@settings(EXAMPLES, max_examples=6)
@given(**HISTORIES)
@example(["503", "503"], "confirm", [Step("answer"), Step("crash", "create"), Step("callback")])
def test_no_create_follows_a_proof_on_postgresql(
    postgres: engine.Schemas, tmp_path: Path, answers: list[str], trust: str, steps: list[Step]
) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        asyncio.run(live(Path(folder), answers, trust, steps))
    postgres.release()


@EXAMPLES
@given(**HISTORIES)
# A callback, then a death, while a repeated submission is under way that upstream puts off again.
@example(["503", "503"], "confirm", [Step("answer"), Step("callback", "create")])
@example(["503", "503"], "confirm", [Step("answer"), Step("crash", "create"), Step("callback")])
@example(["503", "taken"], "confirm", [Step("callback"), Step("answer"), Step("crash", "poll")])
@example(["503", "taken"], "confirm", [Step("callback"), Step("restart", "poll")])
# A task route that does not know the task for as long as the hint is kept.
@example(
    ["503", "taken"], "confirm", [*map(Step, ("callback", "absent", "answer", *["run long"] * 8))]
)
def test_no_create_follows_a_proof_in_any_history(
    tmp_path: Path, answers: list[str], trust: str, steps: list[Step]
) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        asyncio.run(live(Path(folder), answers, trust, steps))
