"""The tasks and the state of one sandbox; its collections are limited, and tasks also in bytes."""

import asyncio
import collections
import dataclasses
import hashlib
import json
from collections.abc import Awaitable, Callable

import httpx

from service.model import clock
from service.sandbox.misbehaviour import Misbehaviour
from service.sandbox.models import SandboxModel
from service.sandbox.parameters import Body, count_of

RUNNING = "IN_PROGRESS"
COMPLETED = "completed"
FAILED = "failed"
TASKS_MAX = 10_000
TASKS_BYTES_MAX = 128 << 20  # Of the requests of all tasks.
UNKNOWN_WORD = "daydreaming"

Sleep = Callable[[float], Awaitable[None]]


@dataclasses.dataclass(slots=True)
class Task:
    """One task.

    poll_answers: the answers to the next polls, in order: error status codes, false status words.
    """

    id: str
    model: SandboxModel
    body: Body
    prompt: str
    misbehaviour: Misbehaviour
    base_url: str
    created_at: int
    poll_answers: collections.deque[int | str]
    size_bytes: int  # Of the request.
    status: str = RUNNING
    completed_at: int | None = None
    called_back: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    work: asyncio.Task[None] | None = None

    @property
    def callback_url(self) -> str | None:
        """Where to send callbacks; None if the model sends none."""
        return self.body.get("callback_url") if self.model.callbacks else None

    @property
    def file_urls(self) -> list[str]:
        """The URLs of the results. They work at once: files are drawn when they are read."""
        numbers = range(1, count_of(self.model, self.body) + 1)
        return [f"{self.base_url}/files/{self.id}/{n}.{self.model.extension}" for n in numbers]


@dataclasses.dataclass(slots=True)
class Sandbox:
    """The state of a sandbox. Each collection keeps its newest TASKS_MAX entries.

    tasks_bytes: the size of all their requests.
    rate_limited: digests of create requests that were answered with 429 and not yet repeated.
    """

    api_key: str | None
    speed: float
    sleep: Sleep
    now: clock.Clock
    random_part: Callable[[], str]
    client: httpx.AsyncClient
    tasks: dict[str, Task] = dataclasses.field(default_factory=dict)
    tasks_bytes: int = 0
    rate_limited: dict[str, bool] = dataclasses.field(default_factory=dict)

    async def pause(self, seconds: float) -> None:
        """Wait for `seconds` of simulated time."""
        if seconds > 0:
            await self.sleep(seconds / self.speed)


def add(sandbox: Sandbox, task: Task) -> None:
    """Store a new task; beyond the limits, drop the oldest tasks and cancel their work."""
    sandbox.tasks[task.id] = task
    sandbox.tasks_bytes += task.size_bytes
    while len(sandbox.tasks) > TASKS_MAX or sandbox.tasks_bytes > TASKS_BYTES_MAX:
        oldest = sandbox.tasks.pop(next(iter(sandbox.tasks)))
        sandbox.tasks_bytes -= oldest.size_bytes
        if oldest.work is not None:
            oldest.work.cancel()


def poll_answers(misbehaviour: Misbehaviour) -> collections.deque[int | str]:
    """Return the answers of the first polls: status codes, then false status words."""
    codes = [429] * misbehaviour.rate_limit + [500] * misbehaviour.polls_fail
    return collections.deque([*codes, *[UNKNOWN_WORD] * (2 * misbehaviour.unknown_word)])


def refuse_first_of_two(sandbox: Sandbox, body: Body) -> bool:
    """Record a create request; return whether to answer it with 429.

    The first of two equal requests is refused, the second accepted; callback_url is not compared.
    """
    fields = {field: value for field, value in body.items() if field != "callback_url"}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    if sandbox.rate_limited.pop(digest, False):
        return False
    sandbox.rate_limited[digest] = True
    while len(sandbox.rate_limited) > TASKS_MAX:
        del sandbox.rate_limited[next(iter(sandbox.rate_limited))]
    return True
