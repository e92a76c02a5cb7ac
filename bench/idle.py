"""What waiting costs: a million deliveries that are not due, ten thousand tasks to ask about."""

import asyncio
import time
from functools import partial

from bench import history, world
from bench.machine import HOST
from bench.plan import Figures, Plan
from bench.receivers import Upstream, receiving
from service.model.clock import now_ms

BUDGET = 50
TASKS = 10_000
SETTLE_SECONDS = 4.0


async def measure(plan: Plan, figures: Figures) -> None:
    """The real process with a long history, nothing of which is due: CPU, of one core."""
    path = await history.built(plan)
    for _ in range(plan.rounds):
        async with world.served(path) as (running, _):
            await asyncio.sleep(SETTLE_SECONDS)
            before, began = running.cpu_seconds(), time.perf_counter()
            await asyncio.sleep(2 * plan.seconds)
            used, took = running.cpu_seconds() - before, time.perf_counter() - began
            figures.add(percent_of_core=used / took * 100, memory_mb=running.memory_mb())


async def measure_polling(plan: Plan, figures: Figures) -> None:
    """Ten thousand open tasks that are all due, and a budget of fifty questions a second."""
    for _ in range(plan.rounds):
        path = plan.folder / "polling.db"
        for left in plan.folder.glob(f"{path.name}*"):
            left.unlink()
        async with world.database(path) as opened:
            await world.add_generations(opened, TASKS, next_poll_at=now_ms(), route="poll")
        upstream: list[float] = []
        async with receiving(partial(Upstream, upstream)) as port:
            variables = {
                "GENHOOK_UPSTREAM_URL": f"http://{HOST}:{port}/api/v1",
                "GENHOOK_POLL_RATE_PER_SECOND": str(BUDGET),
            }
            async with world.served(path, **variables) as (running, _):
                await asyncio.sleep(SETTLE_SECONDS)
                first, began, cpu = len(upstream), time.perf_counter(), running.cpu_seconds()
                await asyncio.sleep(2 * plan.seconds)
                took = time.perf_counter() - began
                figures.add(
                    per_second=(len(upstream) - first) / took,
                    of_budget=(len(upstream) - first) / took / BUDGET,
                    memory_mb=running.memory_mb(),
                    percent_of_core=(running.cpu_seconds() - cpu) / took * 100,
                )
