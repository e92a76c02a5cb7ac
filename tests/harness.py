"""The whole service in one process, with a manual clock, a scripted upstream and subscribers."""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from service.app import App
from service.delivery.target import Answer, SendError, Target
from service.settings import Settings
from tests import engine

ADMIN_KEY = "ghk_" + "0123456789abcdef" * 3
START = 1_795_000_000_000
PUBLIC_URL = "http://127.0.0.1:9"
SUBSCRIBER_URL = "http://127.0.0.1:7/inbox"


class ManualClock:
    """A clock that stands still until a test advances it."""

    def __init__(self, now: int = START) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += round(seconds * 1_000)


class RunningClock(ManualClock):
    """A clock that goes on by itself: a rate is kept by waiting."""

    def __init__(self) -> None:
        super().__init__()
        self._began_at = time.monotonic()

    def __call__(self) -> int:
        return self.now + round((time.monotonic() - self._began_at) * 1_000)


Reply = httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]


class Upstream:
    """A scripted upstream: its replies in order, then a default; it records every request."""

    def __init__(self) -> None:
        self.creates: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.polls: list[str] = []
        self.create_replies: deque[Reply] = deque()
        self.poll_replies: deque[Reply] = deque()
        self.tasks: dict[str, dict[str, Any]] = {}
        self.on_create: Callable[[dict[str, Any]], httpx.Response] | None = None
        self.on_poll: Callable[[str], object] = lambda _task_id: None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            body = msgspec.json.decode(request.content)
            self.creates.append(body)
            self.paths.append(request.url.path)
            if self.on_create:
                return self.on_create(body)
            if self.create_replies:
                return self._play(self.create_replies.popleft(), request)
            return httpx.Response(200, json=create_answer(f"task{len(self.creates)}"))
        task_id = request.url.params.get("task_id") or request.url.path.rpartition("/")[2]
        self.polls.append(task_id)
        self.on_poll(task_id)
        if self.poll_replies:
            return self._play(self.poll_replies.popleft(), request)
        data = self.tasks.get(task_id, {"status": "IN_PROGRESS"})
        return httpx.Response(200, json={"code": 200, "data": {"task_id": task_id, **data}})

    @staticmethod
    def _play(reply: Reply, request: httpx.Request) -> httpx.Response:
        if isinstance(reply, Exception):
            raise reply
        return reply if isinstance(reply, httpx.Response) else reply(request)

    def callback_url(self, index: int = -1) -> str:
        url: str = self.creates[index]["callback_url"]
        return url

    def finish(self, task_id: str, url: str = "https://cdn.example/1.png") -> None:
        self.tasks[task_id] = {"status": "completed", "output": {"image_urls": [url]}}

    def fail(self, task_id: str, message: str = "no such luck") -> None:
        self.tasks[task_id] = {"status": "failed", "error": {"code": "bad", "message": message}}


def create_answer(task_id: str) -> dict[str, Any]:
    """Return upstream's answer to an accepted create request."""
    data = {"task_id": task_id, "status": "IN_PROGRESS"}
    return {"code": 200, "message": "success", "data": data}


def success_report(task_id: str, url: str = "https://cdn.example/1.png") -> dict[str, Any]:
    """Return a body with which upstream reports success, as callback or as answer to a poll."""
    data = {"task_id": task_id, "status": "completed", "output": {"image_urls": [url]}}
    return {"code": 200, "message": "success", "data": data}


class SentWebhook(msgspec.Struct):
    """One webhook that was sent to a subscriber."""

    url: str
    headers: dict[str, str]
    body: bytes
    at: int

    @property
    def event(self) -> dict[str, Any]:
        decoded: dict[str, Any] = msgspec.json.decode(self.body)
        return decoded


