"""Retention: what is old goes, in small indexed batches, and never what is still owed."""

from service.clock import DAY
from service.context import Context
from service.store import callbacks

BATCH = 500
REJECTED_KEPT_MS = DAY


async def run_due(context: Context, now: int) -> int:
    """Delete one batch of what is past its time; how many rows went."""
    return await context.database.write(
        callbacks.delete_old_rejected, now - REJECTED_KEPT_MS, BATCH
    )
