"""Cancel a generation for its owner: it is not polled any more. Upstream is not told."""

from service.context import Context
from service.generations.ingest import Batch, Update
from service.model.generation import Generation
from service.store import callbacks
from service.store.database import Transaction

CODE = "canceled"
UNSENT = "Its owner canceled it before it was submitted."
SENT = "Its owner canceled it. Upstream was not told: it may finish the task, and bill for it."


async def cancel(tx: Transaction, context: Context, generation: Generation) -> Generation:
    """End an open generation as `canceled`, with its event; return it as it then is.

    A submission that waits is never sent. One that is being sent goes on, and its answer only tells
    the task's id. What upstream says later changes nothing.
    """
    is_unsent = (
        generation.submission == "waiting"
        and generation.task_id is None
        # A callback shows that upstream may have the task although it declined the submission.
        and await callbacks.latest(tx, generation.tenant, generation.id) is None
    )
    error = {"code": CODE, "message": UNSENT if is_unsent else SENT}
    batch = Batch(tx, context, {generation.id: generation})
    batch.ingest(generation.id, Update(status="canceled", error=error, is_unsent=is_unsent))
    await batch.write()
    return batch.generations[generation.id]
