"""A unit that waits for its commit."""

import asyncio
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from service.store.database import Unit

HEAVY_ROWS = 50  # Of a unit that is charged for what it writes; fewer are as many as usual.


class Item(msgspec.Struct, eq=False):
    """A unit in the queue. Items of the same batched unit run in one call."""

    unit: Unit[Any]
    args: tuple[Any, ...]
    batched: bool = False
    always: bool = False
    tenant: str | None = None  # In whose turn it runs; None: in that of all who are no tenant.
    held_bytes: int = 0  # Of what a client or upstream sent, which waits in memory.
    ends_at: float = math.inf  # When its caller stops waiting, by the loop's clock.
    future: asyncio.Future[Any] = msgspec.field(default_factory=asyncio.Future)
    has_run: bool = False  # In the latest group that took it.
    rows: int | None = None  # That it wrote, if its unit counts them; few count as none.
    seconds: float = 0.0  # That it took, with those that ran in the same call after it.
    result: Any = None
    error: BaseException | None = None
    unanswered: Any = None  # On PostgreSQL: its transaction, from before its COMMIT.


def note_rows(charged: Mapping[str, int], batch: Sequence[Item]) -> None:
    """Note for how many rows the tenant of each item was charged, divided by its items.

    Items without a tenant have the rows of those tenants that no item names.
    """
    counts = Counter(item.tenant for item in batch)
    rows_of: dict[str | None, int] = dict(charged.items())
    rows_of[None] = sum(rows for tenant, rows in charged.items() if tenant not in counts)
    for item in batch:
        rows = rows_of.get(item.tenant, 0) // counts[item.tenant]
        item.rows = rows if rows >= HEAVY_ROWS else 0
