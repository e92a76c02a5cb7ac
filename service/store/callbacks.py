"""Callbacks as they arrived: stored with a verdict, raw body and headers apart."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from service.model.ids import first_id
from service.store import generations, pages
from service.store.database import Row, Transaction
from service.store.generations import CONFIRM_INTERVAL_MS
from service.store.rows import encode, text

REJECTED_MAX = 1_000
REJECTED_BODY_BYTES = 4_096
NEW_VERDICTS = ("accepted", "unreadable")  # Of callbacks that say something new, or may.


class Arrival(msgspec.Struct, kw_only=True):
    """One inbound request, filled in as it is verified; its content is not believed yet."""

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


class Stored(msgspec.Struct, frozen=True):
    """A stored arrival's verdict, and when upstream was last asked about its generation."""

    verdict: str
    last_poll_at: int | None


def encode_headers(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return header lines as JSON, for the table of raw bodies."""
    return encode([(n.decode("latin-1"), v.decode("latin-1")) for n, v in headers])


def digest(body: bytes) -> str:
    """Return the first 128 bits of the body's SHA-256, to recognise a repeated body."""
    return hashlib.sha256(body).hexdigest()[:32]


async def insert(tx: Transaction, arrivals: Sequence[Arrival]) -> list[Stored | None]:
    """Store arrivals, each with the verdict that follows from its generation's status.

    None if no generation has the arrival's id and nonce: then nothing of it is stored.
    """
    pairs = [(arrival.generation_id, digest(arrival.body)) for arrival in arrivals]
    states = {row["position"]: row for row in await tx.all("callbacks_look_up", pairs=text(pairs))}
    stored: list[Stored | None] = []
    rows: list[dict[str, Any]] = []
    earlier: set[tuple[str, str]] = set()
    for position, (arrival, pair) in enumerate(zip(arrivals, pairs, strict=True)):
        state = states.get(position)
        if state is None or state["nonce"] != arrival.nonce:
            stored.append(None)
            continue
        is_repeated = bool(state["is_repeated"]) or pair in earlier
        verdict = _verdict(arrival, state["status"], is_repeated=is_repeated)
        earlier.add(pair)
        stored.append(Stored(verdict, state["last_poll_at"]))
        rows.append(_row(arrival, state["tenant"], verdict, pair[1]))
    await _insert_rows(tx, rows)
    return stored


def _verdict(arrival: Arrival, status: str, *, is_repeated: bool) -> str:
    if status in ("succeeded", "failed"):
        return "late"
    if is_repeated:
        return "duplicate"
    return "accepted" if arrival.readable else "unreadable"


def _row(arrival: Arrival, tenant: str, verdict: str, body_digest: str) -> dict[str, Any]:
    return {
        "tenant": tenant,
        "id": arrival.id,
        "generation_id": arrival.generation_id,
        "upstream": arrival.upstream,
        "verdict": verdict,
        "reason": arrival.reason,
        "trust": arrival.trust,
        "body_digest": body_digest,
        "headers": encode_headers(arrival.headers),
        "body": arrival.body,
    }


async def _insert_rows(tx: Transaction, rows: Sequence[dict[str, Any]]) -> None:
    await tx.many("callbacks_insert", rows)
    await tx.many("callback_bodies_insert", rows)


async def plan_confirmations(
    tx: Transaction, callbacks: Iterable[tuple[Arrival, Stored | None]]
) -> None:
    """Have upstream asked about new callbacks, at most once a second for each generation."""
    due_times = [
        (arrival.generation_id, max(tx.now, (stored.last_poll_at or 0) + CONFIRM_INTERVAL_MS))
        for arrival, stored in callbacks
        if stored is not None and stored.verdict in NEW_VERDICTS
    ]
    await generations.plan_confirmations(tx, due_times)


async def reject(tx: Transaction, arrival: Arrival) -> None:
    """Store a rejected callback for a while, its body cut to REJECTED_BODY_BYTES."""
    owner = await tx.one("callback_tenant", generation_id=arrival.generation_id)
    short = msgspec.structs.replace(arrival, body=arrival.body[:REJECTED_BODY_BYTES])
    if owner is None:
        short.generation_id = ""
    # Without a digest: the same bytes, sent again and properly signed, are no duplicate.
    row = _row(short, owner["tenant"] if owner else "", "rejected", "")
    await _insert_rows(tx, [{**row, "trust": None}])


async def get(tx: Transaction, tenant: str, callback_id: str) -> Row | None:
    """Return one callback with its raw headers and body."""
    return await tx.one("callback_by_id", tenant=tenant, id=callback_id)


async def of_generation(tx: Transaction, tenant: str, generation_id: str) -> list[Row]:
    """Return the callbacks of a generation, in the order of their arrival."""
    return await tx.all("callbacks_of_generation", tenant=tenant, generation_id=generation_id)


async def latest_bodies(tx: Transaction, tenant: str, generation_id: str) -> list[bytes]:
    """Return the newest few bodies: they may name the task if the create answer was lost."""
    rows = await tx.all("callback_bodies_latest", tenant=tenant, generation_id=generation_id)
    return [row["body"] for row in rows]


async def delete_old_rejected(tx: Transaction, before: int, limit: int) -> int:
    """Delete rejected callbacks that are old or too many; return how many."""
    rows: list[Mapping[str, Any]] = await tx.all(
        "callbacks_rejected_old", before_id=first_id("cb", before), keep=REJECTED_MAX, limit=limit
    )
    keys = [dict(row) for row in rows]
    await tx.many("callback_delete", keys)
    await tx.many("callback_body_delete", keys)
    return len(keys)


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which callbacks a list shows."""

    verdict: str | None = None
    generation_id: str | None = None


async def page(tx: Transaction, page: pages.Page, tenant: str, only: Filter) -> pages.Rows:
    """Return a page of a tenant's callbacks."""
    return await _page_of(tx, page, tenant, only)


async def _page_of(tx: Transaction, page: pages.Page, tenant: str, only: Filter) -> pages.Rows:
    values = {**msgspec.structs.asdict(only), "tenant": tenant}
    where = ["c.tenant = :tenant"]
    if only.generation_id is not None:
        ids = "SELECT callback_id FROM callback_bodies WHERE generation_id = :generation_id"
        where.append(f"c.id IN ({ids})")
    source = pages.Source(
        table="callbacks c",
        where=where,
        filters=[] if only.verdict is None else ["c.verdict = :verdict"],
        columns="c.*",
        key="c.id",
    )
    return await pages.read(tx, source, page, values)


async def page_of_all(tx: Transaction, page: pages.Page, tenant: str, only: Filter) -> pages.Rows:
    """Return a page of a tenant's callbacks and of the rejected ones that no token names."""
    own, own_after = await _page_of(tx, page, tenant, only)
    nameless, nameless_after = await _page_of(tx, page, "", only)
    # What is beyond the nearer cursor was not looked at in both: it belongs to a later page.
    cursors = [after for after in (own_after, nameless_after) if after is not None]
    rows = sorted([*own, *nameless], key=lambda row: str(row["id"]), reverse=not page.ascending)
    nearest = (min if page.ascending else max)(cursors, default=None)
    if nearest is not None:
        rows = [r for r in rows if (r["id"] <= nearest if page.ascending else r["id"] >= nearest)]
    if len(rows) > page.limit:
        return rows[: page.limit], rows[page.limit - 1]["id"]
    return rows, nearest
