"""The subscribers of a world: they check signatures, note receipts, and answer well or badly."""

import asyncio
import datetime
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from standardwebhooks import Webhook

from chaos.wire import Pulse, Request, build_answer, hang
from service.model.clock import parse_rfc3339

# A webhook may arrive so long after it was signed: an attempt has three seconds, and a busy machine
# may read later what has arrived.
IN_FLIGHT_SECONDS = 8.0
# What `unreliable` answers, by weight.
ANSWERS = {"204": 8, "500": 2, "503": 1, "301": 1, "closed": 1, "slow": 1}


@dataclass(frozen=True)
class Receipt:
    """A webhook that arrived `skew_seconds` after its timestamp and `age_seconds` after its event.

    `status` is 0 where it was not answered; `phase` counts the kills of the service before it.
    It was under way from `began_at` to `ended_at`, and sent after `sent_after`, by a clock of this
    machine.
    """

    phase: int
    name: str
    webhook_id: str
    timestamp: int
    skew_seconds: float
    age_seconds: float
    status: int
    sent_after: float
    began_at: float
    ended_at: float


class Subscribers:
    """All subscribers, by the first part of the path: `healthy`, `ordered` and `unreliable`."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.phase = 0
        self.secrets: dict[str, str] = {}
        self.receipts: list[Receipt] = []
        self.bodies: dict[str, bytes] = {}
        self.wrong: list[str] = []
        self.faults: Counter[str] = Counter()
        self.has_faults = True
        self.hangs = False  # Nothing is answered, nor noted.
        self.pulse = Pulse()
        self.hold_seconds: dict[str, float] = {}  # How long some take to answer, by name.
        # What the service's clock has shown since a time of `time.monotonic`.
        self.clocks: Callable[[float], list[float]] = lambda _since: [time.time()]

    async def __call__(self, request: Request) -> bytes | None:
        """Receive a webhook; the handler of a `wire` server."""
        if self.hangs:
            await hang()
            return None
        name = request.path.strip("/").partition("/")[0]
        webhook_id = request.headers.get("webhook-id", "")
        timestamp = int(request.headers.get("webhook-timestamp", "0"))
        self._verify(name, webhook_id, timestamp, request)
        since = time.monotonic() - IN_FLIGHT_SECONDS
        skew = min((now - timestamp for now in self.clocks(since)), key=abs)
        age = time.time() - parse_rfc3339(json.loads(request.body)["timestamp"]) / 1_000
        phase, began = self.phase, (self.pulse.since, time.monotonic())
        status = await self._status(name)
        times = *began, time.monotonic()
        self.receipts.append(Receipt(phase, name, webhook_id, timestamp, skew, age, status, *times))
        return build_answer(status) if status else None

    async def _status(self, name: str) -> int:
        if seconds := self.hold_seconds.get(name):
            await asyncio.sleep(seconds)
        if not (self.has_faults and name == "unreliable"):
            return 204
        [answer] = self.rng.choices([*ANSWERS], [*ANSWERS.values()])
        self.faults[f"subscriber {answer}"] += answer != "204"
        if answer == "slow":
            await asyncio.sleep(self.rng.uniform(0.1, 1.0))
        return {"closed": 0, "slow": 204}.get(answer) or int(answer if answer.isdigit() else 0)

    def _verify(self, name: str, webhook_id: str, timestamp: int, request: Request) -> None:
        secret = self.secrets.get(name)
        moment = datetime.datetime.fromtimestamp(timestamp, datetime.UTC)
        expected = secret and Webhook(secret).sign(webhook_id, moment, request.body.decode())
        if expected not in request.headers.get("webhook-signature", "").split():
            self.wrong.append(f"{name} got {webhook_id} with a wrong signature")
        if json.loads(request.body).get("id") != webhook_id:
            self.wrong.append(f"{name} got {webhook_id} with the body of another event")
        if self.bodies.setdefault(webhook_id, request.body) != request.body:
            self.wrong.append(f"{webhook_id} came with two bodies")
