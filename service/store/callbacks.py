"""Callbacks: stored with their verdict. Raw headers and body are in a table of their own."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from service.model.ids import first_id
from service.store import generations, pages
from service.store.database import Row, Transaction
from service.store.generations import CONFIRM_INTERVAL_MS
from service.store.rows import encode, json_text

REJECTED_MAX = 1_000
REJECTED_BODY_BYTES = 4_096
NEW_VERDICTS = ("accepted", "unreadable")  # The callback may report something new.


class Arrival(msgspec.Struct, kw_only=True):
    """A request to the callback URL, before its verdict. The receiver fills it in step by step."""

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


class StoredCallback(msgspec.Struct, frozen=True):
    """The verdict of a stored callback, and the time of its generation's last poll."""

    verdict: str
    last_poll_at: int | None


def encode_headers(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return header lines as JSON, for the table of raw bodies."""
    return encode([(n.decode("latin-1"), v.decode("latin-1")) for n, v in headers])


def digest(body: bytes) -> str:
    """Return the first 128 bits of the body's SHA-256, to recognise a repeated body."""
    return hashlib.sha256(body).hexdigest()[:32]


async def insert(tx: Transaction, arrivals: Sequence[Arrival]) -> list[StoredCallback | None]:
    """Store callbacks, each with the verdict that follows from its generation's status.

    The result is None, and nothing is stored, where no generation has that id and nonce.
    """
    pairs = [(arrival.generation_id, digest(arrival.body)) for arrival in arrivals]
    states = await tx.all("callbacks_generation_states", pairs=json_text(pairs))
    state_at = {row["position"]: row for row in states}
    stored: list[StoredCallback | None] = []
    rows: list[dict[str, Any]] = []
    pairs_before: set[tuple[str, str]] = set()
    for position, (arrival, pair) in enumerate(zip(arrivals, pairs, strict=True)):
        state = state_at.get(position)
        if state is None or state["nonce"] != arrival.nonce:
            stored.append(None)
            continue
        is_repeated = bool(state["is_repeated"]) or pair in pairs_before
        verdict = _verdict(arrival, state["status"], is_repeated=is_repeated)
        pairs_before.add(pair)
        stored.append(StoredCallback(verdict, state["last_poll_at"]))
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
    tx: Transaction, callbacks: Iterable[tuple[Arrival, StoredCallback | None]]
) -> None:
    """Plan the confirmation of new callbacks: at most one poll a second for each generation."""
    due_times = [
        (arrival.generation_id, max(tx.now, (stored.last_poll_at or 0) + CONFIRM_INTERVAL_MS))
        for arrival, stored in callbacks
        if stored is not None and stored.verdict in NEW_VERDICTS
    ]
    await generations.plan_confirmations(tx, due_times)


async def reject(tx: Transaction, arrival: Arrival) -> None:
    """Store a rejected callback, its body cut to REJECTED_BODY_BYTES."""
    generation = await tx.one("generation_tenant", id=arrival.generation_id)
    tenant = generation["tenant"] if generation else ""
    truncated = msgspec.structs.replace(
        arrival,
        body=arrival.body[:REJECTED_BODY_BYTES],
        generation_id=arrival.generation_id if generation else "",
    )
    # The digest is empty: a valid callback with the same body must not count as a duplicate.
    row = _row(truncated, tenant, "rejected", "")
    await _insert_rows(tx, [{**row, "trust": None}])


async def get(tx: Transaction, tenant: str, callback_id: str) -> Row | None:
    """Return one callback with its raw headers and body."""
    return await tx.one("callback_by_id", tenant=tenant, id=callback_id)


async def of_generation(tx: Transaction, tenant: str, generation_id: str) -> list[Row]:
    """Return the callbacks of a generation, in the order of their arrival."""
    return await tx.all("callbacks_of_generation", tenant=tenant, generation_id=generation_id)


async def latest_bodies(tx: Transaction, tenant: str, generation_id: str) -> list[bytes]:
    """Return the latest bodies. They may name the task if the answer to the submission was lost."""
    rows = await tx.all("callback_bodies_latest", tenant=tenant, generation_id=generation_id)
    return [row["body"] for row in rows]


async def delete_old_rejected(tx: Transaction, before: int, limit: int) -> int:
    """Delete rejected callbacks from before a time or beyond REJECTED_MAX; return how many."""
    rows = await tx.all(
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


async def list_page(tx: Transaction, page: pages.Page, tenant: str, only: Filter) -> pages.Rows:
    """Return a page of a tenant's callbacks."""
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


async def list_page_with_unowned(
    tx: Transaction, page: pages.Page, tenant: str, only: Filter
) -> pages.Rows:
    """Return a page of a tenant's callbacks and of the rejected ones that belong to no tenant."""
    own, own_after = await list_page(tx, page, tenant, only)
    unowned, unowned_after = await list_page(tx, page, "", only)
    # Beyond the nearer cursor only one of the two lists was read: those rows are a later page's.
    cursors = [after for after in (own_after, unowned_after) if after is not None]
    rows = sorted([*own, *unowned], key=lambda row: str(row["id"]), reverse=not page.ascending)
    nearest = (min if page.ascending else max)(cursors, default=None)
    if nearest is not None:
        rows = [r for r in rows if (r["id"] <= nearest if page.ascending else r["id"] >= nearest)]
    if len(rows) > page.limit:
        return rows[: page.limit], rows[page.limit - 1]["id"]
    return rows, nearest
