"""Hints: callbacks that are no proof. A hint is used up by an answer about its task."""

from collections.abc import Mapping
from functools import partial

from service.context import Context
from service.generations import budget, judge, schedule
from service.generations.ingest import Batch, Reply
from service.model.clock import MINUTE, SECOND
from service.model.generation import CALLBACK_GRACE_MS, Generation
from service.model.ids import time_of
from service.store import callbacks, generations, tasks
from service.store.database import Transaction
from service.upstream import reading, wire

ABSENT_MAX = 6  # A hint is given up after so many polls in a row that found no such task.
# The status path of many services lags behind their callbacks. If a callback says that the task
# ended and the path does not, upstream is polled so long after the callback: 1, 2, 4, … s apart.
LAG_MS = tuple(seconds * SECOND for seconds in (1, 3, 7, 15, 30, 60))


async def use_hints(
    tx: Transaction, context: Context, batch: Batch, replies: Mapping[str, Reply]
) -> None:
    """Delete the hints that were answered; plan the next poll about those that were not.

    A hint that came only after the poll was sent stays: the answer may be older than the hint.
    """
    answered: list[str] = []
    due: dict[str, int] = {}
    for id_, due_at in (await generations.confirmations_of(tx, replies.keys())).items():
        asked_at = replies[id_].exchange.at
        again_at: int | None = due_at
        if id_ not in batch.generations or batch.generations[id_].is_final:
            again_at = None
        elif due_at <= asked_at:
            again_at = await _ask_again_at(tx, context, batch, replies[id_])
        if again_at is None:
            answered.append(id_)
        else:
            due[id_] = max(again_at, asked_at + generations.CONFIRM_INTERVAL_MS)
    await generations.delete_confirmations(tx, answered)
    await generations.plan_confirmations(tx, due)


async def _ask_again_at(
    tx: Transaction, context: Context, batch: Batch, reply: Reply
) -> int | None:
    """Return when to poll about a hint again; None: it is used up."""
    generation = batch.generations[reply.exchange.generation_id]
    if isinstance(reply.answer, wire.NoReport):
        return await _repeat_at(tx, context, generation, reply.answer)
    if judge.awaits_files(reply.answer):
        return None  # The status path does not lag. The next polls are planned.
    latest = await callbacks.latest(tx, generation.tenant, generation.id)
    if latest is None:
        return None
    asked_at, called_back_at = reply.exchange.at, time_of(latest["id"])
    if called_back_at > tx.now + MINUTE:
        return None  # The clock was ahead then. The next polls are planned.
    # Commits wait for this, so a large body is not read: it most likely holds a result.
    is_large = len(latest["body"]) > reading.READ_ON_LOOP_BYTES
    report = None if is_large else wire.read_callback(latest["body"], is_proof=False)
    if is_large or (report is not None and report.reports_end):
        lags = (called_back_at + lag_ms for lag_ms in LAG_MS)
        return next((at for at in lags if at > asked_at), None)
    is_first = (batch.before[generation.id].last_poll_at or 0) < called_back_at
    if generation.is_terminal or not is_first:
        return None
    # The task still runs: the next poll is no later than without callbacks.
    polls = generation.poll_count
    return schedule.next_poll_without_callback(context, generation, polls, tx.now)


async def _repeat_at(
    tx: Transaction, context: Context, generation: Generation, answer: wire.NoReport
) -> int | None:
    """Return when to repeat a poll that got no answer about the task; None: never."""
    now = tx.now
    if now > generation.deadline_at + CALLBACK_GRACE_MS:
        return None
    if answer.outcome == "absent" and generation.trouble_count >= ABSENT_MAX:
        # Polls after EXCHANGES_MAX are not stored: then the count of trouble has to do.
        is_known = generation.poll_count <= generations.EXCHANGES_MAX
        outcomes = await generations.latest_poll_outcomes(tx, generation.id, ABSENT_MAX)
        if not is_known or outcomes == ["absent"] * ABSENT_MAX:
            return None
    wait_ms = budget.wait_ms(context, answer, now)
    if answer.outcome == "throttled":
        return now + wait_ms
    trouble_count = generation.trouble_count
    return max(schedule.poll_after_trouble(trouble_count, now, context.jitter()), now + wait_ms)


async def task_id_of_callbacks(context: Context, generation: Generation) -> str | None:
    """Return the task id that callbacks name; ids of other generations' tasks do not count."""
    database, id_ = context.database, generation.id
    for body in await database.read(callbacks.latest_bodies, generation.tenant, id_):
        report = await reading.read(len(body), partial(wire.read_callback, body, is_proof=False))
        ids = report.task_ids if report else ()
        if ids and not await database.read(tasks.another_has, ids, id_):
            return ids[0]
    return None
