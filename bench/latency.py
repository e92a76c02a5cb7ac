"""The time from a callback to its webhooks, with `GENHOOK_CALLBACK_TRUST=body`."""

import asyncio
import re
import time
from pathlib import Path

from bench import callbacks, load, world
from bench.machine import measure_sync_ms
from bench.plan import Figures, Plan
from bench.receivers import Reading, serve_protocol

RATE = 100.0
WARM = 100  # callbacks
_GENERATION = re.compile(rb'"id":"(gen_[0-9a-f]{32})"')


class Latencies:
    """The seconds from each callback to its answer, and to each of its webhooks."""

    def __init__(self) -> None:
        self.sent_at: dict[bytes, float] = {}  # By the generation's id.
        self.webhooks: list[float] = []
        self.answers: list[float] = []

    def add_webhook(self, body: bytes, at: float) -> None:
        """Note that a webhook arrived; those of the warm-up are ignored."""
        match = _GENERATION.search(body)
        if match and match[1] in self.sent_at:
            self.webhooks.append(at - self.sent_at[match[1]])


async def run(path: Path, fan_out: int, rate: float, seconds: float) -> Latencies:
    """Send `rate` callbacks per second, each with an outcome for `fan_out` subscribers."""
    latencies = Latencies()
    async with serve_protocol(lambda: Reading(latencies.add_webhook)) as receiver_port:
        async with world.open_database(path) as database:
            number = round(rate * seconds * 1.5) + WARM
            generations = await world.add_generations(database, number)
            urls = [f"http://127.0.0.1:{receiver_port}/{index}" for index in range(fan_out)]
            await world.add_subscribers(database, urls)
        build_request = callbacks.cycle_requests([world.callback_path(g) for g in generations])
        ids = iter([generation.id.encode() for generation in generations])

        def next_request() -> bytes:
            request = build_request()
            latencies.sent_at[next(ids)] = time.perf_counter()
            return request

        async with world.serve(path, GENHOOK_CALLBACK_TRUST="body") as (_, port):
            await asyncio.sleep(0.5)
            (await load.run_at_rate(port, next_request, rate=rate, seconds=WARM / rate)).check()
            await asyncio.sleep(0.3)
            latencies.sent_at.clear()
            latencies.webhooks.clear()
            answers = await load.run_at_rate(port, next_request, rate=rate, seconds=seconds)
            answers.check()
            latencies.answers = answers.latencies
            for _ in range(100):
                if len(latencies.webhooks) >= len(latencies.sent_at) * fan_out:
                    break
                await asyncio.sleep(0.05)
    assert len(latencies.webhooks) == len(latencies.sent_at) * fan_out, "a webhook is missing"
    return latencies


async def measure(plan: Plan, figures: Figures) -> None:
    """Measure 100 callbacks per second for one subscriber, then 50 for ten subscribers."""
    for _ in range(plan.rounds):
        figures.add(sync_ms=measure_sync_ms(plan.folder))
        for name, fan_out, rate in (("one", 1, RATE), ("ten", 10, RATE / 2)):
            path = plan.folder / "latency.db"
            for file in plan.folder.glob(f"{path.name}*"):
                file.unlink()
            latencies = await run(path, fan_out, rate, plan.seconds)
            figures.add(
                **{
                    f"{name}_answer_p50_ms": load.quantile(latencies.answers, 0.5) * 1e3,
                    f"{name}_p50_ms": load.quantile(latencies.webhooks, 0.5) * 1e3,
                    f"{name}_p99_ms": load.quantile(latencies.webhooks, 0.99) * 1e3,
                }
            )
