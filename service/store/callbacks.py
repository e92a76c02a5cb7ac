"""Callbacks: stored with their verdict. Raw headers and body are in a table of their own."""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from operator import itemgetter
from typing import Any

import msgspec

from service.model.generation import TRANSITIONS
from service.store import generations, pages
from service.store.database import Row, Transaction
from service.store.rows import encode, json_text

REJECTED_BODY_BYTES = 4_096
HEADERS_BYTES_MAX = 16_384
# Callbacks that a generation keeps: who knows its URL must not fill the disk. The last ten are only
# for callbacks that report an end, so that the outcome is kept as it came, whatever came before.
CALLBACKS_MAX, PROGRESS_MAX = 100, 90
PROGRESS_BYTES_MAX = 3 << 20  # With one last body this is 4 MiB, by the default limit of a body.
NOT_KEPT = "body_not_kept"
NEW_VERDICTS = ("accepted", "unreadable")  # The callback may report something new.
HINT_VERDICTS = (*NEW_VERDICTS, "duplicate")  # Upstream is asked because of the callback.


class Arrival(msgspec.Struct, kw_only=True):
    """A request to the callback URL, before its verdict; api/receiver.py fills it in by steps."""

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
    reports_end: bool | None = None  # None: the body was not read yet.


class StoredCallback(msgspec.Struct, frozen=True):
    """The verdict of a callback, and the time of its generation's last poll.

    is_kept: False if it left no row, as its generation has too many callbacks; None if it left no
    row yet, as `reports_end` decides that and is not known.
    """

    verdict: str
    last_poll_at: int | None
    is_kept: bool | None


class _Room(msgspec.Struct):
    """The callbacks that a generation keeps: their number, their bytes, their bodies' digests."""

    count: int = 0
    size: int = 0
    digests: set[str] = msgspec.field(default_factory=set)

    def fit(self, row: dict[str, Any]) -> bool | None:
        """Cut the row to its digest if there is no room for its body; return its `is_kept`."""
        size = len(row["headers"]) + len(row["body"])
        has_place = self.count < PROGRESS_MAX
        if not has_place or self.size + size > PROGRESS_BYTES_MAX:
            has_last_place = self.count < CALLBACKS_MAX and self.size <= PROGRESS_BYTES_MAX
            may_be_last = has_last_place and row["body"]
            if may_be_last and row["reports_end"] is None:
                return None
            if not (may_be_last and row["reports_end"]):
                if not has_place:
                    return False
                row.update(headers=b"[]", body=b"", reason=NOT_KEPT)
                size = len(row["headers"])
        self.count += 1
        self.size += size
        return True


async def insert(tx: Transaction, arrivals: Sequence[Arrival]) -> list[StoredCallback | None]:
    """Store callbacks, each with the verdict that follows from its generation's status.

    The result is None, and nothing is stored, where no generation has that id and nonce. A repeated
    body is stored once.
    """
    ids = [arrival.generation_id for arrival in arrivals]
    states = await tx.lock("callbacks_generation_states", ids=json_text(ids))
    rooms = await _read_rooms(tx, {ids[row["position"]] for row in states if row["has_others"]})
    stored: list[StoredCallback | None] = [None] * len(arrivals)
    rows: list[dict[str, Any]] = []
    # Earlier callbacks take the room first. PostgreSQL may return the states in any order.
    for state in sorted(states, key=itemgetter("position")):
        position = state["position"]
        arrival = arrivals[position]
        if state["nonce"] != arrival.nonce:
            continue
        # 128 bits of a body's SHA-256 are enough to recognise a repeated body.
        digest = hashlib.sha256(arrival.body).hexdigest()[:32]
        room = rooms.setdefault(arrival.generation_id, _Room())
        is_repeated = digest in room.digests
        verdict = _verdict(arrival, state["status"], is_repeated=is_repeated)
        # Only a new callback may be believed.
        trust = arrival.trust if verdict in NEW_VERDICTS else "confirm"
        columns = {"tenant": state["tenant"], "verdict": verdict, "trust": trust}
        row = _row(arrival, **columns, body_digest=digest)
        if is_repeated:
            row["body"] = b""
        is_kept = room.fit(row)
        stored[position] = StoredCallback(verdict, state["last_poll_at"], is_kept)
        if is_kept:  # A body that was not kept does not make the next one a duplicate.
            room.digests.add(digest)
            rows.append(row)
    await _insert_rows(tx, rows)
    return stored


async def _read_rooms(tx: Transaction, ids: Collection[str]) -> dict[str, _Room]:
    """Return what these generations keep of earlier callbacks, by generation."""
    if not ids:
        return {}
    rows = await tx.all("callbacks_kept", ids=json_text(list(ids)))
    return {
        row["generation_id"]: _Room(
            row["count"], row["size"], set(msgspec.json.decode(row["digests"]))
        )
        for row in rows
    }


def _verdict(arrival: Arrival, status: str, *, is_repeated: bool) -> str:
    if not TRANSITIONS[status]:
        return "late"
    if is_repeated:
        return "duplicate"
    return "accepted" if arrival.readable else "unreadable"


