"""Every history of a generation follows TRANSITIONS and ends with one terminal event."""

import asyncio
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from service.model.event import EVENT_TYPE_OF
from service.model.generation import TERMINAL, TRANSITIONS
from tests import engine
from tests.faults import DelayedAnswer, crash, rows
from tests.harness import Harness, create_answer, opened, success_report
from tests.journeys.gates import check_erased

FINAL = ("generation.succeeded", "generation.failed", "generation.canceled")
ANSWERS: dict[str, httpx.Response | Exception] = {
    "taken": httpx.Response(200, json=create_answer("task1")),
    "lost": httpx.ReadTimeout("slow"),
    "refused": httpx.Response(422, json={"error": {"code": 422, "message": "no"}}),
    "at once": httpx.Response(
        200, json={"code": 200, "data": {"image_urls": ["https://c.test/0.png"]}}
    ),
}
BODIES: dict[str, Any] = {
    "progress": {"data": {"task_id": "task1", "status": "running"}},
    "success": success_report("task1"),
    "other success": success_report("task1", "https://cdn.example/2.png"),
    "failure": {"data": {"task_id": "task1", "status": "failed", "error": "changed its mind"}},
    "nonsense": b"\x00 not json",
    "odd word": {"data": {"task_id": "task1", "status": "PONDERING"}},
}
STATES: dict[str, Any] = {
    "running": {"status": "IN_PROGRESS"},
    "done": {"status": "completed", "output": {"image_urls": ["https://cdn.example/1.png"]}},
    "failed": {"status": "failed", "error": {"code": "bad", "message": "no luck"}},
}


class Step(NamedTuple):
    """An action on the generation: its kind, and which variant."""

    kind: str
    which: Any = None


def a_step(kind: str, *which: Any) -> st.SearchStrategy[Step]:
    return st.sampled_from([Step(kind, one) for one in which or (None,)])


STEPS = st.one_of(
    a_step("answer"),
    a_step("callback", *BODIES),
    a_step("upstream", *STATES),
    a_step("trouble", 429, 500, 404),
    a_step("run", 0, 1, 5, 61, 1_000, 3_601),
    a_step("refresh"),
    a_step("cancel"),
    a_step("cancel and call back", *BODIES),
    a_step("crash"),
    a_step("restart"),
    a_step("both", *BODIES),
)


def reachable(state: str) -> set[str]:
    """Return the state and every state that can follow it."""
    states = {state}
    for _ in TRANSITIONS:
        states |= {after for before in states for after in TRANSITIONS[before]}
    return states


class History:
    """One generation, checked after each step."""

    def __init__(self, world: Harness, answer: str) -> None:
        self.world = world
        self.create_answer = DelayedAnswer(ANSWERS[answer])
        self.request: asyncio.Task[httpx.Response] | None = None
        self.status = "queued"
        self.events: list[str] = []

    async def begin(self) -> None:
        self.world.upstream.create_replies.append(self.create_answer.reply)
        body = {"model": "imagen4", "input": {"prompt": "a small harbour"}}
        request = self.world.client.post("/v1/generations", json=body)
        self.request = asyncio.create_task(request)
        await self.create_answer.requested.wait()

    async def do(self, step: Step) -> None:
        world = self.world
        if step.kind == "answer":
            await self.answer()
        elif step.kind == "callback":
            await self.call_back(step.which)
        elif step.kind == "upstream":
            world.upstream.tasks["task1"] = STATES[step.which]
        elif step.kind == "trouble":
            world.upstream.poll_replies.append(httpx.Response(step.which))
        elif step.kind == "run":
            await world.run(step.which)
        elif step.kind == "refresh":
            [row] = await rows(world, "SELECT id FROM generations")
            await world.client.post(f"/v1/generations/{row['id']}/refresh")
        elif step.kind == "cancel":
            await self.cancel()
        elif step.kind == "cancel and call back":
            # The owner, upstream and a poll race on one loop.
            world.clock.advance(61)
            await asyncio.gather(world.run(), self.call_back(step.which), self.cancel())
        elif step.kind == "both":
            # A poll and a callback race on one loop.
            world.clock.advance(61)
            await asyncio.gather(world.run(), self.call_back(step.which), world.run())
        else:
            await (crash(world) if step.kind == "crash" else world.restart())
            await self.answer()

    async def answer(self) -> None:
        """Let upstream's answer arrive, if the request still waits for it."""
        self.create_answer.release()
        if self.request is not None:
            with suppress(asyncio.CancelledError):
                await self.request
        self.request = None

    async def cancel(self) -> None:
        """Cancel the generation; later reports, polls and deadlines must not change that."""
        [row] = await rows(self.world, "SELECT id FROM generations")
        answer = await self.world.client.post(f"/v1/generations/{row['id']}/cancel")
        assert answer.status_code in (200, 409)
        if answer.status_code == 200:
            assert answer.json()["status"] == "canceled"

    async def call_back(self, which: str) -> None:
        body = BODIES[which]
        options = {"content": body} if isinstance(body, bytes) else {"body": body}
        assert (await self.world.call_back(**options)).status_code == 200

    async def check(self) -> None:
        """Check the promises that hold after every step."""
        [row] = await rows(self.world, "SELECT id, status FROM generations")
        assert row["status"] in reachable(self.status)
        self.status = row["status"]
        events = await rows(self.world, "SELECT type FROM events ORDER BY id")
        types = [event["type"] for event in events]
        assert types[: len(self.events)] == self.events, "an event was changed or lost"
        self.events = types
        assert len(types) == len(set(types)), "an event came twice"
        assert sum(type_ in FINAL for type_ in types) <= 1
        if self.status != "queued":
            assert types[-1] == EVENT_TYPE_OF[self.status]
        if "generation.timed_out" in types and types[-1] in FINAL:
            assert types[-2] == "generation.timed_out"
        assert len(self.world.upstream.creates) == 1, "it was sent a second time"


