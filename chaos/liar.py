"""An upstream that lies, repeats itself, breaks off, changes its shapes, and floods."""

import asyncio
import json
import random
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import httpx

from chaos.provider import CREATES, FORGED_HOST, SILENT_SECONDS, Provider, Task
from chaos.wire import answer

STATUSES = {
    "honest": 14,
    "behind": 3,
    "shape": 4,
    "404": 1,
    "429": 1,
    "500": 1,
    "html": 1,
    "truncated": 1,
    "closed": 1,
    "moved": 1,
    "enormous": 1,
    "silent": 1,
    "deep": 1,
}
CALLS = {
    "twice": 4,
    "reordered": 4,
    "truncated": 2,
    "enormous": 1,
    "endless": 1,
    "slow": 2,
    "unreadable": 2,
    "lost": 2,
    "late": 2,
    "false": 3,
}
ENORMOUS_BYTES = 9 * 1024 * 1024
CALLBACK_BYTES = 1_200_000  # Over the limit of what a callback may have.
LATE_SECONDS = 4.0


class Liar(Provider):
    """A provider of which nothing can be trusted but what it says to our own key in the end."""

    def __init__(self, lots: random.Random, *, may_lie: bool) -> None:
        super().__init__(lots)
        self.weights = {**CREATES, "html": 1, "truncated": 1, "enormous": 1, "shape": 4}
        self.calls = CALLS if may_lie else {k: n for k, n in CALLS.items() if k != "false"}
        self.forges = 0.3

    async def answer_create(self, outcome: str, task: Task) -> bytes | None:
        """A task that was made, told of badly."""
        if outcome == "shape":
            return answer(200, self._shaped({"task_id": task.id, "status": "queued"}))
        return _broken(outcome, task) or await super().answer_create(outcome, task)

    async def answer_status(self, task: Task) -> bytes | None:
        """The truth, mostly."""
        [kind] = self.lots.choices([*STATUSES], [*STATUSES.values()])
        self.faults[f"poll {kind}"] += kind != "honest"
        if kind == "behind":
            said = {"task_id": task.id, "status": "IN_PROGRESS"}
            return answer(200, {"code": 200, "data": said})
        if kind == "shape":
            return answer(200, self._shaped(task.data()))
        if kind == "429":
            return answer(429, {"error": {"code": 429}}, retry_after="1")
        if kind in ("404", "500"):
            return answer(int(kind), {"error": {"code": int(kind), "message": "not now"}})
        if kind == "moved":
            return answer(302, location=f"https://{FORGED_HOST}/")
        if kind == "closed":
            return None
        if kind == "silent":
            await asyncio.sleep(SILENT_SECONDS)
        return _broken(kind, task) or await super().answer_status(task)

    def _shaped(self, data: dict[str, Any]) -> Any:
        """The same facts by other names, in other places, beside things that nobody asked for."""
        words = {"task_id": "taskId", "status": "state"}
        renamed = {words.get(name, name): value for name, value in data.items()}
        extra = {"code": 0, "msg": "success", "trace": ["\ud7ff", 10**30, None, {"a": [[]]}]}
        return self.lots.choice(
            (
                data,
                renamed,
                {**extra, "data": renamed},
                {**extra, "data": [data]},
                {**extra, **data},
            )
        )

    async def tell(self, task: Task) -> None:
        """Call back about the end, in one of many bad ways; then, mostly, properly."""
        [kind] = self.lots.choices([*self.calls], [*self.calls.values()])
        self.faults[f"callback {kind}"] += 1
        if self.lots.random() < self.forges:
            self.faults["callback forged"] += 1
            self.spawn(self.forge(task))
        if kind == "lost":
            return
        if kind == "late":
            await asyncio.sleep(LATE_SECONDS)
        if kind == "false":
            await self.call(task, self._false(task))
        if kind in ("truncated", "slow"):
            await self._raw(task, kind)
        if kind in ("enormous", "endless"):
            await self._too_large(task, kind)
        await self.call(task, None if kind == "unreadable" else task.data())
        if kind == "twice":
            await self.call(task, task.data())
        if kind == "reordered":
            await self.call(task, {"task_id": task.id, "status": "IN_PROGRESS"})

    @staticmethod
    def _false(task: Task) -> dict[str, Any]:
        """A body that upstream itself does not stand by when it is asked."""
        url = f"https://{FORGED_HOST}/{task.id}.png"
        return {"task_id": task.id, "status": "completed", "output": {"image_urls": [url]}}

    async def _raw(self, task: Task, kind: str) -> None:
        """A callback that breaks off, or comes a few bytes at a time."""
        assert task.callback_url is not None
        where = urlsplit(task.callback_url)
        body = json.dumps({"code": 200, "data": task.data(), "raw": kind}).encode()
        head = f"POST {where.path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        with suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection(where.hostname, where.port)
            writer.write(head.encode() + body[:20])
            for at in range(20, len(body), 40):
                if kind == "truncated":
                    break
                await asyncio.sleep(0.05)
                writer.write(body[at : at + 40])
            if kind == "slow":
                said = await asyncio.wait_for(reader.readuntil(b"\r\n"), 10)
                self._judge(said, body)
            writer.close()

    def _judge(self, said: bytes, body: bytes) -> None:
        if b" 200 " in said:
            self.acknowledged.add(body)
        elif not said.startswith(b"HTTP/1.1 5"):
            self.wrong_answers.append(f"a slow callback: {said!r}")

    async def _too_large(self, task: Task, kind: str) -> None:
        """More than a callback may have, announced or not: 413, by the bytes that were read."""
        assert task.callback_url is not None

        async def pieces() -> Any:
            for _ in range(CALLBACK_BYTES // 10_000):
                yield b" " * 10_000

        content = bytes(CALLBACK_BYTES) if kind == "enormous" else pieces()
        with suppress(httpx.TransportError):
            said = await self.outside.post(task.callback_url, content=content)
            if said.status_code != 413 and said.status_code < 500:
                self.wrong_answers.append(f"{kind} callback: {said.status_code}")


def _broken(kind: str, task: Task) -> bytes | None:
    """An answer that is none; None for a kind that is not broken."""
    if kind == "html":
        return b"HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n<html>no</html"
    if kind == "truncated":
        return b'HTTP/1.1 200 OK\r\ncontent-length: 900\r\nconnection: close\r\n\r\n{"code":200,"da'
    if kind == "enormous":
        return answer(200, {"task_id": task.id, "status": "completed", "x": "x" * ENORMOUS_BYTES})
    if kind == "deep":
        return answer(200, json.loads("[" * 400 + "]" * 400))
    return None
