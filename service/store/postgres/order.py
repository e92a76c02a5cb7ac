"""The order of events: sequences do not follow commits, so events get `seq` after theirs."""

import asyncio

from service.store.postgres.connection import Pool, taken

_HAS_UNORDERED = "SELECT EXISTS (SELECT 1 FROM events WHERE seq IS NULL)"
# The statement after this lock sees each `seq` that others have given meanwhile (READ COMMITTED).
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('genhook.events' || current_schema(), 0))"
_ORDER = """
UPDATE events SET seq = q.seq FROM (
    SELECT id, row_number() OVER (ORDER BY id)
        + (SELECT coalesce(max(seq), 0) FROM events) AS seq
    FROM events WHERE seq IS NULL) q
WHERE events.id = q.id"""


class Order:
    """Gives a `seq` to committed events, before they are read in order.

    An event that is committed later gets a greater `seq`, whatever its id: no cursor skips it.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def extend(self, pool: Pool) -> None:
        """Give a `seq` to every committed event that has none."""
        async with self._turn, taken(pool) as connection:
            if await connection.fetchval(_HAS_UNORDERED):
                await connection.execute(_LOCK)
                await connection.execute(_ORDER)
