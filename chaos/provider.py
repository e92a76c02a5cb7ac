"""An API in One on a bad day: it takes or refuses tasks, is slow or silent, and calls back."""

import asyncio
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from chaos.wire import Pulse, Request, build_answer, hang

# What becomes of a create request, by weight; all but `busy` and `refused` make a task.
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
SURELY_NOT_TAKEN = ("busy",)  # Only after these may a submission be sent again.
SILENT_SECONDS = 6.0
CALLBACK_SECONDS = 25.0


@dataclass
class Task:
    """A task, and the state in which it will end."""

    id: str
    prompt: str
    callback_url: str | None
    final_status: str
    is_over: bool = False
    reported: set[str] = field(default_factory=set)  # Final statuses that upstream has reported.

    def data(self) -> dict[str, Any]:
        """Report the task's present state."""
        if self.is_over:
            self.reported.add(self.final_status)
        data: dict[str, Any] = {"task_id": self.id, "status": "IN_PROGRESS"}
        if self.is_over and self.final_status == "completed":
            url = f"https://cdn.example/{self.id}.png"
            data.update(status="completed", output={"image_urls": [url]})
        elif self.is_over:
            data.update(status="failed", error={"code": "unlucky", "message": "no such luck"})
        return data


class Provider:
    """The upstream of a world; all that is random comes from `rng`."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.creates: defaultdict[str, list[str]] = defaultdict(list)  # Outcomes by prompt.
        self.tasks: dict[str, Task] = {}
        self.acknowledged: set[bytes] = set()  # Bodies that were answered 2xx; no two are equal.
        self.wrong_answers: list[str] = []
        self.faults: Counter[str] = Counter()
        self.weights = dict(CREATES)
        self.hangs = False  # Nothing is answered, and no task is made.
        self.forged_share = 0.1  # The share of tasks for which a forged callback is sent.
        self.loop = asyncio.get_running_loop()
        # What the service's clock has shown since a time of `time.monotonic`.
        self.clocks: Callable[[float], list[float]] = lambda _since: [time.time()]
        self.pulse = Pulse()
        self.polled: list[tuple[float, float]] = []  # After when and when, by `time.monotonic`.
        self._numbers = 0
        self._creating = 0  # Create requests that are not answered yet.
        self._running: set[asyncio.Task[Any]] = set()
        self.outside = httpx.AsyncClient(trust_env=False, timeout=5)

    async def close(self) -> None:
        """Cancel all work and callbacks."""
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self.outside.aclose()

    async def settle(self) -> None:
        """Wait until every callback was acknowledged or given up."""
        while self._running:
            await asyncio.wait(list(self._running))

    async def __call__(self, request: Request) -> bytes | None:
        """Answer a create request or a poll; the handler of a `wire` server."""
        if self.hangs:
            await hang()
            return None
        if request.method != "POST":
            return await self.status(request)
        self._creating += 1
        try:
            return await self.create(json.loads(request.body))
        finally:
            self._creating -= 1

    @property
    def is_busy(self) -> bool:
        """Whether a task, a callback or an answer to a create request is still to come."""
        return bool(self._running or self._creating)

    async def create(self, body: dict[str, Any]) -> bytes | None:
        """Take the request or refuse it, by the weights."""
        [outcome] = self.rng.choices([*self.weights], [*self.weights.values()])
        prompt = body["prompt"]
        self.creates[prompt].append(outcome)
        if outcome != "taken":
            self.faults[f"create {outcome}"] += 1
        if outcome == "busy":
            error = {"error": {"code": 429}}
            return build_answer(self.rng.choice((429, 503)), error, retry_after="1")
        if outcome == "refused":
            return build_answer(402, {"error": {"code": 402, "message": "no credits"}})
        task = self.start_task(prompt, body.get("callback_url"))
        return await self.answer_create(outcome, task)

    async def answer_create(self, outcome: str, task: Task) -> bytes | None:
        """Answer a create request whose task exists, properly or not."""
        if outcome == "slow":
            if task.callback_url and self.rng.random() < 0.5:
                self.spawn(self.send_callback(task, None))
            await asyncio.sleep(self.rng.uniform(0.1, 0.6))
        elif outcome == "silent":
            await asyncio.sleep(SILENT_SECONDS)
        elif outcome == "closed":
            return None
        elif outcome == "broken":
            return build_answer(500, {"error": {"code": 500, "message": "oops"}})
        return build_answer(200, {"code": 200, "message": "success", "data": task.data()})

    def start_task(self, prompt: str, callback_url: str | None) -> Task:
        """Make a task and start to work on it."""
        final_status = "completed" if self.rng.random() < 0.8 else "failed"
        task = Task(f"task-{len(self.tasks)}-{prompt}", prompt, callback_url, final_status)
        self.tasks[task.id] = task
        self.spawn(self.work(task))
        return task

    def spawn(self, work: Any) -> None:
        """Run a coroutine until it ends or the provider is closed."""
        running = asyncio.create_task(work)
        self._running.add(running)
        running.add_done_callback(self._running.discard)

    async def status(self, request: Request) -> bytes | None:
        """Answer a poll."""
        self.polled.append((self.pulse.since, time.monotonic()))
        query = dict(part.split("=") for part in urlsplit(request.path).query.split("&") if part)
        task_id = query.get("task_id") or request.path.rpartition("/")[2]
        task = self.tasks.get(task_id)
        if task is None:
            return build_answer(404, {"error": {"code": 404, "message": "no such task"}})
        return await self.answer_status(task)

    async def answer_status(self, task: Task) -> bytes | None:
        """Answer a poll with the task's state."""
        return build_answer(200, {"code": 200, "message": "success", "data": task.data()})

    async def work(self, task: Task) -> None:
        """End the task after a while, and send callbacks."""
        await asyncio.sleep(self.rng.uniform(0.02, 0.8))
        if task.callback_url and self.rng.random() < 0.3:
            self.spawn(self.send_callback(task, task.data()))
        await asyncio.sleep(self.rng.uniform(0.02, 0.5))
        task.is_over = True
        if task.callback_url:
            await self.send_final_callbacks(task)

    async def send_final_callbacks(self, task: Task) -> None:
        """Report the end by callback: mostly once, sometimes twice, rarely not at all."""
        if self.rng.random() < self.forged_share:
            self.faults["callback forged"] += 1
            self.spawn(self.send_forged_callback(task))
        draw = self.rng.random()
        if draw < 0.08:
            self.faults["callback lost"] += 1
            return
        if draw < 0.25:
            self.faults["callback twice"] += 1
            self.spawn(self.send_callback(task, task.data()))
        await self.send_callback(task, task.data())

    async def send_callback(self, task: Task, data: dict[str, Any] | None) -> bool:
        """Send a callback until it is acknowledged, and return whether it was.

        An unreadable one where `data` is None.
        """
        assert task.callback_url is not None
        self._numbers += 1
        body = {"code": 200, "message": "success", "data": data, "number": self._numbers}
        content = json.dumps(body).encode()
        if data is None:
            self.faults["callback unreadable"] += 1
            content = b"<html>" + content
        ends_at, pause = self.loop.time() + CALLBACK_SECONDS, 0.05
        while self.loop.time() < ends_at:
            began = time.monotonic()
            with suppress(httpx.TransportError):
                answer = await self.outside.post(task.callback_url, content=content)
                if 200 <= answer.status_code < 300:
                    self.acknowledged.add(content)
                    return True
                if answer.status_code == 404 and self.is_expired(task.callback_url, began):
                    self.faults["callback expired"] += 1
                    return False
                if answer.status_code < 500:
                    self.wrong_answers.append(f"callback {content[:200]!r}: {answer.status_code}")
                    return False
            await asyncio.sleep(pause)
            pause = min(pause * 1.6, 1.0)
        return False

    def is_expired(self, callback_url: str, since: float) -> bool:
        """Return whether the URL's token had expired by what the service's clock has shown since.

        A URL that was minted while the clock was weeks behind has, once the clock is right.
        """
        expires_at = int(callback_url.rpartition(".")[0].rpartition(".")[2])
        return max(self.clocks(since)) >= expires_at

    async def send_forged_callback(self, task: Task) -> None:
        """Send a callback with a guessed token: the answer must be 404 and the body ignored."""
        assert task.callback_url is not None
        data = {
            "task_id": task.id,
            "status": "completed",
            "output": {"image_urls": [f"https://{FORGED_HOST}/1.png"]},
        }
        with suppress(httpx.TransportError):
            answer = await self.outside.post(task.callback_url[:-4] + "AAAA", json={"data": data})
            if answer.status_code < 500 and answer.status_code != 404:
                self.wrong_answers.append(f"forged callback: {answer.status_code}")
