"""Pages of a list: fixed parts put together, filters as values, the last id as the cursor."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from service.store.database import Row, Transaction


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of a list is wanted."""

    limit: int = 50
    after: str | None = None
    ascending: bool = False


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """A list that can be asked for: its columns and table, and the column that orders it."""

    columns: str
    source: str
    key: str
    cursor: str = ":after"


GENERATIONS = Listing(
    columns="g.*, b.input, b.metadata, b.output, b.error",
    source="generations g JOIN generation_bodies b ON b.generation_id = g.id",
    key="g.id",
)
CALLBACKS = Listing(columns="*", source="callbacks", key="id")
SUBSCRIBERS = Listing(columns="*", source="subscribers", key="id")
DELIVERIES = Listing(columns="*", source="deliveries", key="id")
KEYS = Listing(columns="*", source="keys", key="id")
REPLAYS = Listing(columns="*", source="replays", key="id")
EVENTS = Listing(
    columns="*",
    source="events",
    key="seq",
    # The event itself; once retention has deleted it, the one before it. Ids of two processes may
    # be out of step with the order of their commits, so `id <= :after` alone would skip events.
    cursor=(
        "coalesce((SELECT seq FROM events WHERE id = :after), "
        "(SELECT seq FROM events WHERE id < :after ORDER BY id DESC LIMIT 1), 0)"
    ),
)


async def page(
    tx: Transaction,
    listing: Listing,
    wanted: Page,
    where: Sequence[str],
    values: Mapping[str, Any],
) -> tuple[list[Row], bool]:
    """Up to `limit` rows after the cursor, and whether there are more.

    `where` holds fixed conditions over named `values`, never text from outside.
    """
    conditions = list(where)
    if wanted.after is not None:
        conditions.append(f"{listing.key} {'>' if wanted.ascending else '<'} {listing.cursor}")
    clause = " AND ".join(conditions) or "1"
    order = "ASC" if wanted.ascending else "DESC"
    sql = (
        f"SELECT {listing.columns} FROM {listing.source} WHERE {clause} "  # noqa: S608  fixed parts
        f"ORDER BY {listing.key} {order} LIMIT :limit"
    )
    limits = {"limit": wanted.limit + 1, "after": wanted.after}
    rows = await tx.select(sql, {**values, **limits})
    return rows[: wanted.limit], len(rows) > wanted.limit
