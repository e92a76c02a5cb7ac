"""A million deliveries on PostgreSQL: how fast due ones are claimed."""

import time
from collections.abc import Mapping
from typing import Any

from bench import world
from bench.plan import Figures, Plan
from bench.postgres import Server, new_database, serve_postgres
from service.model.clock import now_ms
from service.store import deliveries

FEW = 10_000
SUBSCRIBERS = 20
CLAIM = 100  # Deliveries that one claim reads.
HOUR_MS = 3_600_000
# Copies of each row with other ids, whose due times lie between those of the rows.
_COPY_EVENTS = """
INSERT INTO events (id, tenant, type, generation_id, body)
SELECT left(id, -4) || lpad(to_hex(k), 4, '0'), tenant, type, generation_id, body
FROM events, generate_series(1, {times} - 1) k ON CONFLICT DO NOTHING"""
_COPY_DELIVERIES = """
INSERT INTO deliveries (tenant, id, subscriber_id, event_id, event_type, generation_id, trigger,
    due_at)
SELECT tenant, left(id, -4) || lpad(to_hex(k), 4, '0'), subscriber_id,
    left(event_id, -4) || lpad(to_hex(k), 4, '0'), event_type, generation_id, trigger,
    due_at + k * {step} / {times}
FROM deliveries, generate_series(1, {times} - 1) k ON CONFLICT DO NOTHING"""


async def _fill(server: Server, schema: str, times: int) -> None:
    """Make `times` FEW pending deliveries for 20 subscribers, from an hour ago to an hour hence."""
    step = 2 * HOUR_MS // FEW
    async with new_database(server, schema) as database:
        urls = [f"http://127.0.0.1:9/{index}" for index in range(SUBSCRIBERS)]
        ids = await world.add_subscribers(database, urls)
        begin = now_ms() - HOUR_MS
        await world.add_backlog(database, ids, FEW, lambda n: begin + n * step)
    for copy in (_COPY_EVENTS, _COPY_DELIVERIES):
        await server.execute(copy.format(times=times, step=step), schema)
    await server.execute("VACUUM ANALYZE; CHECKPOINT", schema)


async def measure(plan: Plan, figures: Figures) -> None:
    """Measure claims for 20 subscribers in turn: of 10,000 and of a million, half of them due."""
    with serve_postgres(plan.folder) as server:
        await _fill(server, "few", 1)
        await _fill(server, "many", plan.size(1_000_000) // FEW)
        figures.add(rows=float(await server.value("SELECT count(*) FROM deliveries", "many")))
        async with (
            world.open_database(server.url("few")) as few,
            world.open_database(server.url("many")) as many,
        ):
            databases = {"few": few, "many": many}
            for _ in range(plan.rounds):
                for name, per_second in (await _claim(server, databases, plan.seconds)).items():
                    figures.add(**{f"{name}_per_second": per_second})
                figures.ratio("many_of_few", "many_per_second", "few_per_second")


async def _claim(server: Server, databases: Mapping[str, Any], seconds: float) -> dict[str, float]:
    """Return how many claims one reader makes a second, by schema: one of each in turn."""
    ids = {
        name: (await server.value("SELECT string_agg(id, ' ') FROM subscribers", name)).split()
        for name in databases
    }
    count, took = 0, dict.fromkeys(databases, 0.0)
    while sum(took.values()) < seconds:
        for name, database in databases.items():
            began = time.perf_counter()
            claim = (ids[name][count % SUBSCRIBERS], CLAIM, "first", False, frozenset())
            due, _ = await database.read(deliveries.fetch_due, *claim)
            took[name] += time.perf_counter() - began
            assert len(due) == CLAIM, "too few deliveries are due"
        count += 1
    return {name: count / each for name, each in took.items()}
