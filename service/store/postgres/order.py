"""The order of events: a sequence is no order of commits, so events get their place afterwards."""

import asyncio

from service.store.postgres.connection import Pool, taken

_HAS_UNORDERED = "SELECT EXISTS (SELECT 1 FROM events WHERE seq IS NULL)"
# Who waits for this lock sees, in its next statement, the places that were given meanwhile.
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('genhook.events' || current_schema(), 0))"
_ORDER = """
UPDATE events SET seq = q.seq FROM (
    SELECT id, row_number() OVER (ORDER BY id)
        + (SELECT coalesce(max(seq), 0) FROM events) AS seq
    FROM events WHERE seq IS NULL) q
WHERE events.id = q.id"""


class Order:
    """Gives places to committed events before somebody reads by them.

    An event that is committed later gets a later place, whatever its id: a cursor never skips it.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def extend(self, pool: Pool) -> None:
        """Give a place to every committed event that has none."""
        async with self._turn, taken(pool) as connection:
            if await connection.fetchval(_HAS_UNORDERED):
                await connection.execute(_LOCK)
                await connection.execute(_ORDER)