class Subscribers:
    """Scripted subscribers: each URL has its answers in order, then 200. Records every webhook."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.webhooks: list[SentWebhook] = []
        self.answers: dict[str, deque[Any]] = defaultdict(deque)
        self.on_send: Callable[[str, str, bytes], int | SendError] | None = None

    async def send(
        self, target: Target, headers: Mapping[str, str], body: bytes, deadline_seconds: float
    ) -> Answer:
        assert deadline_seconds > 0
        self.webhooks.append(SentWebhook(target.url, dict(headers), body, self.clock()))
        queue = self.answers[target.url]
        answer = queue.popleft() if queue else 200
        if self.on_send:
            answer = self.on_send(target.url, headers["webhook-id"], body)
        if isinstance(answer, SendError):
            raise answer
        if callable(answer):
            answer = await answer()
        return answer if isinstance(answer, Answer) else Answer(answer, (), b"")

    def webhooks_to(self, url: str = SUBSCRIBER_URL) -> list[SentWebhook]:
        return [webhook for webhook in self.webhooks if webhook.url == url]

    def event_types(self, url: str = SUBSCRIBER_URL) -> list[str]:
        return [webhook.event["type"] for webhook in self.webhooks_to(url)]


class Harness:
    """The service under test, with its clock, upstream and subscribers."""

    def __init__(self, settings: Settings, clock: ManualClock) -> None:
        self.clock = clock
        self.upstream = Upstream()
        self.subscribers = Subscribers(clock)
        self.settings = settings
        self.app = self.new_app()
        self.client = self.new_client(ADMIN_KEY)
        # Sends no key, as upstream does for callbacks.
        self.anonymous = httpx.AsyncClient(transport=httpx.ASGITransport(self._asgi))

    async def _asgi(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)

    def new_app(self) -> App:
        return App(
            self.settings,
            clock=self.clock,
            jitter=lambda: 0.0,
            transport=lambda: httpx.MockTransport(self.upstream),
            sender=self.subscribers,
        )

    def new_client(self, key: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(self._asgi),
            base_url="http://genhook",
            headers={"authorization": f"Bearer {key}"},
        )

    async def restart(self) -> None:
        """Stop the service cleanly and start it again on the same database."""
        await self.app.stop()
        self.app = self.new_app()
        await self.app.start(worker=False)

    async def run(self, seconds: float = 0) -> None:
        """Advance the clock, then do all due work, but wait for no client's submission."""
        self.clock.advance(seconds)
        assert self.app.worker is not None
        if self.app.worker.submitter.in_flight:
            await self.app.worker.ticks._work(asyncio.get_running_loop().time() + 60)
        else:
            await self.app.worker.tick(60)

    async def subscribe(self, url: str = SUBSCRIBER_URL, /, **fields: Any) -> dict[str, Any]:
        answer = await self.client.post("/v1/subscribers", json={"url": url, **fields})
        assert answer.status_code == 201, answer.text
        subscriber: dict[str, Any] = answer.json()
        return subscriber

    async def generate(self, model: str = "imagen4", /, **fields: Any) -> dict[str, Any]:
        body = {"model": model, "input": {"prompt": "a small harbour"}, **fields}
        answer = await self.client.post("/v1/generations", json=body)
        assert answer.status_code == 202, answer.text
        generation: dict[str, Any] = answer.json()
        return generation

    async def get(self, path: str, /, **query: Any) -> dict[str, Any]:
        answer = await self.client.get(path, params=query)
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    async def call_back(self, body: Any = None, index: int = -1, **options: Any) -> httpx.Response:
        """POST a callback to the URL of a create request; without `body`, it reports success."""
        url = self.upstream.callback_url(index)
        assert urlsplit(url).path.startswith("/callbacks/apiinone/")
        if "content" not in options:
            options["json"] = (
                success_report(f"task{len(self.upstream.creates)}") if body is None else body
            )
        return await self.anonymous.post(url, **options)


def settings(path: Path, **overrides: Any) -> Settings:
    """Return settings for tests: subscribers may use plain http and loopback addresses."""
    defaults: dict[str, Any] = {
        "database_path": engine.database_of(path),
        "secret_keys": ("s" * 32,),
        "admin_key": ADMIN_KEY,
        "upstream_url": "http://upstream.test/api/v1",
        "upstream_api_key": "aio_upstream_key",
        "public_url": PUBLIC_URL,
        "allow_http": True,
        "allow_networks": (ip_network("127.0.0.0/8"),),
    }
    return Settings(**{**defaults, **overrides})


@asynccontextmanager
async def started(harness: Harness, **options: Any) -> AsyncIterator[Harness]:
    """Run a service; `options` are those of `App.start`."""
    await harness.app.start(**options)
    try:
        yield harness
    finally:
        await harness.client.aclose()
        await harness.anonymous.aclose()
        await harness.app.stop()


def opened(path: Path, **overrides: Any) -> AbstractAsyncContextManager[Harness]:
    """Run the service on a database below `path`, without worker loops: `run` does due work."""
    return started(Harness(settings(path, **overrides), ManualClock()), worker=False)
