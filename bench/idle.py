"""The cost of waiting: a million deliveries that are not due, and ten thousand open tasks."""

import asyncio
import time
from functools import partial

from bench import history, world
from bench.machine import HOST
from bench.plan import Figures, Plan
from bench.receivers import Upstream, serve_protocol
from service.model.clock import now_ms

BUDGET = 50  # Polls per second.
TASKS = 10_000
SETTLE_SECONDS = 4.0


async def measure(plan: Plan, figures: Figures) -> None:
    """Measure the CPU of a process with a long history and nothing due, in percent of a core."""
    path = await history.build(plan)
    for _ in range(plan.rounds):
        async with world.serve(path) as (running, _):
            await asyncio.sleep(SETTLE_SECONDS)
            cpu, began = running.cpu_seconds(), time.perf_counter()
            await asyncio.sleep(2 * plan.seconds)
            cpu, seconds = running.cpu_seconds() - cpu, time.perf_counter() - began
            figures.add(percent_of_core=cpu / seconds * 100, memory_mb=running.memory_mb())


async def measure_polling(plan: Plan, figures: Figures) -> None:
    """Measure the poll rate with ten thousand due tasks and a budget of 50 polls per second."""
    for _ in range(plan.rounds):
        path = plan.folder / "polling.db"
        for file in plan.folder.glob(f"{path.name}*"):
            file.unlink()
        async with world.open_database(path) as database:
            await world.add_generations(database, TASKS, next_poll_at=now_ms(), route="poll")
        polled_at: list[float] = []
        async with serve_protocol(partial(Upstream, polled_at)) as port:
            variables = {
                "GENHOOK_UPSTREAM_URL": f"http://{HOST}:{port}/api/v1",
                "GENHOOK_POLL_RATE_PER_SECOND": str(BUDGET),
            }
            async with world.serve(path, **variables) as (running, _):
                await asyncio.sleep(SETTLE_SECONDS)
                before, began, cpu = len(polled_at), time.perf_counter(), running.cpu_seconds()
                await asyncio.sleep(2 * plan.seconds)
                seconds = time.perf_counter() - began
                figures.add(
                    per_second=(len(polled_at) - before) / seconds,
                    of_budget=(len(polled_at) - before) / seconds / BUDGET,
                    memory_mb=running.memory_mb(),
                    percent_of_core=(running.cpu_seconds() - cpu) / seconds * 100,
                )
