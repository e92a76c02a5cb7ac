"""Callbacks as they came in: stored with a verdict, raw body and headers apart."""

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from service.store.database import Row, Transaction
from service.store.generations import CONFIRM_INTERVAL_MS
from service.store.rows import encode, text

REJECTED_KEPT = 1_000
REJECTED_BODY_BYTES = 4_096


class Arrival(msgspec.Struct, kw_only=True):
    """One inbound request, filled in as it is verified; nothing of it is believed yet."""

    id: str
    upstream: str
    received_at: int
    headers: Sequence[tuple[bytes, bytes]]
    generation_id: str = ""
    nonce: str = ""
    trust: str = "confirm"
    body: bytes = b""
    readable: bool = False
    reason: str | None = None


def encode_headers(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Header lines as JSON, for the table of raw bodies."""
    return encode([(n.decode("latin-1"), v.decode("latin-1")) for n, v in headers])


class Kept(msgspec.Struct, frozen=True):
    """What became of an arrival: its verdict, and when its generation was last asked about."""

    verdict: str
    last_poll_at: int | None


def digest(body: bytes) -> str:
    """128 bits of the body's SHA-256: the same body is told again by it."""
    return hashlib.sha256(body).hexdigest()[:32]


async def insert(tx: Transaction, arrivals: Sequence[Arrival]) -> list[Kept | None]:
    """Store arrivals, each with the verdict that the generation's state gives it.

    None where no generation has the arrival's id and nonce: nothing of it was stored.
    """
    pairs = [(arrival.generation_id, digest(arrival.body)) for arrival in arrivals]
    found = {row["position"]: row for row in await tx.all("callbacks_look_up", pairs=text(pairs))}
    kept: list[Kept | None] = []
    rows: list[dict[str, Any]] = []
    seen: set[tuple[str, str]] = set()
    for position, (arrival, pair) in enumerate(zip(arrivals, pairs, strict=True)):
        row = found.get(position)
        if row is None or row["nonce"] != arrival.nonce:
            kept.append(None)
            continue
        verdict = _verdict(arrival, row["status"], repeated=bool(row["seen"]) or pair in seen)
        seen.add(pair)
        kept.append(Kept(verdict, row["last_poll_at"]))
        rows.append(_row(arrival, row["tenant"], verdict, pair[1]))
    await _store(tx, rows)
    return kept


def _verdict(arrival: Arrival, status: str, *, repeated: bool) -> str:
    if status in ("succeeded", "failed"):
        return "late"
    if repeated:
        return "duplicate"
    return "accepted" if arrival.readable else "unreadable"


def _row(arrival: Arrival, tenant: str, verdict: str, body_digest: str) -> dict[str, Any]:
    return {
        "tenant": tenant,
        "id": arrival.id,
        "generation_id": arrival.generation_id or None,
        "upstream": arrival.upstream,
        "received_at": arrival.received_at,
        "verdict": verdict,
        "reason": arrival.reason,
        "trust": arrival.trust,
        "body_digest": body_digest,
        "headers": encode_headers(arrival.headers),
        "body": arrival.body,
    }


async def _store(tx: Transaction, rows: Sequence[dict[str, Any]]) -> None:
    await tx.many("callbacks_insert", rows)
    await tx.many("callback_bodies_insert", rows)


async def ask_now(
    tx: Transaction, arrivals: Sequence[Arrival], kept: Sequence[Kept | None]
) -> None:
    """Have upstream asked about what is new, once a second for each generation at most."""
    rows = [
        {
            "generation_id": arrival.generation_id,
            "due_at": max(tx.now, (one.last_poll_at or 0) + CONFIRM_INTERVAL_MS),
        }
        for arrival, one in zip(arrivals, kept, strict=True)
        if one is not None and one.verdict in ("accepted", "unreadable")
    ]
    await tx.many("confirmations_put", rows)


async def reject(tx: Transaction, arrival: Arrival) -> None:
    """Keep a rejected callback for a while, its body cut short; nothing of it is believed."""
    owner = await tx.one("callback_tenant", generation_id=arrival.generation_id)
    short = msgspec.structs.replace(arrival, body=arrival.body[:REJECTED_BODY_BYTES])
    if owner is None:
        short.generation_id = ""
    # Without a digest: the same bytes, sent again and properly signed, are no duplicate.
    row = _row(short, owner["tenant"] if owner else "", "rejected", "")
    await _store(tx, [{**row, "trust": None}])


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
