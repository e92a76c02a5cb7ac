"""The wall clock jumps: forwards and backwards, by seconds and by hours, under load and at rest."""

import asyncio
import random
import time
from collections import Counter
from pathlib import Path

from chaos import load, plan, promises
from chaos.outcome import Outcome
from chaos.subject import OFFSET_BYTES
from chaos.world import SUBJECT, World, opened

HOUR_MS = 3_600_000
JUMPS_MS = (
    -30 * 24 * HOUR_MS,
    -6 * HOUR_MS,
    -HOUR_MS,
    -5_000,
    -500,
    2_000,
    HOUR_MS,
    6 * HOUR_MS,
)
TRIES, QUICK_TRIES, JUMPS = 8, 1, 3
GENERATIONS, LOAD_SECONDS = 16, 3.0
FRESH_SECONDS = 5
ON_THE_WAY_SECONDS = 1.0
IDS = ("generations", "events", "deliveries", "callbacks", "attempts")


class Hand:
    """Moves the clock of a service, and knows what it may show just now."""

    def __init__(self, file: Path, judged: Outcome) -> None:
        self._file = file
        self._judged = judged
        self.offset_ms = 0
        self._before: list[tuple[float, int]] = []

    def jump(self, by_ms: int) -> None:
        """Move the clock. The service has the file open: it is written in place."""
        self._judged.faults[f"clock {'forwards' if by_ms > 0 else 'backwards'}"] += 1
        self._before.append((time.monotonic(), self.offset_ms))
        self.offset_ms += by_ms
        with self._file.open("r+") as file:
            file.write(f"{self.offset_ms}".ljust(OFFSET_BYTES))

    def clocks(self) -> list[float]:
        """The time; and what it was before a jump, while requests of then are on their way."""
        just = time.monotonic() - ON_THE_WAY_SECONDS
        offsets = [self.offset_ms, *(offset for at, offset in self._before if at > just)]
        return [time.time() + offset / 1_000 for offset in offsets]


async def run(of: plan.Plan) -> Outcome:
    """Worlds whose clock jumps some times each."""
    count = QUICK_TRIES if of.quick and of.only is None else TRIES
    return await plan.run(of, [plan.Try(f"jumps {n}", jumps) for n in range(count)])


async def jumps(folder: Path, seed: str, again: str) -> Outcome:
    """One world: its clock jumps, comes back to the right time, and everything ends."""
    judged, lots = Outcome(), random.Random(seed)
    async with opened(folder, seed, lots.choice(("confirm", "body"))) as world:
        offset = folder / "offset"
        offset.write_text("0")
        hand = Hand(offset, judged)
        world.audience.clocks = hand.clocks
        await world.start(SUBJECT, CHAOS_OFFSET=str(offset))
        clients = world.at_once(load.run(world, GENERATIONS, LOAD_SECONDS))
        for _ in range(JUMPS):
            await asyncio.sleep(lots.uniform(0.4, 1.3))
            hand.jump(lots.choice(JUMPS_MS))
        await clients
        await world.provider.settle()
        await _back(world, hand, lots)
        await promises.settle(world)
        status = await world.stop()
        judged.check("it ends when asked to", holds=status == 0, seen=f"{status}", again=again)
        promises.judge(world, judged, again)
        _own(world, judged, again)
        judged.faults += world.provider.faults + +world.audience.faults
    return judged


async def _back(world: World, hand: Hand, lots: random.Random) -> None:
    """Time goes right again, and past what a clock that was ahead had planned.

    What was planned by a clock that was hours ahead is due hours later: that is waited for by
    one more jump, as far as the farthest plan lies.
    """
    await asyncio.sleep(lots.uniform(0.2, 1.0))
    hand.jump(-hand.offset_ms)
    await asyncio.sleep(1.0)
    planned = world.rows(
        "SELECT max(at) AS at FROM (SELECT deadline_at AS at FROM generations UNION ALL "
        "SELECT due_at FROM deliveries WHERE status = 'pending' UNION ALL "
        "SELECT due_at FROM replays)"
    )[0]["at"]
    ahead_ms = (planned or 0) - time.time_ns() // 1_000_000
    if ahead_ms > 0:
        hand.jump(ahead_ms + 5_000)


def _own(world: World, judged: Outcome, again: str) -> None:
    """What a jump of the clock in particular could break."""
    stale = [
        (one.webhook_id, one.timestamp)
        for one in world.audience.receipts
        if abs(one.skew) > FRESH_SECONDS
    ]
    judged.check(
        "signatures carry the present time", holds=not stale, seen=f"{stale[:3]}", again=again
    )
    for table in IDS:
        [row] = world.rows(f"SELECT count(*) AS n, count(DISTINCT id) AS ids FROM {table}")
        judged.check(
            "ids are unique", holds=row["n"] == row["ids"], seen=f"{table}: {row}", again=again
        )
    attempted = Counter[tuple[str, str]]()
    for row in world.rows(
        "SELECT s.url, d.event_id, d.attempt_count FROM deliveries d "
        "JOIN subscribers s ON s.id = d.subscriber_id"
    ):
        attempted[row["url"].rpartition("/")[2], row["event_id"]] += row["attempt_count"]
    seen = Counter((one.name, one.webhook_id) for one in world.audience.receipts if one.status)
    storm = {key: n for key, n in seen.items() if n > attempted[key]}
    judged.check("no storm after a jump", holds=not storm, seen=f"{storm}", again=again)
    longest = world.rows("SELECT max(attempt_count) AS n FROM deliveries")[0]["n"] or 0
    most = max(len(schedule) for schedule in load.RETRIES_SECONDS.values()) + 1
    judged.check(
        "no more attempts than the schedule has",
        holds=longest <= most,
        seen=f"{longest}",
        again=again,
    )
