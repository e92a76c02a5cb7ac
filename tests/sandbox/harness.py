"""A sandbox in this process: the test controls its sleeps and receives its callbacks."""

import asyncio
import dataclasses
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from starlette.applications import Starlette

from service.sandbox import create_app
from service.sandbox.tasks import Sandbox, Task

NOW = 1_790_000_000_000
CALLBACK_URL = "http://receiver.example/callbacks/apiinone/ImGenuine"
KEY = {"Authorization": "Bearer aio_test"}
PROMPT = "A lighthouse at dusk"


@dataclasses.dataclass
class ReceivedCallback:
    """One callback, with the status of the newest task when it arrived."""

    path: str
    content: bytes
    task_status: str

    @property
    def data(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.content)["data"]
        return answer


@dataclasses.dataclass
class SandboxHarness:
    """A running sandbox and a client for it.

    sleeps: the seconds of each sleep. wake: ends all sleeps. callbacks: all that were received.
    answers: the next answers to callbacks; 204 once it is empty.
    """

    sleeps: list[float] = dataclasses.field(default_factory=list)
    wake: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    callbacks: list[ReceivedCallback] = dataclasses.field(default_factory=list)
    answers: list[int | Exception] = dataclasses.field(default_factory=list)
    app: Starlette = dataclasses.field(init=False)
    client: httpx.AsyncClient = dataclasses.field(init=False)

    @property
    def sandbox(self) -> Sandbox:
        sandbox: Sandbox = self.app.state.sandbox
        return sandbox

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        await self.wake.wait()

    def receive(self, request: httpx.Request) -> httpx.Response:
        newest = list(self.sandbox.tasks.values())[-1]
        self.callbacks.append(ReceivedCallback(request.url.path, request.content, newest.status))
        answer = self.answers.pop(0) if self.answers else 204
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer)

    async def create(
        self, path: str = "/images/generations", *, directives: str = "", **fields: Any
    ) -> httpx.Response:
        """POST a request for imagen4, with `fields` changed and `directives` in the prompt."""
        prompt = f"{PROMPT} [sandbox: {directives}]" if directives else PROMPT
        body = {"model": "imagen4", "prompt": prompt, "callback_url": CALLBACK_URL, **fields}
        sent_body = {field: value for field, value in body.items() if value is not None}
        return await self.client.post(f"/api/v1{path}", json=sent_body, headers=KEY)

    async def poll(self, task_id: str) -> httpx.Response:
        return await self.client.get(f"/api/v1/tasks/{task_id}", headers=KEY)

    async def settle(self) -> None:
        """End all sleeps, and wait until no work is left."""
        self.wake.set()
        await asyncio.gather(*[task.work for task in self.sandbox.tasks.values() if task.work])

    async def finish(self, **fields: Any) -> Task:
        """Create a task, wait until its work is done and return it."""
        response = await self.create(**fields)
        assert response.status_code == 200, response.text
        await self.settle()
        return list(self.sandbox.tasks.values())[-1]


@asynccontextmanager
async def running_sandbox(**options: Any) -> AsyncIterator[SandboxHarness]:
    """Run a sandbox with these options of `create_app`."""
    harness = SandboxHarness()
    numbers = map("{:04}".format, itertools.count(1))
    harness.app = create_app(
        sleep=harness.sleep,
        now=lambda: NOW,
        random_part=lambda: next(numbers),
        transport=httpx.MockTransport(harness.receive),
        **options,
    )
    transport = httpx.ASGITransport(harness.app)
    async with (
        harness.app.router.lifespan_context(harness.app),
        httpx.AsyncClient(transport=transport, base_url="http://sandbox.example") as harness.client,
    ):
        yield harness
