"""Callback in, webhook out: what a subscriber waits for an outcome that upstream has said."""

import asyncio
import re
import time
from itertools import count
from pathlib import Path

from bench import callbacks, load, world
from bench.machine import sync_ms
from bench.plan import Figures, Plan
from bench.receivers import Reading, receiving

RATE = 100.0
WARM = 100  # callbacks
_GENERATION = re.compile(rb'"id":"(gen_[0-9a-f]{32})"')


class Journeys:
    """When each generation's callback left here, and when its webhooks came back."""

    def __init__(self) -> None:
        self.sent: dict[bytes, float] = {}
        self.seconds: list[float] = []
        self.acknowledged: list[float] = []
        self.strays = 0

    def got(self, body: bytes, at: float) -> None:
        """A webhook came."""
        found = _GENERATION.search(body)
        if found and found[1] in self.sent:
            self.seconds.append(at - self.sent[found[1]])
        else:
            self.strays += 1


async def journeys(path: Path, fan_out: int, rate: float, seconds: float) -> Journeys:
    """Callbacks at random moments, `rate` a second, each for `fan_out` subscribers."""
    seen = Journeys()
    async with receiving(lambda: Reading(seen.got)) as receiver:
        async with world.database(path) as opened:
            made = await world.add_generations(opened, round(rate * seconds * 1.5) + WARM)
            urls = [f"http://127.0.0.1:{receiver}/{index}" for index in range(fan_out)]
            await world.add_subscribers(opened, urls)
        heads = [
            (
                one.id.encode(),
                load.post(world.callback_path(one), callbacks.JSON, b"x" * callbacks.BODY_BYTES),
            )
            for one in made
        ]
        numbers = count()

        def make() -> bytes:
            number = next(numbers)
            id_, whole = heads[number]
            request = whole[: -callbacks.BODY_BYTES] + callbacks.body(number)
            seen.sent[id_] = time.perf_counter()
            return request

        async with world.served(path, GENHOOK_CALLBACK_TRUST="body") as (_, port):
            await asyncio.sleep(0.5)
            (await load.at_rate(port, make, rate=rate, seconds=WARM / rate)).check()
            await asyncio.sleep(0.3)
            seen.sent.clear()
            seen.seconds.clear()
            sent = await load.at_rate(port, make, rate=rate, seconds=seconds)
            sent.check()
            seen.acknowledged = sent.latencies
            for _ in range(100):
                if len(seen.seconds) >= len(seen.sent) * fan_out:
                    break
                await asyncio.sleep(0.05)
    assert len(seen.seconds) == len(seen.sent) * fan_out, "a webhook is missing"
    return seen


async def measure(plan: Plan, figures: Figures) -> None:
    """A hundred callbacks a second for one subscriber each, then fifty for ten each."""
    for _ in range(plan.rounds):
        figures.add(sync_ms=sync_ms(plan.folder))
        for name, fan_out, rate in (("one", 1, RATE), ("ten", 10, RATE / 2)):
            path = plan.folder / "latency.db"
            for left in plan.folder.glob(f"{path.name}*"):
                left.unlink()
            seen = await journeys(path, fan_out, rate, plan.seconds)
            found = seen.seconds
            figures.add(
                **{
                    f"{name}_acknowledged_p50_ms": load.quantile(seen.acknowledged, 0.5) * 1e3,
                    f"{name}_p50_ms": load.quantile(found, 0.5) * 1e3,
                    f"{name}_p99_ms": load.quantile(found, 0.99) * 1e3,
                }
            )
