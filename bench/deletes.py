"""Retention on PostgreSQL: how fast old generations are deleted, with all that belongs to them."""

import asyncio
import statistics
import time
from collections import defaultdict
from typing import Any

import asyncpg

from bench import world
from bench.plan import Figures, Plan
from bench.postgres import Server, serve_postgres
from service.model.clock import DAY, now_ms
from service.store import retention

SLICE = 20_000  # Generations that one sweep finds old, each with an event, a delivery, an attempt.
SEED_SECONDS = 480.0  # What is not stored by then is left out.
CHUNK = 100_000
AGE_DAYS, RETENTION_DAYS = 60, 30  # They are spread evenly over the days before now.
SUBSCRIBERS = 20
TABLES = ("generations", "generation_bodies", "events", "deliveries", "attempts")
# The digits of an id hold its time; {at} is that of row n.
_ID = "lpad(to_hex({at}), 12, '0') || lpad(to_hex(n), 20, '0')"
_ROWS = "FROM generate_series(CAST({begin} AS BIGINT), {end} - 1) n"
_GENERATIONS = f"""
INSERT INTO generations (id, tenant, model, status, route, task_id, submitted_at, completed_at,
    deadline_at, nonce, submission, submit_count, event_ids)
SELECT 'gen_' || {_ID}, '{world.TENANT}', 'imagen4-fast', 'succeeded', 'callback', 'task_' || n,
    {{at}}, {{at}}, {{at}}, 'nonce', 'taken', 1, '["evt_' || {_ID} || '"]' {_ROWS};
INSERT INTO generation_bodies (generation_id, input, metadata, output)
SELECT 'gen_' || {_ID}, '{{{{"prompt": "A harbour at dawn, seen from the breakwater"}}}}',
    '{{{{}}}}', '{{{{"files": [{{{{"url": "https://cdn.example/1.png"}}}}]}}}}' {_ROWS}"""
_EVENTS = f"""
INSERT INTO events (id, seq, tenant, type, generation_id, body)
SELECT 'evt_' || {_ID}, n + 1, '{world.TENANT}', 'generation.succeeded', 'gen_' || {_ID},
    convert_to(repeat('x', 300), 'UTF8') {_ROWS};
INSERT INTO deliveries (tenant, id, subscriber_id, event_id, event_type, generation_id, status,
    attempt_count, delivered_at)
SELECT '{world.TENANT}', 'dlv_' || {_ID}, 'sub_' || n % {SUBSCRIBERS}, 'evt_' || {_ID},
    'generation.succeeded', 'gen_' || {_ID}, 'delivered', 1, {{at}} {_ROWS};
INSERT INTO attempts (delivery_id, number, id, trigger, started_at, duration_ms, status_code,
    response_headers, response_body)
SELECT 'dlv_' || {_ID}, 1, 'att_' || {_ID}, 'scheduled', {{at}}, 12, 204, '[]', '' {_ROWS}"""


async def measure(plan: Plan, figures: Figures) -> None:
    """Measure sweeps of SLICE old generations among all: alone, and beside a VACUUM."""
    first, step = now_ms() - AGE_DAYS * DAY, AGE_DAYS * DAY // plan.size(plan.rows)
    with serve_postgres(plan.folder) as server:
        async with world.open_database(await server.new_schema("deletes")) as database:
            # It would run at moments of its own; a VACUUM stands for it.
            await _set(server, autovacuum="off", max_wal_size="8GB")
            figures.add(rows=float(await _fill(server, plan.size(plan.rows), first, step)))
            await _set(server, max_wal_size="1GB")
            await server.execute("VACUUM ANALYZE; CHECKPOINT", "deletes")
            for number in range(plan.rounds):
                for beside, place in (("", 2 * number + 1), ("vacuumed_", 2 * number + 2)):
                    now = first + place * SLICE * step + RETENTION_DAYS * DAY
                    vacuum = asyncio.create_task(_vacuum(server)) if beside else None
                    for name, value in (await _sweep(database, now)).items():
                        figures.add(**{f"{beside}{name}": value})
                    if vacuum is not None:
                        await _stop(vacuum)
                figures.ratio("vacuumed_of_alone", "vacuumed_per_second", "per_second")


async def _set(server: Server, **settings: str) -> None:
    alter = ";".join(f"ALTER SYSTEM SET {name} = '{value}'" for name, value in settings.items())
    await server.execute(f"{alter};SELECT pg_reload_conf()")


async def _fill(server: Server, rows: int, first: int, step: int) -> int:
    """Store generations that ended `step` milliseconds after each other; return how many."""
    ends_at, stored = time.monotonic() + SEED_SECONDS, 0
    tenant = f"INSERT INTO tenants VALUES ('{world.TENANT}', '', 0) ON CONFLICT DO NOTHING"
    await server.execute(tenant, "deletes")
    while stored < rows and time.monotonic() < ends_at:
        span = {"at": f"({first} + n * {step})", "begin": stored, "end": min(stored + CHUNK, rows)}
        texts = (text.format(**span) for text in (_GENERATIONS, _EVENTS))
        await asyncio.gather(*(server.execute(text, "deletes") for text in texts))
        stored = min(stored + CHUNK, rows)
    return stored


async def _sweep(database: Any, now: int) -> dict[str, float]:
    """Return how many generations a sweep deletes a second, and what a batch of each kind takes."""
    sweep, took = retention.Sweep(), defaultdict[str, list[float]](list)
    deleted = 0
    while not deleted or sweep.stages:
        name = sweep.stages[0].args[0] if sweep.stages else ""  # type: ignore[attr-defined]
        began = time.perf_counter()
        count, _ = await retention.run_due(database, sweep, RETENTION_DAYS, now)
        if count:
            took[name.removesuffix("_old")].append(time.perf_counter() - began)
        deleted += count
    assert deleted == 3 * SLICE, "it deleted others than it should"
    seconds = sum(map(sum, took.values()))
    batches = {f"{name}_batch_ms": statistics.median(each) * 1e3 for name, each in took.items()}
    return {"per_second": SLICE / seconds, **batches}


async def _vacuum(server: Server) -> None:
    """Vacuum every table again and again, at the pace of autovacuum, until it is cancelled."""
    connection = await asyncpg.connect(server.url("deletes"))
    try:
        await connection.execute("SET vacuum_cost_delay = '2ms'")
        while True:
            for table in TABLES:
                await connection.execute(f"VACUUM {table}", timeout=600)
    finally:
        connection.terminate()


async def _stop(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
