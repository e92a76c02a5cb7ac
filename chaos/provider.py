"""API in One as it is on a bad day: it takes, refuses, stays silent, and calls back until heard."""

import asyncio
import json
import random
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from chaos.wire import Request, answer

CREATES = {
    "taken": 12,
    "slow": 3,
    "busy": 2,
    "refused": 1,
    "silent": 1,
    "closed": 1,
    "broken": 1,
}
FORGED_HOST = "forged.example"
SURE_NOT_TAKEN = ("busy",)
SILENT_SECONDS = 6.0
CALL_SECONDS = 25.0


@dataclass
class Task:
    """Upstream's job for one generation, and how it will end."""

    id: str
    prompt: str
    callback_url: str | None
    ends: str
    is_over: bool = False
    said: set[str] = field(default_factory=set)  # The ends that upstream has told of.

    def data(self) -> dict[str, Any]:
        """What upstream says of it now."""
        if self.is_over:
            self.said.add(self.ends)
        said: dict[str, Any] = {"task_id": self.id, "status": "IN_PROGRESS"}
        if self.is_over and self.ends == "completed":
            url = f"https://cdn.example/{self.id}.png"
            said.update(status="completed", output={"image_urls": [url]})
        elif self.is_over:
            said.update(status="failed", error={"code": "unlucky", "message": "no such luck"})
        return said


class Provider:
    """The upstream of one world; what it drew is drawn from `lots` alone."""

    def __init__(self, lots: random.Random) -> None:
        self.lots = lots
        self.creates: defaultdict[str, list[str]] = defaultdict(list)  # Prompt to outcomes.
        self.tasks: dict[str, Task] = {}
        self.acknowledged: set[bytes] = set()  # Bodies that were answered 2xx; no two are equal.
        self.wrong_answers: list[str] = []
        self.faults: Counter[str] = Counter()
        self.weights = dict(CREATES)
        self.forges = 0.1  # The share of tasks about which somebody forges a callback.
        self.loop = asyncio.get_running_loop()
        self._numbers = 0
        self._running: set[asyncio.Task[Any]] = set()
        self.outside = httpx.AsyncClient(trust_env=False, timeout=5)

    async def close(self) -> None:
        """Call nobody back any more."""
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self.outside.aclose()

    async def settle(self) -> None:
        """Wait until every callback was heard or given up."""
        while self._running:
            await asyncio.wait(list(self._running))

    async def __call__(self, request: Request) -> bytes | None:
        """Answer a create or a question."""
        if request.method == "POST":
            return await self.create(json.loads(request.body))
        return await self.status(request)

    async def create(self, body: dict[str, Any]) -> bytes | None:
        """Take the request, or not, by lot."""
        [outcome] = self.lots.choices([*self.weights], [*self.weights.values()])
        prompt = body["prompt"]
        self.creates[prompt].append(outcome)
        if outcome != "taken":
            self.faults[f"create {outcome}"] += 1
        if outcome == "busy":
            return answer(self.lots.choice((429, 503)), {"error": {"code": 429}}, retry_after="1")
        if outcome == "refused":
            return answer(402, {"error": {"code": 402, "message": "no credits"}})
        task = self.take(prompt, body.get("callback_url"))
        return await self.answer_create(outcome, task)

    async def answer_create(self, outcome: str, task: Task) -> bytes | None:
        """What upstream says once it has taken a request: the task, or less."""
        if outcome == "slow":
            if task.callback_url and self.lots.random() < 0.5:
                self.spawn(self.call(task, None))
            await asyncio.sleep(self.lots.uniform(0.1, 0.6))
        elif outcome == "silent":
            await asyncio.sleep(SILENT_SECONDS)
        elif outcome == "closed":
            return None
        elif outcome == "broken":
            return answer(500, {"error": {"code": 500, "message": "oops"}})
        return answer(200, {"code": 200, "message": "success", "data": task.data()})

    def take(self, prompt: str, callback_url: str | None) -> Task:
        """Make a task, and work on it."""
        ends = "completed" if self.lots.random() < 0.8 else "failed"
        task = Task(f"task-{len(self.tasks)}-{prompt}", prompt, callback_url, ends)
        self.tasks[task.id] = task
        self.spawn(self.work(task))
        return task

    def spawn(self, work: Any) -> None:
        """Run something until it ends or this provider is closed."""
        running = asyncio.create_task(work)
        self._running.add(running)
        running.add_done_callback(self._running.discard)

    async def status(self, request: Request) -> bytes | None:
        """Say how the task is doing."""
        query = dict(part.split("=") for part in urlsplit(request.path).query.split("&") if part)
        task_id = query.get("task_id") or request.path.rpartition("/")[2]
        task = self.tasks.get(task_id)
        if task is None:
            return answer(404, {"error": {"code": 404, "message": "no such task"}})
        return await self.answer_status(task)

    async def answer_status(self, task: Task) -> bytes | None:
        """The truth about a task."""
        return answer(200, {"code": 200, "message": "success", "data": task.data()})

    async def work(self, task: Task) -> None:
        """Finish the task after a while, and say so, as a provider does."""
        await asyncio.sleep(self.lots.uniform(0.02, 0.8))
        if task.callback_url and self.lots.random() < 0.3:
            self.spawn(self.call(task, task.data()))
        await asyncio.sleep(self.lots.uniform(0.02, 0.5))
        task.is_over = True
        if task.callback_url:
            await self.tell(task)

    async def tell(self, task: Task) -> None:
        """Call back about the end: twice at times, and seldom not at all."""
        if self.lots.random() < self.forges:
            self.faults["callback forged"] += 1
            self.spawn(self.forge(task))
        draw = self.lots.random()
        if draw < 0.08:
            self.faults["callback lost"] += 1
            return
        if draw < 0.25:
            self.faults["callback twice"] += 1
            self.spawn(self.call(task, task.data()))
        await self.call(task, task.data())

    async def call(self, task: Task, data: dict[str, Any] | None) -> None:
        """One callback, repeated until it is acknowledged, with growing pauses; None: garbage."""
        assert task.callback_url is not None
        self._numbers += 1
        body = {"code": 200, "message": "success", "data": data, "number": self._numbers}
        content = json.dumps(body).encode()
        if data is None:
            self.faults["callback unreadable"] += 1
            content = b"<html>" + content
        ends_at, pause = self.loop.time() + CALL_SECONDS, 0.05
        while self.loop.time() < ends_at:
            with suppress(httpx.TransportError):
                said = await self.outside.post(task.callback_url, content=content)
                if 200 <= said.status_code < 300:
                    self.acknowledged.add(content)
                    return
                if said.status_code < 500:
                    self.wrong_answers.append(f"callback {content[:200]!r}: {said.status_code}")
                    return
            await asyncio.sleep(pause)
            pause = min(pause * 1.6, 1.0)

    async def forge(self, task: Task) -> None:
        """Somebody who guesses: it must be told 404, and must not be believed."""
        assert task.callback_url is not None
        data = {
            "task_id": task.id,
            "status": "completed",
            "output": {"image_urls": [f"https://{FORGED_HOST}/1.png"]},
        }
        with suppress(httpx.TransportError):
            said = await self.outside.post(task.callback_url[:-4] + "AAAA", json={"data": data})
            if said.status_code < 500 and said.status_code != 404:
                self.wrong_answers.append(f"forged callback: {said.status_code}")
