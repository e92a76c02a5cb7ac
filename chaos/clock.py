"""The wall clock jumps forwards and backwards, by half a second to 30 days, under load."""

import asyncio
import random
import time
from collections import Counter
from pathlib import Path

from chaos import load, promises
from chaos.outcome import Outcome
from chaos.plan import Plan, Try, run_tries
from chaos.subject import OFFSET_BYTES
from chaos.webhooks import IN_FLIGHT_SECONDS
from chaos.world import SUBJECT, World, open_world

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
AHEAD_MAX = 3
LAST_DUE = """
SELECT max(at) AS at FROM (
    SELECT deadline_at AS at FROM generations WHERE status IN ('queued', 'processing') UNION ALL
    SELECT due_at FROM deliveries WHERE status = 'pending' UNION ALL
    SELECT due_at FROM replays WHERE status = 'running' UNION ALL
    SELECT due_at FROM confirmations)
"""
IDS = ("generations", "events", "deliveries", "callbacks", "attempts")


class MovedClock:
    """Moves the clock of a service, and knows the times that its webhooks may show."""

    def __init__(self, file: Path, outcome: Outcome) -> None:
        self._file = file
        self._outcome = outcome
        self.offset_ms = 0
        self._earlier: list[tuple[float, int]] = []  # When each jump was, and the offset before it.

    def jump(self, by_ms: int) -> None:
        """Move the clock. The file is written in place, because the service has it open."""
        self._outcome.faults[f"clock {'forwards' if by_ms > 0 else 'backwards'}"] += 1
        self._earlier.append((time.monotonic(), self.offset_ms))
        self.offset_ms += by_ms
        with self._file.open("r+") as file:
            file.write(f"{self.offset_ms}".ljust(OFFSET_BYTES))

    def times(self, since: float) -> list[float]:
        """Return the time by the moved clock, and by every offset that it has had since then."""
        offsets = [self.offset_ms, *(offset for at, offset in self._earlier if at > since)]
        return [time.time() + offset / 1_000 for offset in offsets]


async def run(plan: Plan) -> Outcome:
    """Run worlds whose clocks jump several times."""
    count = QUICK_TRIES if plan.quick and plan.only is None else TRIES
    return await run_tries(plan, [Try(f"jumps {n}", jump) for n in range(count)])


async def jump(folder: Path, seed: str, repeat: str) -> Outcome:
    """Run a world whose clock jumps and comes back to the right time."""
    outcome, rng = Outcome(), random.Random(seed)
    async with open_world(folder, seed, rng.choice(("confirm", "body"))) as world:
        # Rows of a clock that was weeks behind are not deleted as old ones.
        world.settings["GENHOOK_RETENTION_DAYS"] = "365"
        offset = folder / "offset"
        offset.write_text("0")
        clock = MovedClock(offset, outcome)
        world.subscribers.clocks = world.provider.clocks = clock.times
        await world.start(SUBJECT, CHAOS_OFFSET=str(offset))
        clients = world.run_beside(load.run(world, GENERATIONS, LOAD_SECONDS))
        for _ in range(JUMPS):
            await asyncio.sleep(rng.uniform(0.4, 1.3))
            clock.jump(rng.choice(JUMPS_MS))
        await clients
        await world.provider.settle()
        # No webhook is under way that was signed before the jump: what comes is by the moved clock.
        await asyncio.sleep(IN_FLIGHT_SECONDS)
        await load.test_subscribers(world)
        await _set_right(world, clock, rng)
        await promises.check_stop(world, outcome, repeat)
        promises.check_world(world, outcome, repeat)
        _check_jumps(world, outcome, repeat)
        outcome.faults += world.provider.faults + +world.subscribers.faults
    return outcome


async def _set_right(world: World, clock: MovedClock, rng: random.Random) -> None:
    """Set the clock right, then wait until no work is left.

    Rows written by a clock that was hours ahead are due in hours: instead of waiting, the clock
    jumps past them. It does so again for what a slow process writes by the clock before.
    """
    await asyncio.sleep(rng.uniform(0.2, 1.0))
    clock.jump(-clock.offset_ms)
    await asyncio.sleep(1.0)
    for _ in range(AHEAD_MAX):
        [row] = world.rows(LAST_DUE)
        ahead_ms = (row["at"] or 0) - time.time_ns() // 1_000_000 - clock.offset_ms
        if ahead_ms > 0:
            clock.jump(ahead_ms + 5_000)
        if await promises.wait_until_done(world):
            return


def _check_jumps(world: World, outcome: Outcome, repeat: str) -> None:
    """Check what a jump of the clock in particular could break."""
    stale = [
        (receipt.webhook_id, receipt.timestamp)
        for receipt in world.subscribers.receipts
        if abs(receipt.skew_seconds) > IN_FLIGHT_SECONDS
    ]
    outcome.check(
        "signatures carry the present time", holds=not stale, detail=f"{stale[:3]}", repeat=repeat
    )
    for table in IDS:
        [row] = world.rows(f"SELECT count(*) AS n, count(DISTINCT id) AS ids FROM {table}")
        outcome.check(
            "ids are unique", holds=row["n"] == row["ids"], detail=f"{table}: {row}", repeat=repeat
        )
    attempted = Counter[tuple[str, str]]()
    for row in world.rows(
        "SELECT s.url, d.event_id, d.attempt_count FROM deliveries d "
        "JOIN subscribers s ON s.id = d.subscriber_id"
    ):
        attempted[row["url"].rpartition("/")[2], row["event_id"]] += row["attempt_count"]
    receipts = (receipt for receipt in world.subscribers.receipts if receipt.status)
    answered = Counter((receipt.name, receipt.webhook_id) for receipt in receipts)
    pings = promises.list_pings(world)
    storm = {key: n for key, n in answered.items() if n > (attempted[key] or key[1] in pings)}
    outcome.check("no storm after a jump", holds=not storm, detail=f"{storm}", repeat=repeat)
    longest = world.rows("SELECT max(attempt_count) AS n FROM deliveries")[0]["n"] or 0
    most = max(len(schedule) for schedule in load.SCHEDULES_SECONDS.values()) + 1
    outcome.check(
        "no more attempts than the schedule has",
        holds=longest <= most,
        detail=f"{longest}",
        repeat=repeat,
    )
