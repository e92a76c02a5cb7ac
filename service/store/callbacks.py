"""Callbacks as they came in: stored with a verdict, raw body and headers apart."""

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from service.store.database import Row, Transaction
from service.store.rows import encode

REJECTED_KEPT = 1_000
REJECTED_BODY_BYTES = 4_096


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """One inbound request whose token named a generation, before anything of it is believed."""

    id: str
    generation_id: str
    nonce: str
    upstream: str
    received_at: int
    trust: str
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    readable: bool
    reason: str | None = None


def encode_headers(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Header lines as JSON, for the table of raw bodies."""
    return encode([(n.decode("latin-1"), v.decode("latin-1")) for n, v in headers])


async def insert(tx: Transaction, arrivals: Sequence[Arrival]) -> list[str | None]:
    """Store arrivals; the verdict that the generation's state gives to each.

    None where no generation has the arrival's id and nonce: nothing of it was stored.
    """
    verdicts: list[str | None] = []
    for arrival in arrivals:
        row = await tx.one(
            "callback_insert",
            id=arrival.id,
            generation_id=arrival.generation_id,
            nonce=arrival.nonce,
            upstream=arrival.upstream,
            received_at=arrival.received_at,
            reason=arrival.reason,
            trust=arrival.trust,
            readable=arrival.readable,
            body_sha256=hashlib.sha256(arrival.body).digest(),
        )
        verdicts.append(row["verdict"] if row else None)
    kept = [a for a, verdict in zip(arrivals, verdicts, strict=True) if verdict]
    await tx.many(
        "callback_bodies_insert",
        [{"id": a.id, "headers": encode_headers(a.headers), "body": a.body} for a in kept],
    )
    return verdicts


async def ask_now(tx: Transaction, arrivals: Sequence[Arrival]) -> None:
    """Have upstream asked about the generations, once a second each at most."""
    rows = [{"id": arrival.generation_id, "now": tx.now} for arrival in arrivals]
    await tx.many("generations_ask_now", rows)


async def reject(tx: Transaction, arrival: Arrival, generation_id: str | None) -> None:
    """Keep a rejected callback for a while, its body cut short; nothing of it is believed."""
    await tx.run(
        "callback_reject",
        id=arrival.id,
        generation_id=generation_id,
        upstream=arrival.upstream,
        received_at=arrival.received_at,
        reason=arrival.reason,
        body_sha256=hashlib.sha256(arrival.body).digest(),
    )
    await tx.many(
        "callback_bodies_insert",
        [
            {
                "id": arrival.id,
                "headers": encode_headers(arrival.headers),
                "body": arrival.body[:REJECTED_BODY_BYTES],
            }
        ],
    )


async def get(tx: Transaction, tenant: str, callback_id: str) -> Row | None:
    """One callback with its raw headers and body."""
    return await tx.one("callback_by_id", tenant=tenant, id=callback_id)


async def of_generation(tx: Transaction, generation_id: str) -> list[Row]:
    """The callbacks of a generation, in the order of their arrival."""
    return await tx.all("callbacks_of_generation", generation_id=generation_id)


async def latest_bodies(tx: Transaction, generation_id: str) -> list[bytes]:
    """The newest few bodies: where a task id may be found if the create answer was lost."""
    rows = await tx.all("callback_bodies_latest", generation_id=generation_id)
    return [row["body"] for row in rows]


async def delete_old_rejected(tx: Transaction, before: int, limit: int) -> int:
    """Delete rejected callbacks that are old or too many; how many went."""
    rows: list[Any] = await tx.all(
        "callbacks_rejected_old", before=before, keep=REJECTED_KEPT, limit=limit
    )
    keys = [{"tenant": row["tenant"], "id": row["id"]} for row in rows]
    await tx.many("callback_delete", keys)
    await tx.many("callback_body_delete", keys)
    return len(keys)
