"""Subscribers of one world: what came, whether its signature held, and what they answered."""

import asyncio
import datetime
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from standardwebhooks import Webhook

from chaos.wire import Request, answer
from service.model.clock import parse_rfc3339

MOODS = {"204": 8, "500": 2, "503": 1, "301": 1, "closed": 1, "slow": 1}


@dataclass(frozen=True)
class Receipt:
    """One webhook that arrived, `skew` seconds after its timestamp, `age` after its event.

    `status` 0: it was not answered.
    """

    phase: int
    name: str
    webhook_id: str
    timestamp: int
    skew: float
    age: float
    status: int


class Audience:
    """Every subscriber, by the first part of its path: `well`, `ordered` and `moody`."""

    def __init__(self, lots: random.Random) -> None:
        self.lots = lots
        self.phase = 0
        self.secrets: dict[str, str] = {}
        self.receipts: list[Receipt] = []
        self.bodies: dict[str, bytes] = {}
        self.wrong: list[str] = []
        self.faults: Counter[str] = Counter()
        self.is_moody = True
        self.clocks: Callable[[], list[float]] = lambda: [time.time()]

    async def __call__(self, request: Request) -> bytes | None:
        """Take a webhook, and answer by mood."""
        name = request.path.strip("/").partition("/")[0]
        webhook_id = request.headers.get("webhook-id", "")
        timestamp = int(request.headers.get("webhook-timestamp", "0"))
        self._verify(name, webhook_id, timestamp, request)
        skew = min((now - timestamp for now in self.clocks()), key=abs)
        age = time.time() - parse_rfc3339(json.loads(request.body)["timestamp"]) / 1_000
        phase, status = self.phase, await self._status(name)
        self.receipts.append(Receipt(phase, name, webhook_id, timestamp, skew, age, status))
        return answer(status) if status else None

    async def _status(self, name: str) -> int:
        if not (self.is_moody and name == "moody"):
            return 204
        [mood] = self.lots.choices([*MOODS], [*MOODS.values()])
        self.faults[f"subscriber {mood}"] += mood != "204"
        if mood == "slow":
            await asyncio.sleep(self.lots.uniform(0.1, 1.0))
        return {"closed": 0, "slow": 204}.get(mood) or int(mood if mood.isdigit() else 0)

    def _verify(self, name: str, webhook_id: str, timestamp: int, request: Request) -> None:
        secret = self.secrets.get(name)
        moment = datetime.datetime.fromtimestamp(timestamp, datetime.UTC)
        signed = secret and Webhook(secret).sign(webhook_id, moment, request.body.decode())
        if signed not in request.headers.get("webhook-signature", "").split():
            self.wrong.append(f"{name} got {webhook_id} with a signature that does not hold")
        if json.loads(request.body).get("id") != webhook_id:
            self.wrong.append(f"{name} got {webhook_id} with the body of another event")
        if self.bodies.setdefault(webhook_id, request.body) != request.body:
            self.wrong.append(f"{webhook_id} came with two bodies")
