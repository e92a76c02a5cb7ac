"""An upstream that lies, repeats itself, breaks off, changes its shapes, and floods."""

import asyncio
import json
import random
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import httpx

from chaos.provider import CREATES, FORGED_HOST, SILENT_SECONDS, Provider, Task
from chaos.wire import build_answer

STATUSES = {  # Answers to polls, by weight.
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
CALLBACKS = {  # Ways to call back, by weight.
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
CALLBACK_BYTES = 1_200_000  # Over the limit of a callback.
LATE_SECONDS = 4.0


class UnreliableProvider(Provider):
    """A provider that can be trusted only in what it finally answers to polls."""

    def __init__(self, rng: random.Random, *, may_lie: bool) -> None:
        super().__init__(rng)
        self.weights = {**CREATES, "html": 1, "truncated": 1, "enormous": 1, "shape": 4}
        self.callbacks = {k: n for k, n in CALLBACKS.items() if may_lie or k != "false"}
        self.forged_share = 0.3

    async def answer_create(self, outcome: str, task: Task) -> bytes | None:
        """Answer a create request whose task exists, often badly."""
        if outcome == "shape":
            return build_answer(200, self._reshape({"task_id": task.id, "status": "queued"}))
        return _broken_answer(outcome, task) or await super().answer_create(outcome, task)

    async def answer_status(self, task: Task) -> bytes | None:
        """Answer a poll, mostly with the task's state."""
        [kind] = self.rng.choices([*STATUSES], [*STATUSES.values()])
        self.faults[f"poll {kind}"] += kind != "honest"
        if kind == "behind":
            data = {"task_id": task.id, "status": "IN_PROGRESS"}
            return build_answer(200, {"code": 200, "data": data})
        if kind == "shape":
            return build_answer(200, self._reshape(task.data()))
        if kind == "429":
            return build_answer(429, {"error": {"code": 429}}, retry_after="1")
        if kind in ("404", "500"):
            return build_answer(int(kind), {"error": {"code": int(kind), "message": "not now"}})
        if kind == "moved":
            return build_answer(302, location="https://elsewhere.example/")
        if kind == "closed":
            return None
        if kind == "silent":
            await asyncio.sleep(SILENT_SECONDS)
        return _broken_answer(kind, task) or await super().answer_status(task)

    def _reshape(self, data: dict[str, Any]) -> Any:
        """Return the same facts under other names, in other places, among unknown fields."""
        words = {"task_id": "taskId", "status": "state"}
        renamed = {words.get(name, name): value for name, value in data.items()}
        extra = {"code": 0, "msg": "success", "trace": ["\ud7ff", 10**30, None, {"a": [[]]}]}
        return self.rng.choice(
            (
                data,
                renamed,
                {**extra, "data": renamed},
                {**extra, "data": [data]},
                {**extra, **data},
            )
        )

    async def send_final_callbacks(self, task: Task) -> None:
        """Report the end by callback in one of many bad ways, and mostly in a proper way too."""
        [kind] = self.rng.choices([*self.callbacks], [*self.callbacks.values()])
        self.faults[f"callback {kind}"] += 1
        if self.rng.random() < self.forged_share:
            self.faults["callback forged"] += 1
            self.spawn(self.send_forged_callback(task))
        if kind == "lost":
            return
        if kind == "late":
            await asyncio.sleep(LATE_SECONDS)
        if kind == "false":
            await self.send_callback(task, self._false_data(task))
        if kind in ("truncated", "slow"):
            await self._send_in_pieces(task, kind)
        if kind in ("enormous", "endless"):
            await self._send_too_large(task, kind)
        await self.send_callback(task, None if kind == "unreadable" else task.data())
        if kind == "twice":
            await self.send_callback(task, task.data())
        if kind == "reordered":
            await self.send_callback(task, {"task_id": task.id, "status": "IN_PROGRESS"})

    @staticmethod
    def _false_data(task: Task) -> dict[str, Any]:
        """Return a result that upstream itself does not confirm when it is polled."""
        url = f"https://{FORGED_HOST}/{task.id}.png"
        return {"task_id": task.id, "status": "completed", "output": {"image_urls": [url]}}

    async def _send_in_pieces(self, task: Task, kind: str) -> None:
        """Send a callback that breaks off, or that comes a few bytes at a time."""
        assert task.callback_url is not None
        url = urlsplit(task.callback_url)
        body = json.dumps({"code": 200, "data": task.data(), "raw": kind}).encode()
        head = f"POST {url.path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        with suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection(url.hostname, url.port)
            writer.write(head.encode() + body[:20])
            for at in range(20, len(body), 40):
                if kind == "truncated":
                    break
                await asyncio.sleep(0.05)
                writer.write(body[at : at + 40])
            if kind == "slow":
                status_line = await asyncio.wait_for(reader.readuntil(b"\r\n"), 10)
                self._check_slow(status_line, body)
            writer.close()

    def _check_slow(self, status_line: bytes, body: bytes) -> None:
        if b" 200 " in status_line:
            self.acknowledged.add(body)
        elif not status_line.startswith(b"HTTP/1.1 5"):
            self.wrong_answers.append(f"a slow callback: {status_line!r}")

    async def _send_too_large(self, task: Task, kind: str) -> None:
        """Send more than a callback may have, with its length or without: 413 must be answered."""
        assert task.callback_url is not None

        async def pieces() -> Any:
            for _ in range(CALLBACK_BYTES // 10_000):
                yield b" " * 10_000

        content = bytes(CALLBACK_BYTES) if kind == "enormous" else pieces()
        with suppress(httpx.TransportError):
            answer = await self.outside.post(task.callback_url, content=content)
            if answer.status_code != 413 and answer.status_code < 500:
                self.wrong_answers.append(f"{kind} callback: {answer.status_code}")


def _broken_answer(kind: str, task: Task) -> bytes | None:
    """Return bytes that are no proper answer; None for a kind that is not broken."""
    if kind == "html":
        return b"HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n<html>no</html"
    if kind == "truncated":
        return b'HTTP/1.1 200 OK\r\ncontent-length: 900\r\nconnection: close\r\n\r\n{"code":200,"da'
    if kind == "enormous":
        content = {"task_id": task.id, "status": "completed", "x": "x" * ENORMOUS_BYTES}
        return build_answer(200, content)
    if kind == "deep":
        return build_answer(200, json.loads("[" * 400 + "]" * 400))
    return None
