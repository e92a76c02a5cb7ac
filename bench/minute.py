"""A minute of events on PostgreSQL with several processes, and what follows for 1,160 a second.

The minute runs at a rate that this machine carries beside its load. What more events would need
is computed from the CPU that each part used for an event: `scaled_…` figures are no measurements.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Sequence

from bench import latency, load, whole, world
from bench.machine import Running
from bench.plan import Figures, Plan
from bench.postgres import serve_postgres
from bench.receivers import Reading, serve_protocol

WEB, WORKERS = 2, 2
TARGET = 100_000_000 / 86_400  # Events a second, of 100 million a day.
RATE = 400.0
SECONDS = 60.0
CONNECTIONS = 256  # Of the load to each process.
# A connection of the load that was not needed for so long stays open.
PATIENT = {"GENHOOK_HEAD_SECONDS": "600"}
BUSY = 0.6  # Of a core, as much as a process should use: the rest is for bursts and catching up.
OUTAGE_HOURS = 1.0
_ROLLBACKS = """
SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()"""
_DEADLOCKS = """
SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"""


async def measure(plan: Plan, figures: Figures) -> None:
    """Measure one minute; a quick run takes ten seconds."""
    seconds = SECONDS / 6 if plan.quick else SECONDS
    latencies = latency.Latencies()
    with serve_postgres(plan.folder) as server, whole.all_cores():
        async with serve_protocol(lambda: Reading(latencies.add_webhook)) as receiver_port:
            count = round(RATE * seconds * 1.2) + latency.WARM
            place = await whole.new_schema(server, "minute", receiver_port, count)
            random.Random(7).shuffle(place.generations)  # Some take longer than others.
            async with contextlib.AsyncExitStack() as stack:
                web = [
                    await stack.enter_async_context(
                        whole.freed(world.SERVE, place, **whole.WEB, **PATIENT)
                    )
                    for _ in range(WEB)
                ]
                work = [
                    await stack.enter_async_context(
                        whole.freed(world.WORK, place, **whole.BELIEVED)
                    )
                    for _ in range(WORKERS)
                ]
                await asyncio.sleep(3)  # The workers share the work.
                ports = [port for _, port in web]
                parts = {"web": [r for r, _ in web], "worker": [r for r, _ in work]}
                await _load(place, ports, latencies, latency.WARM / RATE)
                await asyncio.sleep(1)
                await _measure(place, ports, parts, latencies, seconds, figures)
    _scale(figures)


async def _load(
    place: whole.Place, ports: Sequence[int], latencies: latency.Latencies, seconds: float
) -> int:
    """Send events at the rate for so long, in equal parts to the processes; return their number."""
    answers = await asyncio.gather(
        *(
            load.run_at_rate(
                port,
                _requests(place, latencies),
                rate=RATE / len(ports),
                seconds=seconds,
                connections=CONNECTIONS,
                seed=port,
            )
            for port in ports
        )
    )
    for each in answers:
        each.check()
        latencies.answers += each.latencies
    return sum(each.count for each in answers)


def _requests(place: whole.Place, latencies: latency.Latencies) -> Callable[[], bytes]:
    def next_request() -> bytes:
        [(generation, request)] = place.take(1)
        latencies.sent_at[generation.id.encode()] = time.perf_counter()
        return request

    return next_request


async def _measure(
    place: whole.Place,
    ports: Sequence[int],
    parts: dict[str, list[Running]],
    latencies: latency.Latencies,
    seconds: float,
    figures: Figures,
) -> None:
    """Add what the events of the time cost, and how long they took."""
    server = place.server
    assert server is not None

    def used() -> dict[str, float]:
        return {
            **{name: sum(r.cpu_seconds() for r in running) for name, running in parts.items()},
            "server": server.cpu_seconds(),
        }

    for noted in (latencies.sent_at, latencies.webhooks, latencies.answers):
        noted.clear()
    recorded = "SELECT count(*) FROM attempts"
    stored, size, before = await place.value(recorded), await place.size_bytes(), used()
    rollbacks = await place.value(_ROLLBACKS)
    count = await _load(place, ports, latencies, seconds)
    for _ in range(600):
        if await place.value(recorded) == stored + count:
            break
        await asyncio.sleep(0.1)
    assert await place.value(recorded) == stored + count, "not every delivery was recorded once"
    assert len(latencies.webhooks) == count, "a webhook came twice or not at all"
    after = used()
    figures.add(
        events_per_second=count / seconds,
        answer_p50_ms=load.quantile(latencies.answers, 0.5) * 1e3,
        answer_p99_ms=load.quantile(latencies.answers, 0.99) * 1e3,
        webhook_p50_ms=load.quantile(latencies.webhooks, 0.5) * 1e3,
        webhook_p99_ms=load.quantile(latencies.webhooks, 0.99) * 1e3,
        webhook_longest_ms=max(latencies.webhooks) * 1e3,
        repeated_percent=(await place.value(_ROLLBACKS) - rollbacks) / count * 100,
        deadlocks=float(await place.value(_DEADLOCKS)),
        event_bytes=(await place.size_bytes() - size) / count,
        **{f"{name}_cpu_us": (after[name] - before[name]) / count * 1e6 for name in after},
    )


def _scale(figures: Figures) -> None:
    """Compute what 1,160 events a second need, each part at BUSY of its cores."""
    cpu_us = {name: figures.median(f"{name}_cpu_us") for name in ("web", "worker", "server")}
    cores = {name: TARGET * us / 1e6 for name, us in cpu_us.items()}
    processes = {name: max(1, -(-cores[name] // BUSY)) for name in ("web", "worker")}
    # After an outage of upstream's callbacks' receiver nothing waits; after one of the workers, an
    # hour of deliveries does, beside those that come in. Workers then use the whole of their cores.
    spare = processes["worker"] - cores["worker"]
    figures.add(
        **{f"scaled_{name}_cores": used for name, used in cores.items()},
        **{f"scaled_{name}_processes": float(number) for name, number in processes.items()},
        scaled_catch_up_hours=OUTAGE_HOURS * cores["worker"] / spare,
        scaled_gb_per_day=figures.median("event_bytes") * TARGET * 86_400 / 1e9,
    )