def _row(arrival: Arrival, **columns: Any) -> dict[str, Any]:
    """Return the values of a callback's columns; its header lines are stored as JSON."""
    headers = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in arrival.headers]
    return {**msgspec.structs.asdict(arrival), "headers": encode(headers), **columns}


async def _insert_rows(tx: Transaction, rows: Sequence[dict[str, Any]]) -> None:
    await tx.many("callbacks_insert", rows)
    await tx.many("callback_bodies_insert", rows)


async def doubt(tx: Transaction, arrivals: Iterable[Arrival]) -> None:
    """Note that these callbacks are hints, although their bodies might have been proof."""
    ids = [{"id": each.id, "generation_id": each.generation_id} for each in arrivals]
    await tx.many("callback_doubt", ids)


async def plan_confirmations(
    tx: Transaction, callbacks: Iterable[tuple[Arrival, StoredCallback | None]]
) -> None:
    """Plan the confirmations of the generations that callbacks came for.

    A repeated callback is no news, but it is still a hint: the task may be known only now.
    """
    due_times = {
        arrival.generation_id: generations.confirm_at(tx.now, stored.last_poll_at)
        for arrival, stored in callbacks
        if stored is not None and stored.verdict in HINT_VERDICTS
    }
    await generations.plan_confirmations(tx, due_times)


async def plan_confirmation_of_unread(tx: Transaction, arrival: Arrival) -> None:
    """Plan the confirmation of a callback whose body is too large to be read."""
    ids = json_text([arrival.generation_id])
    states = await tx.lock("callbacks_generation_states", ids=ids)
    for state in states:
        if state["nonce"] == arrival.nonce:
            verdict = _verdict(arrival, state["status"], is_repeated=False)
            stored = StoredCallback(verdict, state["last_poll_at"], is_kept=False)
            await plan_confirmations(tx, [(arrival, stored)])


async def reject(tx: Transaction, arrival: Arrival) -> None:
    """Store a rejected callback, its body cut to REJECTED_BODY_BYTES.

    If its generation was erased, its headers and its body are not stored.
    """
    owners = await tx.keep("generation_tenant", id=arrival.generation_id)
    if arrival.generation_id and not owners:
        arrival.headers, arrival.body = (), b""
    row = _row(
        arrival,
        tenant=owners[0]["tenant"] if owners else "",
        generation_id=arrival.generation_id if owners else "",
        verdict="rejected",
        trust=None,
        body=arrival.body[:REJECTED_BODY_BYTES],
        # It is empty: a valid callback with the same body must not count as a duplicate.
        body_digest="",
    )
    await _insert_rows(tx, [row])


async def get(tx: Transaction, tenant: str, callback_id: str) -> Row | None:
    """Return one callback with its raw headers and body."""
    return await tx.one("callback_by_id", tenant=tenant, id=callback_id)


async def latest_bodies(tx: Transaction, tenant: str, generation_id: str) -> list[bytes]:
    """Return the latest three bodies, which name the task if the submission's answer was lost."""
    rows = await tx.all("callback_bodies_latest", tenant=tenant, generation_id=generation_id)
    return [row["body"] for row in rows]


async def latest(tx: Transaction, tenant: str, generation_id: str) -> Row | None:
    """Return the id and the body of the latest callback that came before the final outcome."""
    return await tx.one("callback_latest", tenant=tenant, generation_id=generation_id)


async def list_page(
    tx: Transaction, page: pages.Page, tenant: str, verdict: str | None, generation_id: str | None
) -> pages.Rows:
    """Return a page of a tenant's callbacks, of one verdict or generation if they are not None."""
    values = {"tenant": tenant, "verdict": verdict, "generation_id": generation_id}
    where, key = ["c.tenant = :tenant"], "c.id"
    if generation_id is not None:
        # SQLite then looks up these few callbacks instead of walking all of the tenant's.
        key = "{unindexed c.id}"
        ids = "SELECT callback_id FROM callback_bodies WHERE generation_id = :generation_id"
        where.append(f"c.id IN ({ids})")
    filters = [] if verdict is None else ["c.verdict = :verdict"]
    source = pages.Source(table="callbacks c", where=where, filters=filters, key=key, id="c.id")
    return await pages.read(tx, source, page, values)


async def list_page_with_unowned(
    tx: Transaction, page: pages.Page, tenant: str, *only: str | None
) -> pages.Rows:
    """Return a page of a tenant's callbacks and of the rejected ones that belong to no tenant."""
    own, own_after = await list_page(tx, page, tenant, *only)
    unowned, unowned_after = await list_page(tx, page, "", *only)
    # Beyond the nearer cursor only one of the two lists was read: those rows are a later page's.
    cursors = [after for after in (own_after, unowned_after) if after is not None]
    rows = sorted([*own, *unowned], key=lambda row: str(row["id"]), reverse=not page.ascending)
    nearest = (min if page.ascending else max)(cursors, default=None)
    if nearest is not None:
        rows = [r for r in rows if (r["id"] <= nearest if page.ascending else r["id"] >= nearest)]
    if len(rows) > page.limit:
        return rows[: page.limit], rows[page.limit - 1]["id"]
    return rows, nearest
