"""Databases filled by the service's own store, and the process of the service."""

import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from bench.machine import HOST, Running, find_free_port, start_process
from service.delivery import signing
from service.model.clock import now_ms, rfc3339
from service.model.generation import Generation
from service.model.ids import new_id
from service.model.subscriber import Subscriber
from service.store import rows
from service.store.rows import json_text
from service.store.sqlite.database import Database
from service.store.sqlite.group import Transaction
from service.store.vault import Vault
from service.upstream.callback_url import CallbackTokens, new_nonce

SECRET_KEY = "measured-measured-measured-measured"
ADMIN_KEY = "ghk_measured_measured_measured_measured"
TENANT = "default"
HOUR_MS = 3_600_000
FAR_MS = 6 * HOUR_MS
CHUNK = 20_000
NO_RETRY_SECONDS = [0, 600, 3_600]

tokens = CallbackTokens([SECRET_KEY], "apiinone")


@asynccontextmanager
async def open_database(path: Path | str) -> AsyncIterator[Database]:
    """Open the database at a path or a URL with its latest schema, and close it afterwards."""
    database = Database(str(path)) if isinstance(path, Path) else _new_postgres(path)
    await database.open()
    try:
        await database.migrate()
        yield database
    finally:
        await database.close()


def _new_postgres(url: str) -> Any:
    from service.store.postgres.database import Database as Postgres  # noqa: PLC0415  heavy

    return Postgres(url)


GENHOOK = str(Path(sys.executable).with_name("genhook"))
SERVE, WORK = [GENHOOK, "serve"], [GENHOOK, "work"]


def environment(path: Path | str, port: int, **variables: str) -> dict[str, str]:
    """Return settings of a service on this machine; nothing listens at its upstream's address."""
    return {
        "GENHOOK_DATABASE_URL": f"sqlite:///{path}" if isinstance(path, Path) else path,
        "GENHOOK_SECRET_KEYS": SECRET_KEY,
        "GENHOOK_ADMIN_KEY": ADMIN_KEY,
        "GENHOOK_UPSTREAM_URL": f"http://{HOST}:9/api/v1",
        "GENHOOK_UPSTREAM_API_KEY": "aio_measured",
        "GENHOOK_PUBLIC_URL": f"http://{HOST}:{port}",
        "GENHOOK_ALLOW_HTTP": "true",
        "GENHOOK_ALLOW_NETWORKS": "127.0.0.0/8",
        "PORT": str(port),
        **variables,
    }


@asynccontextmanager
async def serve(path: Path | str, **variables: str) -> AsyncIterator[tuple[Running, int]]:
    """Run `genhook serve` on the subject's core; yields once it listens."""
    port = find_free_port()
    with start_process(SERVE, environment(path, port, **variables)) as running:
        await running.wait_for_port(port)
        yield running, port


def new_generation(now: int, index: int, **changes: Any) -> Generation:
    """Return a generation in progress whose next poll is hours away."""
    generation = Generation(
        id=new_id("gen", now),
        tenant=TENANT,
        model="imagen4-fast",
        status="processing",
        route="callback",
        input={"prompt": "A harbour at dawn, seen from the breakwater", "aspect_ratio": "16:9"},
        metadata={},
        task_id=f"task_{index:012d}",
        created_at=now,
        submitted_at=now,
        deadline_at=now + FAR_MS,
        nonce=new_nonce(os.urandom),
        submission="taken",
        next_poll_at=now + FAR_MS,
    )
    return msgspec.structs.replace(generation, **changes)


async def insert_in_chunks(
    database: Database, count: int, insert: Callable[..., Any], make: Callable[[int], Any]
) -> list[Any]:
    """Make `count` rows by their number and store them, CHUNK in one transaction."""
    rows: list[Any] = []
    for start in range(0, count, CHUNK):
        chunk = [make(index) for index in range(start, min(count, start + CHUNK))]
        await database.write(insert, chunk)
        rows += chunk
    return rows


async def insert_generations(tx: Transaction, generations: Sequence[Generation]) -> None:
    """Store many generations by the store's own statements."""
    rows = [msgspec.structs.asdict(generation) for generation in generations]
    for row in rows:
        for name in ("input", "metadata", "event_ids"):
            row[name] = json_text(row[name])
    await tx.many("generation_insert", rows)
    await tx.many("generation_body_insert", rows)
    await tx.many("generation_update", rows)


async def add_generations(database: Database, count: int, **changes: Any) -> list[Generation]:
    """Store `count` open generations."""
    now = now_ms()
    return await insert_in_chunks(
        database, count, insert_generations, lambda index: new_generation(now, index, **changes)
    )


async def add_subscribers(database: Database, urls: Sequence[str], **fields: Any) -> list[str]:
    """Store a subscriber with its own secret for each URL; return their ids."""
    vault, now = Vault([SECRET_KEY]), now_ms()
    new = []
    for url in urls:
        id_ = new_id("sub", now)
        new.append(
            Subscriber(
                id=id_,
                tenant=TENANT,
                url=url,
                sealed_secrets=signing.seal(vault, signing.new_secrets(os.urandom), id_),
                created_at=now,
                updated_at=now,
                **{"retry_schedule_seconds": NO_RETRY_SECONDS, **fields},
            )
        )

    async def insert(tx: Transaction) -> None:
        for subscriber in new:
            await rows.insert(tx, subscriber)

    await database.write(insert)
    return [subscriber.id for subscriber in new]


EVENT = {"type": "generation.succeeded", "data": {"output": "x" * 800}}


async def insert_events(tx: Transaction, rows: Sequence[dict[str, Any]]) -> None:
    """Store many events."""
    await tx.many("event_insert", rows)


async def insert_deliveries(tx: Transaction, rows: Sequence[dict[str, Any]]) -> None:
    """Store many deliveries."""
    await tx.many("deliveries_insert", rows)


def new_event(now: int, index: int) -> dict[str, Any]:
    """Return the row of an event with a body of about a kilobyte."""
    id_ = new_id("evt", now)
    body = msgspec.json.encode({"id": id_, "timestamp": rfc3339(now), **EVENT})
    return {
        "id": id_,
        "tenant": TENANT,
        "type": EVENT["type"],
        "generation_id": f"gen_{index:032x}",
        "created_at": now,
        "body": body,
    }


async def add_backlog(
    database: Database,
    subscriber_ids: Sequence[str],
    count: int,
    due_at: Callable[[int], int],
    *,
    fan_out: int = 10,
) -> None:
    """Store `count` pending deliveries for the subscribers in turn, `fan_out` of each event."""
    now = now_ms()
    events = await insert_in_chunks(
        database, -(-count // fan_out), insert_events, lambda index: new_event(now, index)
    )

    def new_delivery(index: int) -> dict[str, Any]:
        event = events[index // fan_out]
        return {
            "tenant": TENANT,
            "id": new_id("dlv", now),
            "subscriber_id": subscriber_ids[index % len(subscriber_ids)],
            "event_id": event["id"],
            "event_type": event["type"],
            "generation_id": event["generation_id"],
            "trigger": "scheduled",
            "due_at": due_at(index),
            "created_at": now,
        }

    await insert_in_chunks(database, count, insert_deliveries, new_delivery)


def callback_path(generation: Generation) -> str:
    """Return the path to which upstream sends the generation's callbacks."""
    expires_at = generation.deadline_at + HOUR_MS
    token = tokens.mint(generation.id, generation.nonce, expires_at)
    return f"/callbacks/apiinone/{token}"
