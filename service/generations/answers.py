"""Record what upstream answered to polls, and plan the next ones."""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from service.context import Context
from service.generations import budget, deadlines, hints, ingest, judge, schedule
from service.generations.ingest import Batch, Reply
from service.generations.sightings import Sightings
from service.model.clock import SECOND
from service.model.generation import CALLBACK_GRACE_MS, Generation
from service.store import generations, rows, tasks
from service.store.database import Transaction
from service.upstream import wire

POSSIBLE_POLL_MS = 15 * SECOND  # After an answer that proves an outcome only when it is repeated.


async def record(
    tx: Transaction, replies: Sequence[Reply], *, context: Context, sightings: Sightings
) -> list[None]:
    """Record answered polls: the exchanges, the reports, and when the next polls are due."""
    by_id = {reply.exchange.generation_id: reply for reply in replies}
    has_end = any(reply.update and reply.update.is_end for reply in replies)
    read = generations.lock_with_sharers if has_end else generations.lock_many
    batch = Batch(tx, context, await read(tx, by_id))
    await tasks.lock_tasks(tx, _new_task_ids(batch, by_id))
    exchanges: list[generations.Exchange] = []
    for id_ in filter(batch.generations.__contains__, [*by_id]):
        by_id[id_] = reply = await judge.judge_recorded(tx, context, batch, by_id[id_])
        exchanges.append(replace(reply.exchange, number=_apply(context, sightings, batch, reply)))
    await generations.record_exchanges(tx, exchanges)
    judge.share_outcomes(batch, {id_: reply.update for id_, reply in by_id.items()})
    await batch.write()
    await hints.use_hints(tx, context, batch, by_id)
    if pause_ms := max(reply.pause_ms for reply in replies):
        await budget.store_pause(tx, context, pause_ms)
    return [None] * len(replies)


def _apply(context: Context, sightings: Sightings, batch: Batch, reply: Reply) -> int:
    """Change the generation by the answer; return its number of polls."""
    id_, asked_at = reply.exchange.generation_id, reply.exchange.at
    before = batch.generations[id_]
    if reply.update is not None:
        batch.ingest(id_, reply.update)
    generation = batch.generations[id_]
    in_trouble = reply.exchange.outcome in ("absent", "unwell", "other_task")
    generation = batch.change(
        id_,
        # An answer or a callback named the task: upstream has it, whatever this answer says.
        **ingest.submission_changes(generation, "taken"),
        task_id=generation.task_id or (reply.task_id if reply.update else None),
        poll_count=generation.poll_count + 1,
        last_poll_at=asked_at,
        trouble_count=generation.trouble_count + 1 if in_trouble else 0,
    )
    if not generation.is_terminal and (end := deadlines.end_of(generation, reply)):
        generation = batch.ingest(id_, end)
    if not generation.is_final:
        planned = _next_poll(context, before, generation, reply, batch.now)
        if judge.awaits_files(reply.answer) and generation.status != "timed_out":
            due_at = sightings.files_due_at(id_, asked_at) or batch.now + POSSIBLE_POLL_MS
            planned = {"next_poll_at": min(due_at, generation.deadline_at)}
        batch.change(id_, **planned)
    return generation.poll_count


def _new_task_ids(batch: Batch, replies: Mapping[str, Reply]) -> list[str]:
    """Return the tasks that the replies may give to generations: only callbacks named them."""
    unnamed = [
        replies[id_]
        for id_, generation in batch.generations.items()
        if generation.task_id is None and id_ in replies
    ]
    ids = [(reply.task_id, reply.update and reply.update.task_id) for reply in unnamed]
    return [id_ for pair in ids for id_ in pair if id_]


async def plan_after_submission(tx: Transaction, generation_id: str, due_at: int) -> None:
    """Put off the poll about a task that only a callback names: its submission is under way.

    Upstream's answer to the submission says which task it is, and makes the poll due at once.
    Without an answer the poll is due at `due_at`.
    """
    generation = await rows.lock_by_id(tx, Generation, generation_id)
    if generation is None or generation.submission != "sending":
        return
    if generation.is_poll_due(tx.now):
        await generations.update(tx, [(generation, replace(generation, next_poll_at=due_at))])
    await generations.delay_confirmation(tx, generation_id, due_at)


async def drop_plan_without_task(tx: Transaction, context: Context, generation_id: str) -> None:
    """Drop the planned poll of a generation without a task id: only a callback can name its task.

    If no callback came, a client asked for the poll: a submission that waits goes on waiting.
    """
    generation = await rows.lock_by_id(tx, Generation, generation_id)
    if generation is None or generation.task_id is not None:
        return
    changes: dict[str, Any] = {"next_poll_at": None}
    due_times = await generations.confirmations_of(tx, [generation_id])
    if due_times:
        # A callback came, but it names no task that can be polled. Upstream may have a task, so the
        # submission is not repeated.
        changes["submit_at"] = None
    due_ids = [id_ for id_, due_at in due_times.items() if due_at <= tx.now]
    await generations.update(tx, [(generation, replace(generation, **changes))])
    await generations.delete_confirmations(tx, due_ids)
    tx.after_commit(context.signals.deadline.set)


def _next_poll(
    context: Context, before: Generation, generation: Generation, reply: Reply, now: int
) -> dict[str, Any]:
    """Return the changes that plan the next poll. Only a planned poll advances the plan."""
    planned_at = before.next_poll_at
    is_due = planned_at is not None and planned_at <= reply.exchange.at
    was_planned = is_due or reply.is_planned
    if generation.next_poll_at is not None and not was_planned:
        return {}  # A confirmation or a refresh.
    wait_ms = budget.wait_ms(context, reply.answer, now)
    is_throttled = reply.exchange.outcome == "throttled"
    if generation.status == "timed_out":
        # Count planned polls only, so that a client's refresh does not use them up; and a throttled
        # one has told nothing.
        is_late = was_planned and before.status == "timed_out"
        count = generation.late_poll_count + (is_late and not is_throttled)
        late_at = schedule.poll_after_deadline(generation.deadline_at, count, now, context.jitter())
        if late_at is not None:
            late_at = max(late_at, now + wait_ms)
            late_at = late_at if late_at < generation.deadline_at + CALLBACK_GRACE_MS else None
        return {"next_poll_at": late_at, "late_poll_count": count}
    if is_throttled and now < generation.deadline_at + deadlines.HARD_END_MS:
        return {"next_poll_at": now + wait_ms} if was_planned else {}
    if generation.trouble_count:
        due_at = schedule.poll_after_trouble(generation.trouble_count, now, context.jitter())
        due_at = max(due_at, now + wait_ms)
    else:
        polls = schedule.planned_polls(context, generation, now)
        due_at = schedule.next_poll(context, generation, polls, now)
        if isinstance(reply.answer, wire.Report) and reply.answer.possible:
            due_at = min(due_at, now + POSSIBLE_POLL_MS)
    if reply.exchange.at >= generation.deadline_at:
        return {"next_poll_at": now + deadlines.OVERDUE_POLL_MS}
    return {"next_poll_at": min(due_at, generation.deadline_at)}
