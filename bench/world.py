"""Worlds to measure in: databases with rows made by the service's own store, and its process."""

import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from bench.machine import HOST, Running, free_port, started
from service.delivery import signing_keys
from service.model.clock import now_ms, rfc3339
from service.model.generation import Generation
from service.model.ids import new_id
from service.model.subscriber import Subscriber
from service.store import subscribers
from service.store.rows import json_text
from service.store.sqlite.database import Database, Transaction
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
async def database(path: Path) -> AsyncIterator[Database]:
    """The service's database at `path`, with its schema."""
    opened = Database(str(path))
    await opened.open()
    try:
        await opened.migrate()
        yield opened
    finally:
        await opened.close()


SERVE = [str(Path(sys.executable).with_name("genhook")), "serve"]


def environment(path: Path, port: int, **variables: str) -> dict[str, str]:
    """Settings of a service that knows nothing but this machine; its upstream is a dead port."""
    return {
        "GENHOOK_DATABASE_URL": f"sqlite:///{path}",
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
async def served(path: Path, **variables: str) -> AsyncIterator[tuple[Running, int]]:
    """`genhook serve` on the subject's core, once it listens."""
    port = free_port()
    with started(SERVE, environment(path, port, **variables)) as running:
        await running.answers(port)
        yield running, port


def generation(now: int, index: int, **changes: Any) -> Generation:
    """A generation that upstream works on, and that nobody asks about for hours."""
    made = Generation(
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
    return msgspec.structs.replace(made, **changes)


async def in_chunks(
    of: Database, count: int, insert: Callable[..., Any], make: Callable[[int], Any]
) -> list[Any]:
    """`count` things by their number, stored `CHUNK` at a time."""
    made: list[Any] = []
    for start in range(0, count, CHUNK):
        chunk = [make(index) for index in range(start, min(count, start + CHUNK))]
        await of.write(insert, chunk)
        made += chunk
    return made


async def insert_generations(tx: Transaction, made: Sequence[Generation]) -> None:
    """Many generations at once, by the store's own statements."""
    rows = [msgspec.structs.asdict(one) for one in made]
    for row in rows:
        for name in ("input", "metadata", "event_ids"):
            row[name] = json_text(row[name])
    await tx.many("generation_insert", rows)
    await tx.many("generation_body_insert", rows)
    await tx.many("generation_update", rows)


async def add_generations(of: Database, count: int, **changes: Any) -> list[Generation]:
    """`count` open generations."""
    now = now_ms()
    return await in_chunks(
        of, count, insert_generations, lambda index: generation(now, index, **changes)
    )


async def add_subscribers(of: Database, urls: Sequence[str], **fields: Any) -> list[str]:
    """A subscriber for each URL, with a secret of its own; their ids."""
    vault, now = Vault([SECRET_KEY]), now_ms()
    made = []
    for url in urls:
        id_ = new_id("sub", now)
        made.append(
            Subscriber(
                id=id_,
                tenant=TENANT,
                url=url,
                sealed_secrets=signing_keys.seal(vault, signing_keys.new_secrets(os.urandom), id_),
                created_at=now,
                updated_at=now,
                **{"retry_schedule_seconds": NO_RETRY_SECONDS, **fields},
            )
        )

    async def insert(tx: Transaction) -> None:
        for one in made:
            await subscribers.insert(tx, one)

    await of.write(insert)
    return [one.id for one in made]


EVENT = {"type": "generation.succeeded", "data": {"output": "x" * 800}}


async def insert_events(tx: Transaction, rows: Sequence[dict[str, Any]]) -> None:
    """Many events at once."""
    await tx.many("event_insert", rows)


async def insert_deliveries(tx: Transaction, rows: Sequence[dict[str, Any]]) -> None:
    """Many deliveries at once."""
    await tx.many("deliveries_insert", rows)


def event(now: int, index: int) -> dict[str, Any]:
    """An event's row, its body about a kilobyte."""
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
    of: Database,
    subscriber_ids: Sequence[str],
    count: int,
    due_at: Callable[[int], int],
    *,
    fan_out: int = 10,
) -> None:
    """`count` pending deliveries, spread over the subscribers, `fan_out` of each event."""
    now = now_ms()
    events = await in_chunks(of, -(-count // fan_out), insert_events, lambda i: event(now, i))

    def delivery(index: int) -> dict[str, Any]:
        about = events[index // fan_out]
        return {
            "tenant": TENANT,
            "id": new_id("dlv", now),
            "subscriber_id": subscriber_ids[index % len(subscriber_ids)],
            "event_id": about["id"],
            "event_type": about["type"],
            "generation_id": about["generation_id"],
            "trigger": "scheduled",
            "due_at": due_at(index),
            "created_at": now,
        }

    await in_chunks(of, count, insert_deliveries, delivery)


def callback_path(of: Generation) -> str:
    """Where upstream calls back about the generation."""
    token = tokens.mint(of.id, of.nonce, of.deadline_at + HOUR_MS)
    return f"/callbacks/apiinone/{token}"


def stopwatch() -> Callable[[], float]:
    """A function that says how many seconds have passed since."""
    began = time.perf_counter()
    return lambda: time.perf_counter() - began
