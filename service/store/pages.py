"""Pages of lists: rows in the order of their ids, newest first by default.

A list reads one index in order, usually one that begins with the tenant. Filters that this index
does not answer are checked row by row, for SCANNED_MAX rows of the index at most. A page can
therefore be short, or even empty, and still have a cursor.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from service.store.database import Row, Transaction

SCANNED_MAX = 10_000
Rows = tuple[list[Row], str | None]  # The rows of a page, and its cursor.


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of a list: up to `limit` rows after the id `after`, and none after `until`."""

    limit: int = 50
    after: str | None = None
    until: str | None = None
    ascending: bool = False


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a list's SQL. They are constants of the code; values are bound by name.

    Attributes:
        table: the table to read, with INDEXED BY where SQLite must use a certain index.
        where: conditions that the index answers.
        joins: further tables that the columns and filters need.
        filters: conditions that are checked row by row.
        key: the column that orders the list.
        id: the column of the id, if `key` is another one.
        cursor: an expression for the key of the row with the id `:after`.

    """

    table: str
    where: Sequence[str]
    joins: str = ""
    filters: Sequence[str] = ()
    columns: str = "*"
    key: str = "id"
    id: str | None = None
    cursor: str = ":after"


async def read(tx: Transaction, source: Source, page: Page, values: Mapping[str, Any]) -> Rows:
    """Return the rows of a page, and the id to continue after, None at the end of the list.

    The second page of a model's succeeded generations, for example, is read by::

        SELECT g.*, b.input, b.metadata, b.output, b.error
        FROM generations g INDEXED BY generations_model
        CROSS JOIN generation_bodies b ON b.generation_id = g.id
        WHERE g.tenant = :tenant AND g.model = :model AND g.id < :after AND g.id >= :last
            AND g.status = :status
        ORDER BY g.id DESC LIMIT :limit
    """
    beyond, up_to, order = (">", "<=", "ASC") if page.ascending else ("<", ">=", "DESC")
    values = {**values, "after": page.after, "last": page.until, "limit": page.limit + 1}
    begin = [] if page.after is None else [f"{source.key} {beyond} {source.cursor}"]
    # One bound for each end: SQLite checks a second one row by row, without a limit.
    end = [] if page.until is None else [f"{source.key} {up_to} :last"]
    last = None
    if source.filters:
        last = await _last_to_scan(tx, source, [*source.where, *begin, *end], order, values)
    if last is not None:
        end, values["last"] = [f"{source.key} {up_to} :last"], last["key"]
    sql = (
        f"SELECT {source.columns} FROM {source.table} {source.joins} "  # noqa: S608  fixed parts
        f"WHERE {' AND '.join([*source.where, *begin, *end, *source.filters]) or '1'} "
        f"ORDER BY {source.key} {order} LIMIT :limit"
    )
    rows = await tx.select(sql, values)
    if len(rows) > page.limit:
        return rows[: page.limit], rows[page.limit - 1]["id"]
    return rows, last["id"] if last else None


async def _last_to_scan(
    tx: Transaction, source: Source, where: Sequence[str], order: str, values: Mapping[str, Any]
) -> Row | None:
    """Return key and id of the last of SCANNED_MAX rows; None if there are fewer."""
    sql = (
        f"SELECT {source.key} AS key, {source.id or source.key} AS id FROM {source.table} "  # noqa: S608
        f"WHERE {' AND '.join(where) or '1'} ORDER BY {source.key} {order} LIMIT 1 OFFSET :skipped"
    )
    rows = await tx.select(sql, {**values, "skipped": SCANNED_MAX - 1})
    return rows[0] if rows else None


def of_tenant(table: str) -> Source:
    """Return the source of a tenant's rows in a table that has an index on (tenant, id)."""
    return Source(table=table, where=["tenant = :tenant"])
