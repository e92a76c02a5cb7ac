"""Tasks as upstream keeps them, and the state of one sandbox; both bounded."""

import asyncio
import collections
import dataclasses
import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx

from service.model import clock
from service.sandbox.misbehaviour import Misbehaviour
from service.sandbox.models import Model
from service.sandbox.parameters import Body, count_of

RUNNING = "IN_PROGRESS"
COMPLETED = "completed"
FAILED = "failed"
UNKNOWN_WORD = "daydreaming"

Sleep = Callable[[float], Awaitable[None]]
Entry = TypeVar("Entry")


@dataclasses.dataclass(slots=True)
class Task:
    """One task; `poll_script` has the answers of its next polls: a status code, or a false word."""

    id: str
    model: Model
    body: Body
    prompt: str
    misbehaviour: Misbehaviour
    base_url: str
    created_at: int
    poll_script: collections.deque[int | str]
    status: str = RUNNING
    completed_at: int | None = None
    called_back: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    work: asyncio.Task[None] | None = None

    @property
    def callback_url(self) -> str | None:
        """Where it reports to; None for the models that are only polled."""
        return self.body.get("callback_url") if self.model.callbacks else None

    @property
    def file_urls(self) -> list[str]:
        """Where its results are, from the start: they are drawn when somebody reads them."""
        numbers = range(1, count_of(self.model, self.body) + 1)
        return [f"{self.base_url}/files/{self.id}/{n}.{self.model.makes}" for n in numbers]


@dataclasses.dataclass(frozen=True, slots=True)
class CallbackSent:
    """One HTTP try of a callback; no `status_code` if there was no answer."""

    task_id: str
    url: str
    body: bytes
    status_code: int | None
    forged: bool


@dataclasses.dataclass(slots=True)
class Sandbox:
    """All state: what tests look at (`creates`, `callbacks_sent`, `polls`) and what drives it.

    A request with one of `unfunded_keys` is answered 402. The oldest entries beyond `keep` go.
    """

    base_url: str | None
    api_key: str | None
    speed: float
    sleep: Sleep
    now: clock.Clock
    token: Callable[[], str]
    client: httpx.AsyncClient
    keep: int
    tasks: dict[str, Task] = dataclasses.field(default_factory=dict)
    creates: list[Body] = dataclasses.field(default_factory=list)
    callbacks_sent: list[CallbackSent] = dataclasses.field(default_factory=list)
    polls: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    unfunded_keys: set[str] = dataclasses.field(default_factory=set)
    limited: dict[str, bool] = dataclasses.field(default_factory=dict)

    async def pause(self, seconds: float) -> None:
        """Sleep `seconds` of upstream's time."""
        if seconds > 0:
            await self.sleep(seconds / self.speed)


def remember(sandbox: Sandbox, entries: list[Entry], entry: Entry) -> None:
    """Append to one of the sandbox's records."""
    entries.append(entry)
    del entries[: -sandbox.keep]


def take(sandbox: Sandbox, task: Task) -> None:
    """Keep a new task; the oldest beyond the limit is dropped with whatever it was still doing."""
    sandbox.tasks[task.id] = task
    while len(sandbox.tasks) > sandbox.keep:
        oldest = sandbox.tasks.pop(next(iter(sandbox.tasks)))
        sandbox.polls.pop(oldest.id, None)
        if oldest.work is not None:
            oldest.work.cancel()


def poll_script(asked: Misbehaviour) -> collections.deque[int | str]:
    """The answers that polls get before they hear the truth, in order."""
    refused = [429] * asked.rate_limit + [500] * asked.polls_fail
    return collections.deque([*refused, *[UNKNOWN_WORD] * (2 * asked.unknown_word)])


def is_limited(sandbox: Sandbox, body: Body) -> bool:
    """Every second time the same request comes, but for its callback_url, it is let through."""
    same = {field: value for field, value in body.items() if field != "callback_url"}
    digest = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()
    if sandbox.limited.pop(digest, False):
        return False
    sandbox.limited[digest] = True
    while len(sandbox.limited) > sandbox.keep:
        del sandbox.limited[next(iter(sandbox.limited))]
    return True
