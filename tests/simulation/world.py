"""A world that a seed drives: clock, upstream, subscribers, and crashes around every commit.

On PostgreSQL the way to the server breaks at some COMMITs, too: before the message, or the answer.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from random import Random  # noqa: TID251  a simulation is its seed
from typing import Any

import httpx

from service.delivery.target import SendError
from service.model.errors import StorageError
from tests import engine
from tests.faults import crash, rows
from tests.harness import Harness, ManualClock, create_answer, settings, success_report
from tests.relay import Lost, Relay

MODELS = ("imagen4", "imagen4-fast", "ideogram-v3-turbo", "nobody-knows-this")
HOOKS = tuple(f"http://127.0.0.1:7/{name}" for name in ("healthy", "moody", "ordered"))
CONNECT = httpx.ConnectError("refused")
LOST = httpx.ReadTimeout("no answer")
LOSSES: tuple[Lost, ...] = ("message", "answer", *(None,) * 18)  # Of a COMMIT, each as likely.


class Dead(Exception):  # noqa: N818  it describes the process
    """The process died during an action."""


class World(Harness):
    """A service in a world of faults. Its seed makes every choice."""

    def __init__(self, path: Path, seed: int, relay: Relay | None = None) -> None:
        self.random = Random(seed)
        trust = self.random.choice(("confirm", "body"))
        options = {"callback_trust": trust, "deadline_seconds": 900, "shutdown_seconds": 0.0}
        if relay is not None:
            options["database_path"] = relay.url
        super().__init__(settings(path, **options), ManualClock())
        self.relay = relay
        self._network = Random(seed)  # So that other choices are those of SQLite.
        self.lost: Counter[Lost] = Counter()  # What was lost of COMMITs.
        self.prompts: list[str] = []
        self.generations: dict[str, str] = {}  # Prompt to id, if the client got an answer.
        self.takes: defaultdict[str, int] = defaultdict(
            int
        )  # Prompt to number of tasks at upstream.
        self.maybe_taken: set[str] = set()  # Prompts that upstream took or may have taken.
        self.repeated: list[
            str
        ] = []  # Prompts that were sent again although they may have been taken.
        self.acknowledged: list[tuple[str, bytes]] = []  # The prompts and bodies of callbacks.
        self.canceled: set[str] = set()  # Prompts.
        self.maybe_deleted: set[str] = set()  # Prompts.
        self.bodies: dict[str, bytes] = {}  # webhook-id to the body that came with it.
        self.delivered: defaultdict[str, set[str]] = defaultdict(set)  # URL to webhook-ids.
        self.changed_bodies: list[str] = []
        # Webhooks that were taken, with the number of crashes before: who crashed may send again.
        self._taken: dict[tuple[str, str], int] = {}
        self.sent_again: list[tuple[str, str]] = []
        self.crashes = 0
        self._crash_in: tuple[int, str] | None = None
        self._died = asyncio.Event()

    async def open(self) -> None:
        """Start the service and create three subscribers: healthy, moody and ordered."""
        await self.app.start(worker=False)
        for url in HOOKS:
            await self.subscribe(url, ordered=url.endswith("ordered"))
        self.upstream.on_create = self._create
        self.subscribers.on_send = self._receive
        self._arm()

    async def close(self) -> None:
        """Close the clients and stop the service."""
        await self.client.aclose()
        await self.anonymous.aclose()
        await self.app.stop()

    async def run(self, seconds: float = 0) -> None:
        """Advance the clock, then do all due work; what a lost COMMIT ends is due again later."""
        with suppress(StorageError) if self.relay else nullcontext():
            await super().run(seconds)

    async def step(self) -> str:
        """Run one random action, which a crash may end; return its name."""
        actions: list[tuple[int, Callable[[], Awaitable[object]]]] = [
            (5, self.submit),
            (5, self.finish_some),
            (6, self.call_back_some),
            (8, self.pass_time),
            (1, self.plan_crash),
            (1, self.cancel_one),
            (1, self.delete_one),
        ]
        weights = [weight for weight, _ in actions]
        [(_, action)] = self.random.choices(actions, weights)
        with suppress(Dead):
            await self.run_or_die(action())
        return action.__name__

    async def run_or_die(self, action: Awaitable[object]) -> None:
        """Run an action; if the process dies meanwhile, start a new one and raise Dead."""
        task = asyncio.ensure_future(action)
        died = asyncio.ensure_future(self._died.wait())
        await asyncio.wait({task, died}, return_when=asyncio.FIRST_COMPLETED)
        died.cancel()
        if self._died.is_set():
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task
            await self._restart_after_crash()
            raise Dead
        await task

    async def submit(self) -> None:
        """Create a generation; upstream may answer anything, or take it and not answer."""
        prompt = f"picture number {len(self.prompts)}"
        self.prompts.append(prompt)
        body = {"model": self.random.choice(MODELS), "input": {"prompt": prompt}}
        answer = await self.client.post("/v1/generations", json=body)
        if answer.status_code == 202:
            self.generations[prompt] = answer.json()["id"]
        else:
            assert answer.status_code in (402, 422, 502), answer.text

    async def finish_some(self) -> None:
        """Let upstream finish some of its tasks."""
        for task_id in list(self.upstream.tasks):
            if self.random.random() < 0.5 and "output" not in self.upstream.tasks[task_id]:
                ending = self.upstream.finish if self.random.random() < 0.7 else self.upstream.fail
                ending(task_id)

    async def cancel_one(self) -> None:
        """Cancel a generation, whatever became of it."""
        if not (prompts := self.generations.keys() - self.maybe_deleted):
            return
        prompt = self.random.choice(sorted(prompts))
        answer = await self.client.post(f"/v1/generations/{self.generations[prompt]}/cancel")
        assert answer.status_code in (200, 409), answer.text
        if answer.status_code == 200:
            self.canceled.add(prompt)

    async def delete_one(self) -> None:
        """Delete a generation, unless it is open; after a crash nobody knows if it is there."""
        if not (prompts := self.generations.keys() - self.maybe_deleted):
            return
        prompt = self.random.choice(sorted(prompts))
        self.maybe_deleted.add(prompt)
        answer = await self.client.delete(f"/v1/generations/{self.generations[prompt]}")
        assert answer.status_code in (204, 409), answer.text
        if answer.status_code == 409:
            self.maybe_deleted.discard(prompt)

    async def call_back_some(self) -> None:
        """Send a callback: true, repeated, early, late, unreadable or forged."""
        creates = [b for b in self.upstream.creates if "callback_url" in b and "task_id" in b]
        if not creates:
            return
        create = self.random.choice(creates)
        task_id = create["task_id"]
        url: str = create["callback_url"]
        task = self.upstream.tasks.get(task_id, {})
        body: Any = {"code": 200, "data": {"task_id": task_id, "status": "IN_PROGRESS", **task}}
        kind = self.random.choice(("true", "true", "true", "again", "unreadable", "forged"))
        content = httpx.Request("POST", url, json=body).content
        if kind == "unreadable":
            content = b"<html>"
        elif kind == "forged":
            forged = success_report(task_id, "https://evil.example/x.png")
            answer = await self.anonymous.post(url[:-4] + "AAAA", json=forged)
            assert answer.status_code == 404, answer.text
            return
        for _ in range(2 if kind == "again" else 1):
            answer = await self.anonymous.post(url, content=content)
            if answer.status_code == 404 and create["prompt"] in self.maybe_deleted:
                return
            if answer.status_code == 503 and self.relay:
                continue  # Its COMMIT was lost, so it may be stored.
            assert answer.status_code == 200, answer.text
            self.acknowledged.append((create["prompt"], content))
            self.maybe_taken.add(create["prompt"])  # It proves that upstream has it.

    async def pass_time(self) -> None:
        """Advance time by a little or a lot, and do the due work."""
        await self.run(self.random.choice((0, 0.2, 1, 3, 20, 70, 400, 2_000)))

    async def plan_crash(self) -> None:
        """Plan a crash just before or just after one of the next commits."""
        self._crash_in = self.random.randrange(6), self.random.choice(("before", "after"))

    async def settle(self) -> None:
        """End all faults, and advance time beyond every deadline and retry."""
        self._crash_in = None
        if self.relay is not None:
            self.relay.loses = lambda _unit: None
        if self._died.is_set():
            await self._restart_after_crash()
        self.subscribers.on_send = self._accept
        for seconds in (0, 60, 1_000, 4_000, 40_000, *(90_000,) * 6, 0):
            await self.finish_some()
            await self.run(seconds)

    async def stored(self, sql: str, **values: object) -> list[dict[str, Any]]:
        """Return rows as they are on disk."""
        return [dict(row) for row in await rows(self, sql, **values)]

    def _create(self, body: dict[str, Any]) -> httpx.Response:
        prompt = body["prompt"]
        if prompt in self.maybe_taken or prompt in self.canceled:
            self.repeated.append(prompt)
        outcome = self.random.choice(
            (
                *("taken", "taken", "taken", "refused", "busy", "busy-but-taken", "lost"),
                *("lost-but-taken", "broken", "no"),
            )
        )
        if outcome == "refused":
            raise CONNECT
        if outcome == "busy":
            return httpx.Response(self.random.choice((429, 503)), headers={"retry-after": "2"})
        if outcome == "no":
            return httpx.Response(402, json={"error": {"code": 402, "message": "no credits"}})
        body["task_id"] = f"task{len(self.upstream.creates)}"
        if outcome == "busy-but-taken":  # A gateway said so, and only a callback tells otherwise.
            self.upstream.tasks[body["task_id"]] = {"status": "IN_PROGRESS"}
            return httpx.Response(503)
        self.maybe_taken.add(prompt)
        if outcome in ("lost", "broken"):
            return self._no_answer(outcome)
        self.takes[prompt] += 1
        self.upstream.tasks[body["task_id"]] = {"status": "IN_PROGRESS"}
        if outcome == "lost-but-taken":
            raise LOST
        return httpx.Response(200, json=create_answer(body["task_id"]))

    @staticmethod
    def _no_answer(outcome: str) -> httpx.Response:
        if outcome == "lost":
            raise LOST
        return httpx.Response(500, text="oops")

    def _receive(self, url: str, webhook_id: str, body: bytes) -> int | SendError:
        """Answer as a subscriber; the body of an id must not change between attempts."""
        if url == HOOKS[1]:
            trouble = SendError("timeout", "no answer in time")
            mood: int | SendError = self.random.choice((200, 500, 503, 301, trouble))
            if mood != 200:
                self._note(url, webhook_id, body)
                return mood
        return self._accept(url, webhook_id, body)

    def _accept(self, url: str, webhook_id: str, body: bytes) -> int:
        self._note(url, webhook_id, body)
        self._taken[url, webhook_id] = self.crashes
        return 200

    def _note(self, url: str, webhook_id: str, body: bytes) -> None:
        if self.bodies.setdefault(webhook_id, body) != body:
            self.changed_bodies.append(webhook_id)
        if self._taken.get((url, webhook_id)) == self.crashes:
            self.sent_again.append((url, webhook_id))
        self.delivered[url].add(webhook_id)

    def _lose(self, _unit: str) -> Lost:
        """Return what is lost of a COMMIT."""
        lost = self._network.choice(LOSSES)
        self.lost[lost] += 1
        return lost

    def _arm(self) -> None:
        """Wrap the commits of the running process: it may crash before or after one, or lose it."""
        self._died = asyncio.Event()
        database = self.app.database
        holder, name = (database._writer, "apply") if self._on_sqlite else (database, "_run_batch")
        commit = getattr(holder, name)

        async def commit_or_die(do: Any, *args: object) -> Any:
            is_commit = not self._on_sqlite or do.__name__ == "commit_group"
            when = self._count_down() if is_commit else None
            if when == "before":
                await self._die()
            result = await commit(do, *args)
            if when == "after":
                await self._die()
            return result

        setattr(holder, name, commit_or_die)
        if self.relay is not None:
            self.relay.loses = self._lose

    @property
    def _on_sqlite(self) -> bool:
        return engine.schemas is None

    def _count_down(self) -> str | None:
        if self._crash_in is None:
            return None
        left, when = self._crash_in
        self._crash_in = (left - 1, when) if left else None
        return None if left else when

    async def _die(self) -> None:
        self._died.set()
        await asyncio.Event().wait()  # A dead process does nothing more.

    async def _restart_after_crash(self) -> None:
        self.crashes += 1
        database = self.app.database
        assert database._stream is not None
        under_way = [database._stream, *([] if self._on_sqlite else database._commits)]
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        database._stream = asyncio.create_task(asyncio.sleep(0))  # noqa: TID251  ended at once
        if self.relay is not None:
            self.relay.loses = lambda _unit: None  # A start needs all of its transactions.
        await crash(self)
        self._arm()
