"""Receivers of every mood: they answer, hang, fail or ask for a rest, and note what is wrong."""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random  # noqa: TID251  a simulation is its seed
from typing import Any
from urllib.parse import urlsplit

from standardwebhooks import Webhook

from service.delivery.lanes import LATE_MS
from service.delivery.receivers import NOTIFY_IN_FLIGHT_MAX
from service.delivery.target import Answer, SendError, Target
from service.model.clock import SECOND
from tests.harness import ManualClock

MOODS = ("good", "good", "slow", "hang", "fail", "throttle", "gone")
HANG_SECONDS = {"slow": 2, "hang": 15}
STATUS_CODES = {"good": 200, "slow": 204, "fail": 500, "gone": 410, "throttle": 429}
REST_SECONDS = 20
ROW = """
SELECT d.status, d.trigger, s.ordered AND EXISTS (SELECT 1 FROM deliveries e
    WHERE e.subscriber_id = d.subscriber_id AND e.generation_id = d.generation_id
    AND e.status = 'pending' AND e.trigger <> 'manual' AND e.id < d.id) AS overtakes
FROM deliveries d JOIN subscribers s ON s.id = d.subscriber_id
WHERE s.tenant = ? AND s.url = ? AND d.event_id = ?
"""


@dataclass(eq=False)
class Known:
    """A subscriber as its tenant knows it; a change that allows more counts from its request on."""

    tenant: str
    urls: set[str]
    id: str = ""  # That of a `notify_url` is unknown.
    secret: str = ""
    cap: int = 100
    rate: float | None = None
    status: str = "active"
    mood: str = "good"
    sent_at: float = -1e18
    under_way: set[str] = field(default_factory=set)


def origin_of(tenant: str, url: str) -> tuple[str, str]:
    """The receiver of a tenant behind a URL."""
    return tenant, urlsplit(url).netloc


class Receivers:
    """All receivers. `wrong` has what should not have been sent."""

    def __init__(self, clock: ManualClock, random: Random, path: Path, slots: int) -> None:
        self.clock, self.random, self.path, self.slots = clock, random, path, slots
        self.by_url: dict[str, Known] = {}
        self.accepted: set[tuple[str, str]] = set()  # By whom: the id, or else the URL.
        self.rests: dict[tuple[str, str], tuple[int, int]] = {}  # Since when, and until when.
        self.lifted: dict[tuple[str, str], int] = {}  # What was asked for until then is over.
        self.hanging: dict[asyncio.Task[Any], tuple[int, asyncio.Future[None]]] = {}
        self.changed = asyncio.Event()  # One hangs since then.
        self.wrong: list[str] = []

    async def send(
        self, target: Target, headers: Mapping[str, str], body: bytes, deadline_seconds: float
    ) -> Answer:
        """Receive a webhook as a sender does it; the mood decides about the answer."""
        assert deadline_seconds > 0
        known, id_ = self.by_url[target.url], headers["webhook-id"]
        row = self._row(known.tenant, target.url, id_)
        self._check(known, target.url, headers, body, row)
        known.under_way.add(id_)
        known.sent_at = self.clock.now
        try:
            return await self._answer(known, target.url, id_, row)
        finally:
            known.under_way.discard(id_)

    def release(self, *, everything: bool = False) -> None:
        """Let those go on that have hung for long enough."""
        for task, (until, future) in list(self.hanging.items()):
            if everything or until <= self.clock.now:
                del self.hanging[task]
                future.set_result(None)

    def forget(self) -> None:
        """Expect nothing of what was not stored: the process has lost its memory."""
        self.rests.clear()
        for known in self.by_url.values():
            known.sent_at = -1e18

    async def _answer(self, known: Known, url: str, id_: str, row: sqlite3.Row | None) -> Answer:
        for _ in range(self.random.randrange(6)):
            await asyncio.sleep(0)  # noqa: TID251  others go on meanwhile
        mood, origin, started_at = known.mood, origin_of(known.tenant, url), self.clock.now
        if mood in HANG_SECONDS:
            await self._hang(HANG_SECONDS[mood])
        if mood == "hang":
            raise SendError("timeout", "no answer in time")
        code = STATUS_CODES[mood]
        if code < 300:
            self.accepted.add((known.id or url, id_))
            if row is not None and row["trigger"] == "manual":
                self.lifted[origin] = started_at
        if code != 429:
            return Answer(code, (), b"")
        if row is not None and row["trigger"] != "manual":
            self.rests[origin] = self.clock.now, self.clock.now + REST_SECONDS * SECOND
        return Answer(code, (("retry-after", str(REST_SECONDS)),), b"")

    async def _hang(self, seconds: int) -> None:
        task, future = asyncio.current_task(), asyncio.get_running_loop().create_future()
        assert task is not None
        self.hanging[task] = self.clock.now + seconds * SECOND, future
        self.changed.set()
        try:
            await future
        finally:
            self.hanging.pop(task, None)

    def _row(self, tenant: str, url: str, id_: str) -> sqlite3.Row | None:
        """The delivery as it is stored; None after a change of the URL."""
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as file:
            file.row_factory = sqlite3.Row
            row: sqlite3.Row | None = file.execute(ROW, (tenant, url, id_)).fetchone()
            return row

    def _check(
        self,
        known: Known,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        row: sqlite3.Row | None,
    ) -> None:
        now, id_, all_known = self.clock.now, headers["webhook-id"], set(self.by_url.values())
        origin = origin_of(known.tenant, url)
        since, until = self.rests.get(origin, (now, 0))
        under_way = Counter({each: len(each.under_way) for each in all_known})
        beside = sum(
            len(each.under_way)
            for other, each in self.by_url.items()
            if not each.id and origin_of(each.tenant, other) == origin
        )
        is_held = row is not None and row["trigger"] != "manual"
        is_held &= self.lifted.get(origin, 0) < since < now < until
        wrong = {
            "twice at once": id_ in known.under_way,
            "more than the subscriber allows": under_way[known] >= known.cap,
            "more than a notify_url's receiver gets": not known.id
            and beside >= NOTIFY_IN_FLIGHT_MAX,
            "more than all slots": under_way.total() >= self.slots,
            f"while {known.status}": known.status != "active",
            "to an old URL": url not in known.urls,
            "ended": row is not None and row["status"] != "pending",
            "overtakes an earlier event": row is not None and row["overtakes"],
            "faster than its rate": known.rate
            and now - known.sent_at < SECOND / known.rate - LATE_MS - 1,
            "while the receiver rests": is_held,
            "an old secret": known.secret and not _is_signed(known.secret, headers, body),
        }
        self.wrong += [f"{name}: {url} {id_}" for name, is_so in wrong.items() if is_so]


def _is_signed(secret: str, headers: Mapping[str, str], body: bytes) -> bool:
    at = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
    signature = Webhook(secret).sign(headers["webhook-id"], at, body.decode())
    return signature in headers["webhook-signature"].split(" ")
