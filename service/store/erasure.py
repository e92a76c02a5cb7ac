"""Erase a generation: its request, results, callbacks, events and deliveries. Usage stays."""

from service.model.generation import Generation
from service.model.ids import time_of
from service.store import retention
from service.store.database import Transaction
from service.store.rows import json_text

_PARTS_MAX = 1_000_000  # More than a generation has of anything.
# In this order: rows that are found through other rows are deleted before those.
_STATEMENTS = (
    "attempts_of_events_delete",
    "deliveries_of_events_delete",
    "events_erase",
    *retention.GENERATION_PARTS,
    *retention.GENERATION_ROWS,
    "subscriber_notify_erase",
    # The answer to its request has the prompt, too. The key stays: a repeat must not submit again.
    "idempotency_erase",
)


async def erase(tx: Transaction, generation: Generation) -> list[str]:
    """Delete a generation that has ended and is locked; return whom an event of it was owed to.

    The caller has their lanes reloaded (`Inbox.reload`), which drops its deliveries from memory.
    """
    values = {
        "id": generation.id,
        "tenant": generation.tenant,
        "event_ids": json_text(generation.event_ids),
        "notify_subscriber_id": generation.notify_subscriber_id,
        "created_at": time_of(generation.id),
        "most": _PARTS_MAX,
    }
    if generation.notify_subscriber_id is not None:
        await tx.lock("subscriber_by_id", id=generation.notify_subscriber_id)
    await tx.lock("events_of_ids", **values)
    deliveries = await tx.lock("deliveries_of_events", **values)
    for name in _STATEMENTS:
        await tx.run(name, **values)
    return sorted({row["subscriber_id"] for row in deliveries if row["status"] == "pending"})
