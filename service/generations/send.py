"""Send a generation to upstream, and record what it answered."""

import asyncio
from typing import Any

from msgspec.structs import replace

from service.context import Context
from service.generations import budget, ingest, judge, schedule
from service.generations.budget import Budget
from service.generations.ingest import Batch, Reply
from service.model.errors import StorageError
from service.model.generation import Generation
from service.store import generations
from service.store.database import Transaction
from service.telemetry import log, metrics
from service.upstream import wire
from service.upstream.callback_url import callback_url

_log = log.get()

UNKNOWN_MODEL_PATH = "/images/generations"
# A generation after its submission, and the HTTP status with which upstream refused it, if it did.
Submitted = tuple[Generation, int | None]


def request_of(context: Context, generation: Generation) -> tuple[str, dict[str, Any]]:
    """Return the path and the body of the request that submits a generation."""
    model = context.catalogue.get(generation.model)
    url = None
    if model is None or model.callbacks:
        url = callback_url(context.tokens, context.settings.public_url, generation)
    fields = {"model": model.sent_as if model else generation.model, "callback_url": url}
    body = generation.input | {name: value for name, value in fields.items() if value is not None}
    return model.path if model else UNKNOWN_MODEL_PATH, body


async def send(
    context: Context, budget_: Budget, generation: Generation, path: str, body: dict[str, Any]
) -> Submitted:
    """Send a generation that is stored as `sending`, and record upstream's answer."""
    reply = await ingest.ask(context, generation.id, context.client.create(path, body), None)
    pause_ms = budget.pause_after(context, budget_, generation.id, reply.answer)
    reply = replace(reply, pause_ms=pause_ms)
    try:
        after = await _store(context, generation, reply)
    except StorageError:
        raise
    except Exception as error:  # noqa: BLE001  an answer that cannot be stored
        _log.error("submission.failed", generation_id=generation.id, error=repr(error))
        ids = reply.answer.task_ids if isinstance(reply.answer, wire.Report) else ()
        answer = wire.Report("processing", ids[0], ids) if ids else wire.NoReport("lost")
        exchange = replace(reply.exchange, status_code=None, outcome="lost", detail=None)
        reply = replace(reply, answer=answer, update=None, exchange=exchange)
        after = await _store(context, generation, reply)
    ingest.announce_exchange(metrics.submissions, reply.exchange, model=generation.model)
    return after, reply.exchange.status_code if after.submission == "refused" else None


async def _store(context: Context, sent: Generation, reply: Reply) -> Generation:
    """Store upstream's answer, even if the process stops and cancels this wait for it."""
    write = context.database.write_always
    return await asyncio.shield(write(_record, context, sent, reply, tenant=sent.tenant))


async def _record(tx: Transaction, context: Context, sent: Generation, reply: Reply) -> Generation:
    """Record upstream's answer to a submission; return the changed generation.

    A generation that was canceled and deleted meanwhile is returned as it was sent.
    """
    id_ = sent.id
    batch = Batch(tx, context, await generations.lock_many(tx, [id_]))
    if reply.pause_ms:
        await budget.store_pause(tx, context, reply.pause_ms)
    before = batch.generations.get(id_)
    if before is None:
        return sent
    reply = await judge.judge_submission(tx, context, before, reply)
    if before.submission == "sending" and not before.is_terminal:
        batch.change(id_, next_poll_at=None)  # A poll that waited for this answer.
    if isinstance(reply.answer, wire.Report):
        batch.change(id_, task_id=judge.task_id_after(before, reply.answer))
    was_open = not before.is_terminal  # A callback or the deadline may have come first.
    count = before.submit_count + 1
    await generations.record_exchanges(tx, [replace(reply.exchange, number=count)])
    if reply.update is not None and (was_open or isinstance(reply.answer, wire.Report)):
        batch.ingest(id_, reply.update)
    batch.change(id_, submit_count=count)
    after = _change_submission(context, batch, id_, reply.answer, was_open=was_open)
    await batch.write()
    if await generations.confirmations_of(tx, [id_]):  # A confirmation waited for this answer.
        due_at = generations.confirm_at(tx.now, after.last_poll_at)
        await generations.plan_confirmations(tx, {id_: due_at})
        tx.after_commit(context.tell, context.signals.poll, id_)
    if after.next_poll_at is not None:
        tx.after_commit(context.tell, context.signals.poll, id_)
    if after.submit_at is not None:
        tx.after_commit(context.tell, context.signals.submit, id_)
    return after


def _change_submission(
    context: Context, batch: Batch, id_: str, answer: wire.Answer, *, was_open: bool
) -> Generation:
    generation, now = batch.generations[id_], batch.now
    if isinstance(answer, wire.Report):
        next_poll_at = generation.next_poll_at
        if not generation.is_terminal and next_poll_at is None:
            planned_at = schedule.next_poll(context, generation, 0, now)
            next_poll_at = min(planned_at, generation.deadline_at)
        return batch.change(
            id_,
            **ingest.submission_changes(generation, "taken"),
            task_id=generation.task_id or answer.task_id,
            submitted_at=generation.submitted_at or now,
            next_poll_at=next_poll_at,
        )
    if was_open and answer.outcome == "refused":
        return batch.change(id_, **ingest.submission_changes(generation, "refused"))
    is_spent = answer.repeats_max is not None and generation.submit_count > answer.repeats_max
    if was_open and answer.outcome == "put_off" and not is_spent:
        wait_ms = budget.wait_ms(context, answer, now)
        due_at = schedule.next_submission(generation.submit_count, now, wait_ms, context.jitter())
        return batch.change(id_, **ingest.submission_changes(generation, "waiting", due_at))
    return batch.change(id_, **ingest.submission_changes(generation, "lost"))
