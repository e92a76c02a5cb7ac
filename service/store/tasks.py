"""Tasks of upstream: which generations have them, and by what other names they are known."""

from collections.abc import Collection

from service.store.database import Row, Transaction
from service.store.rows import json_text
from service.store.shards import shard_of

HOLDERS_MAX = 100  # Generations with the same tasks that are read.
NAMES_MAX = 8  # Other names of its task that a generation learns.


async def holders(
    tx: Transaction,
    task_ids: Collection[str],
    generation_id: str,
    own_task: str | None = None,
    *,
    limit: int = HOLDERS_MAX,
    input_text: str | None = None,
) -> list[Row]:
    """Return the other generations that have one of the tasks; see generations_of_tasks in sql/.

    Those whose task is `own_task` share it, so they are no others.
    `input` is None if it is the same text as `input_text`, or if `input_text` is None.
    """
    values = {"task_ids": json_text(list(task_ids)), "id": generation_id, "limit": limit}
    return await tx.all("generations_of_tasks", **values, own_task=own_task, input=input_text)


async def lock_tasks(tx: Transaction, task_ids: Collection[str]) -> None:
    """Wait until no other transaction may give one of the tasks to a generation.

    The caller has locked the generations that may get them: all units lock tasks after that.
    """
    # By a hash: a batch may name thousands, and the server's table of locks is small.
    await tx.lock_names(*{f"task {shard_of(id_)}" for id_ in task_ids})


async def another_has(
    tx: Transaction, task_ids: Collection[str], generation_id: str, own_task: str | None = None
) -> bool:
    """Return whether another generation has one of the tasks; `own_task` is shared, not another."""
    return bool(await holders(tx, task_ids, generation_id, own_task, limit=1))


async def remove_task(tx: Transaction, generation_id: str, task_id: str) -> None:
    """Remove a task from a generation that still has it, and has not succeeded or failed."""
    await tx.run("generation_remove_task", id=generation_id, task_id=task_id)


async def is_name(
    tx: Transaction, task_id: str, generation_id: str, own_task: str | None
) -> bool | None:
    """Return whether an id is another name of this generation's task; None if nobody learned it."""
    row = await tx.one("task_name", task_id=task_id, id=generation_id, own_task=own_task)
    return None if row is None else bool(row["is_own"] and not row["is_revoked"])


async def learn_name(tx: Transaction, task_id: str, generation_id: str) -> None:
    """Store another name of this generation's task; one that another task has is revoked."""
    await tx.keep("generation_tenant", id=generation_id)
    await tx.run("task_name_learn", task_id=task_id, id=generation_id, names_max=NAMES_MAX)


async def revoke_name(tx: Transaction, task_id: str) -> None:
    """Revoke a learned name: no generation's task has it any more."""
    await tx.run("task_name_revoke", task_id=task_id)
