"""Pages of lists: rows in the order of their ids, newest first by default.

A list reads one index in order, usually one that begins with the tenant. Filters that this index
does not answer are checked row by row, for SCANNED_MAX rows of the index at most. A page can
therefore be short, or even empty, and still have a cursor.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec

from service.store.database import Row, Transaction

SCANNED_MAX = 3_000  # With a million rows behind it, a page still takes milliseconds.
PAGE_BYTES = 4 << 20  # Of the rows of a page; a single larger row is a page of its own.
Rows = tuple[list[Row], str | None]  # The rows of a page, and its cursor.


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of a list: up to `limit` rows after the id `after`, and none after `until`."""

    limit: int = 50
    after: str | None = None
    until: str | None = None
    ascending: bool = False


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a list's SQL. They are constants of the code; values are bound by name."""

    table: str  # With {index NAME} SQLite must use a certain index.
    where: Sequence[str] = ("tenant = :tenant",)  # Conditions that the index answers.
    joins: str = ""  # Further tables that the columns and filters need.
    filters: Sequence[str] = ()  # Conditions that are checked row by row.
    columns: str = "*"
    key: str = "id"  # The column that orders the list.
    id: str | None = None  # The column of the id, if `key` is another one.
    cursor: str = ":after"  # An expression for the key of the row with the id `:after`.


async def read(tx: Transaction, source: Source, page: Page, values: Mapping[str, Any]) -> Rows:
    """Return the rows of a page, and the id to continue after, None at the end of the list.

    The second page of a model's succeeded generations, for example, is read by::

        SELECT g.*, b.input, b.metadata, b.output, b.error
        FROM generations g {index generations_model}
        {ordered} JOIN generation_bodies b ON b.generation_id = g.id
        WHERE g.tenant = :tenant AND g.model = :model AND g.id < :after AND g.id >= :last
            AND g.status = :status
        ORDER BY g.id DESC LIMIT :limit
    """
    beyond, up_to, order = (">", "<=", "ASC") if page.ascending else ("<", ">=", "DESC")
    values = {**values, "after": page.after, "last": page.until, "limit": page.limit + 1}
    where = list(source.where)
    if page.after is not None:
        where.append(f"{source.key} {beyond} {source.cursor}")
    # One bound for each end: SQLite checks a second one row by row, without a limit.
    end, last = [f"{source.key} {up_to} :last"], None
    until = [] if page.until is None else end
    if source.filters:
        sql = (
            f"SELECT {source.key} AS key, {source.id or source.key} AS id FROM {source.table} "  # noqa: S608
            f"WHERE {' AND '.join([*where, *until]) or 'TRUE'} "
            f"ORDER BY {source.key} {order} LIMIT 1 OFFSET {SCANNED_MAX - 1}"
        )
        last = next(iter(await tx.select(sql, values)), None)
    if last is not None:
        until, values["last"] = end, last["key"]
    sql = (
        f"SELECT {source.columns} FROM {source.table} {source.joins} "  # noqa: S608  fixed parts
        f"WHERE {' AND '.join([*where, *until, *source.filters]) or 'TRUE'} "
        f"ORDER BY {source.key} {order} LIMIT :limit"
    )
    rows, is_cut = await _take(tx.scan(sql, values), page.limit)
    if is_cut:
        return rows, rows[-1]["id"]
    return rows, last["id"] if last else None


async def _take(scanned: AsyncIterator[Row], limit: int) -> tuple[list[Row], bool]:
    """Return the rows of a page, and whether more were left: beyond its limit or PAGE_BYTES."""
    rows: list[Row] = []
    size = 0
    async for row in scanned:
        size += sum(len(value) for value in tuple(row) if isinstance(value, (str, bytes)))
        if rows and (len(rows) == limit or size > PAGE_BYTES):
            return rows, True
        rows.append(row)
    return rows, False
