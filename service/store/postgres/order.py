"""The order of events: sequences do not follow commits, so events get `seq` after theirs."""

import asyncio

from service.store.postgres.connection import Pool, transaction_of

BATCH = 10_000  # Events that get their `seq` in one transaction: what is ordered stays ordered.
_HAS_UNORDERED = "SELECT EXISTS (SELECT 1 FROM events WHERE seq IS NULL)"
# The statement after this lock sees each `seq` that others have given meanwhile (READ COMMITTED).
# Without a sort it reads the index `events_unordered` up to the limit, and never all that waits.
_LOCK = """
SELECT pg_advisory_xact_lock(hashtextextended('genhook.events' || current_schema(), 0)),
    set_config('enable_sort', 'off', TRUE)"""
_ORDER = """
WITH ordered AS (
    UPDATE events SET seq = q.seq FROM (
        SELECT id, row_number() OVER (ORDER BY id)
            + (SELECT coalesce(max(seq), 0) FROM events) AS seq
        FROM (SELECT id FROM events WHERE seq IS NULL ORDER BY id LIMIT $1) few) q
    WHERE events.id = q.id RETURNING 1)
SELECT count(*) FROM ordered"""


class Order:
    """Gives a `seq` to committed events, before they are read in order.

    An event that is committed later gets a greater `seq`, whatever its id: no cursor skips it.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._begun = self._ended = 0  # The latest run that has begun, and that has ended well.

    async def extend(self, pool: Pool) -> None:
        """Give a `seq` to every committed event that has none.

        All who wait share the next run, so that however many come, only two runs are ever due.
        """
        begun_before = self._begun
        async with self._lock:
            if self._ended > begun_before:
                return
            self._begun += 1
            while await _order_batch(pool) == BATCH:
                pass
            self._ended = self._begun


async def _order_batch(pool: Pool) -> int:
    """Give a `seq` to the next events that have none; return to how many."""
    async with transaction_of(pool) as connection:
        if not await connection.fetchval(_HAS_UNORDERED):
            return 0
        await connection.execute(_LOCK)
        count: int = await connection.fetchval(_ORDER, BATCH)
        return count
