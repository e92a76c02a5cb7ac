"""Units that wait for their commit, and the batches in which they run."""

import asyncio
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from service.store.database import Transaction, Unit
from service.store.turns import ignore_error

HEAVY_ROWS = 50  # A unit that charges for fewer rows counts as an ordinary one.


class Item(msgspec.Struct, eq=False):
    """A unit in the queue. Items of the same batched unit run in one call."""

    unit: Unit[Any]
    args: tuple[Any, ...]
    batched: bool = False
    always: bool = False
    is_behind: bool = False  # It waits for what is queued or in a commit when it comes.
    tenant: str | None = None  # In whose turn it runs; None: no tenant, or several.
    held_bytes: int = 0  # The size of the request's body, which it holds in memory.
    ends_at: float = math.inf  # When its caller stops waiting, by the loop's clock.
    future: asyncio.Future[Any] = msgspec.field(default_factory=asyncio.Future)
    has_run: bool = False  # Whether it ran in the latest group that took it.
    estimate: int = 0  # Rows that its line was charged when it was taken.
    line_key: Any = None  # The key of that line.
    rows: int | None = None  # What it wrote; 0 below HEAVY_ROWS; None: it charged nobody.
    seconds: float = 0.0  # What its call took; if that ran several items, the first has it all.
    result: Any = None
    error: BaseException | None = None
    unanswered: Any = None  # On PostgreSQL: an `Unanswered`, from just before its COMMIT.

    def resolve(self, error: BaseException | None) -> None:
        """Give the caller the error, or the result, unless it was canceled or refused."""
        if error is not None:
            if self.error is not None and self.error is not error:
                self.error.__traceback__ = None  # Nobody is told more of it than its text.
            _cut_traceback(error)
        if self.future.done():
            return
        if error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(error)
            if self.always:  # It goes on without its caller, and nobody else asks.
                ignore_error(self.future)


def batches_of(items: Iterable[Item]) -> Collection[Sequence[Item]]:
    """Group the items that run in one call, and so in one transaction."""
    batches: dict[object, list[Item]] = {}
    for item in items:
        batches.setdefault(item.unit if item.batched else item, []).append(item)
    return batches.values()


async def run_batch(batch: Sequence[Item], tx: Transaction) -> Sequence[Any]:
    """Run one unit, or one batched unit with all its items; return their results."""
    if not batch[0].batched:
        return [await batch[0].unit(tx, *batch[0].args)]
    results: Sequence[Any] = await batch[0].unit(tx, [item.args[0] for item in batch])
    assert len(results) == len(batch), "a batched unit returned too few results"
    return results


def _cut_traceback(error: BaseException) -> None:
    """Leave only the frames of the unit in the traceback of an error that it raised.

    The others hold the items, whose futures hold the error: in such a cycle, the body of a request
    would stay until the next collection of garbage.
    """
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code is not run_batch.__code__:
        frames = frames.tb_next
    if frames is not None:  # Else it is not the unit's, and these frames tell where it came from.
        error.__traceback__ = frames.tb_next


def note_rows(charged: Mapping[str, int], batch: Sequence[Item]) -> None:
    """Set the rows of each item: those charged to its tenant, divided by the tenant's items.

    Items without a tenant share the rows of the tenants that no item names.
    """
    counts = Counter(item.tenant for item in batch)
    rows_of: dict[str | None, int] = dict(charged.items())
    rows_of[None] = sum(rows for tenant, rows in charged.items() if tenant not in counts)
    for item in batch:
        rows = rows_of.get(item.tenant, 0) // counts[item.tenant]
        item.rows = rows if rows >= HEAVY_ROWS else 0