async def live(path: Path, answer: str, trust: str, steps: Sequence[Step]) -> None:
    async with opened(path, callback_trust=trust, shutdown_seconds=0) as world:
        await world.subscribe()
        history = History(world, answer)
        await history.begin()
        await history.check()
        for step in steps:
            await history.do(step)
            await history.check()
        await history.answer()
        for seconds in (3_601, 0, 90_000, 90_000):
            await world.run(seconds)
            await history.check()
        assert history.status in TERMINAL
        event(f"{history.status} after {answer}")
        await check_end(world, history)


async def check_end(world: Harness, history: History) -> None:
    """Check that subscribers, the timeline and usage agree with the stored events.

    At last the generation is deleted: only its usage stays, whatever its history was.
    """
    [row] = await rows(world, "SELECT id FROM generations")
    sent = {each.headers["webhook-id"]: each.event["type"] for each in world.subscribers.webhooks}
    assert sorted(sent.values()) == sorted(history.events)
    timeline = (await world.get(f"/v1/generations/{row['id']}/timeline"))["data"]
    assert [entry["at"] for entry in timeline] == sorted(entry["at"] for entry in timeline)
    types = [entry["detail"]["type"] for entry in timeline if entry["type"] == "event"]
    assert types == history.events
    [usage] = await rows(world, "SELECT * FROM usage")
    counted = {name: usage[name] for name in TERMINAL if usage[name]}
    ends = [name for type_ in history.events if (name := type_.partition(".")[2]) in TERMINAL]
    assert counted == dict.fromkeys(ends[-1:], 1)
    assert (await world.client.delete(f"/v1/generations/{row['id']}")).status_code == 204
    await check_erased(world)
    assert await rows(world, "SELECT * FROM usage") == [usage]


HISTORIES = {
    "answer": st.sampled_from(sorted(ANSWERS)),
    "trust": st.sampled_from(["confirm", "body"]),
    "steps": st.lists(STEPS, max_size=10),
}


EXAMPLES = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,  # each example has a folder of its own below it
    ],
)


@settings(EXAMPLES, max_examples=6)
@given(**HISTORIES)
@example("taken", "body", [Step("answer"), Step("both", "failure"), Step("both", "success")])
def test_every_history_has_one_outcome_on_postgresql(
    postgres: engine.Schemas, tmp_path: Path, answer: str, trust: str, steps: list[Step]
) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        asyncio.run(live(Path(folder), answer, trust, steps))
    postgres.release()


@EXAMPLES
@given(**HISTORIES)
@example("taken", "body", [Step("answer"), Step("both", "failure"), Step("both", "success")])
@example("taken", "body", [Step("callback", "success"), Step("crash"), Step("callback", "failure")])
@example(
    "taken", "confirm", [Step("callback", "success"), Step("upstream", "done"), Step("run", 5)]
)
@example("lost", "body", [Step("answer"), Step("callback", "progress"), Step("upstream", "done")])
@example("taken", "body", [Step("run", 3_601), Step("callback", "success"), Step("answer")])
@example("refused", "body", [Step("callback", "success"), Step("answer")])
@example("taken", "body", [Step("cancel"), Step("callback", "success"), Step("answer")])
@example("lost", "confirm", [Step("callback", "success"), Step("cancel"), Step("crash")])
@example("taken", "confirm", [Step("answer"), Step("cancel and call back", "success")])
def test_every_history_has_one_outcome(
    tmp_path: Path, answer: str, trust: str, steps: list[Step]
) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        asyncio.run(live(Path(folder), answer, trust, steps))
