"""An upstream that takes what it refused, speaks of other tasks, and lags behind itself."""

import asyncio
import random
from typing import Any

from chaos.provider import Provider, Task
from chaos.wire import Request, build_answer

CREATES = {"taken": 8, "denied": 4, "stranger": 3, "busy": 2, "closed": 2}
LAG_SECONDS = 2.0  # For so long its task route does not know yet what its callback has reported.
STORM_SECONDS, CALM_SECONDS = 1.5, 3.0  # Of 429 for everything, and in between.
STRANGER_SHARE = 0.2  # Of the answers to polls, and of the callbacks.
REPEATED_MAX = 5
# A create request that was under way when the proof came may arrive so late. What was denied may be
# sent again only later than that.
AFTER_SECONDS, DENIED_SECONDS = 1.5, 2


class LaggingProvider(Provider):
    """A provider that tells the truth in the end, to those who ask often enough."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.weights = dict(CREATES)
        self.forged_share = 0.0
        self.lags_until: dict[str, float] = {}  # By task.
        self.proved_at: dict[
            str, float
        ] = {}  # When the first callback was acknowledged, by prompt.
        self.created_after: list[str] = []  # Prompts that were sent again after that.

    @property
    def is_in_storm(self) -> bool:
        """Whether everything is answered with 429 now."""
        return self.loop.time() % (STORM_SECONDS + CALM_SECONDS) < STORM_SECONDS

    async def __call__(self, request: Request) -> bytes | None:
        """Answer a create request or a poll; in a storm with 429."""
        if self.is_in_storm and not self.hangs and request.method == "GET":
            self.faults["poll in a storm"] += 1
            return build_answer(429, {"error": {"code": 429}}, retry_after="1")
        return await super().__call__(request)

    async def create(self, body: dict[str, Any]) -> bytes | None:
        """Take the request or not, and say so or not."""
        prompt, has_callback = body["prompt"], bool(body.get("callback_url"))
        proved_at = self.proved_at.get(prompt)
        if proved_at is not None and self.loop.time() > proved_at + AFTER_SECONDS:
            self.created_after.append(prompt)
        [outcome] = self.rng.choices([*self.weights], [*self.weights.values()])
        if self.is_in_storm:
            outcome = "busy"
        if not has_callback and outcome in ("denied", "stranger"):
            outcome = "taken"  # There would be no way to know the task.
        self.faults[f"create {outcome}"] += outcome != "taken"
        # What is denied looks like `busy`: it may be sent again until there is a proof.
        self.creates[prompt].append("busy" if outcome == "denied" else outcome)
        if outcome == "busy":
            return build_answer(429, {"error": {"code": 429}}, retry_after="1")
        task = self.start_task(prompt, body.get("callback_url"))
        if outcome == "denied":
            self.spawn(self.send_callback(task, {"task_id": task.id, "status": "IN_PROGRESS"}))
            return build_answer(503, {"error": {"code": 503}}, retry_after=f"{DENIED_SECONDS}")
        if outcome == "stranger" and (other := self._choose_other(task)):
            return build_answer(200, {"code": 200, "data": other.data()})
        return await self.answer_create(outcome, task)

    def start_task(self, prompt: str, callback_url: str | None) -> Task:
        """Make a task; a second one of a prompt ends like the first."""
        first = next((task for task in self.tasks.values() if task.prompt == prompt), None)
        task = super().start_task(prompt, callback_url)
        if first is not None:
            task.final_status, task.reported = first.final_status, first.reported
        return task

    def _choose_other(self, task: Task) -> Task | None:
        """Return a task of another prompt that is over, if genhook was told of one."""
        others = [
            each
            for each in self.tasks.values()
            if each.is_over
            and each.prompt != task.prompt
            and self.creates[each.prompt][-1] == "taken"
        ]
        return self.rng.choice(others) if others else None

    async def answer_status(self, task: Task) -> bytes | None:
        """Answer a poll: behind the callback, about another task, or honestly."""
        if self.loop.time() < self.lags_until.get(task.id, 0.0):
            self.faults["poll behind the callback"] += 1
            if self.rng.random() < 0.3:
                return build_answer(404, {"error": {"code": 404, "message": "no such task"}})
            data = {"task_id": task.id, "status": "IN_PROGRESS"}
            return build_answer(200, {"code": 200, "data": data})
        if self.rng.random() < STRANGER_SHARE and (other := self._choose_other(task)):
            self.faults["poll about another task"] += 1
            return build_answer(200, {"code": 200, "data": other.data()})
        return await super().answer_status(task)

    async def send_final_callbacks(self, task: Task) -> None:
        """Report the end some times over, sometimes after the end of another task."""
        self.lags_until[task.id] = self.loop.time() + LAG_SECONDS
        if self.rng.random() < STRANGER_SHARE and (other := self._choose_other(task)):
            self.faults["callback about another task"] += 1
            await self.send_callback(task, other.data())
        count = self.rng.randint(1, REPEATED_MAX)
        self.faults["callback repeated"] += count - 1
        await asyncio.gather(*(self.send_callback(task, task.data()) for _ in range(count)))

    async def send_callback(self, task: Task, data: dict[str, Any] | None) -> bool:
        """Send a callback until it is acknowledged, and note when that was."""
        is_acknowledged = await super().send_callback(task, data)
        is_own = data is not None and data["task_id"] == task.id
        if is_acknowledged and is_own and task.prompt not in self.proved_at:
            self.proved_at[task.prompt] = self.loop.time()
        return is_acknowledged
