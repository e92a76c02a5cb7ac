"""Times out generations at their deadline, after a last poll; one that fails holds up no other."""

import asyncio

from service.context import Context
from service.generations import ingest, schedule
from service.generations.ingest import Batch, Reply, Update
from service.generations.stuck import LOOK_AGAIN_MS, Stuck
from service.model.clock import DAY, SECOND
from service.model.errors import StorageError
from service.model.generation import Generation
from service.store import callbacks, generations
from service.store.database import Transaction
from service.telemetry import log
from service.upstream import wire

EXPIRED_MAX = 100  # Generations that are timed out at once.
HARD_END_MS = DAY  # How long after its deadline a generation ends that could not be polled.
# For how long after the deadline an answer with this outcome does not end the generation.
PATIENCE_MS = {"throttled": HARD_END_MS, "other_task": 10 * SECOND}
OVERDUE_POLL_MS = 2 * SECOND  # Between polls of a generation past its deadline.

DEADLINE_MESSAGE = "No outcome by the deadline. A late result is still accepted."
NEVER_SENT = " It was never submitted."
NO_RECORD = " How its submission ended is not known."
CALLED_BACK = " A callback came that names no task, so it was not sent again."
NOT_ASKED_MESSAGE = "Upstream could not be asked for a day after the deadline."

_log = log.get()


async def expire_due(context: Context, stuck: Stuck, now: int) -> int | None:
    """Time out generations past their deadline; return the next deadline."""
    choice, database = generations.Choice(EXPIRED_MAX, without=stuck.ids(now)), context.database
    deadline_at = await database.read(generations.next_due, "expire", (), choice.without)
    if deadline_at is None or deadline_at > now:
        return stuck.next_at(deadline_at, now)
    expired = await database.read(generations.list_due, "expire", choice)
    stuck.put_all(choice.unreadable, now)
    await asyncio.gather(*(_expire(context, stuck, generation, now) for generation in expired))
    return now + LOOK_AGAIN_MS if choice.unreadable else now


async def _expire(context: Context, stuck: Stuck, generation: Generation, now: int) -> None:
    """Time out a generation in its tenant's turn; if that fails, it is looked at again later."""
    try:
        await context.database.write(expire, context, generation.id, tenant=generation.tenant)
    except StorageError:
        raise
    except Exception as error:  # noqa: BLE001  one row must not hold the others
        _log.error("expire.failed", generation_id=generation.id, error=repr(error))
        await move_on_or_pass(context, stuck, generation, now)


async def move_on_or_pass(context: Context, stuck: Stuck, generation: Generation, now: int) -> None:
    """Move a row that cannot be worked behind the others; if even that fails, pass it over."""
    try:
        await context.database.write(move_on, context, generation.id, tenant=generation.tenant)
    except Exception as error:  # noqa: BLE001  its row cannot be changed
        stuck.put(generation.id, now, error)


async def expire(tx: Transaction, context: Context, id_: str) -> None:
    """Time out a generation past its deadline without a task id; with one, make its poll due.

    Only if it has no planned poll, and no callback waits for its confirmation.
    """
    batch = Batch(tx, context, await generations.lock_many(tx, [id_]))
    generation = batch.generations.get(id_)
    if generation is None or not generation.is_expired(tx.now):
        return
    if await generations.confirmations_of(tx, [id_]):
        return
    if generation.task_id is not None:  # Upstream knows the task, so it is asked first.
        batch.change(id_, next_poll_at=tx.now)
        tx.after_commit(context.tell, context.signals.poll, id_)
    else:
        exchanges = await generations.latest_exchanges(tx, [id_])
        reason = _reason(context, generation, exchanges.get(id_))
        is_waiting = generation.submission == "waiting"
        # A callback keeps a submission that was declined from being sent again.
        if is_waiting and await callbacks.latest(tx, generation.tenant, id_) is not None:
            reason += CALLED_BACK
        batch.ingest(id_, _update("deadline_exceeded", reason))
        # Upstream may have a task, even one whose id only a callback will name.
        if not is_waiting:
            deadline_at, jitter = generation.deadline_at, context.jitter()
            due_at = schedule.poll_after_deadline(deadline_at, 0, tx.now, jitter)
            batch.change(id_, next_poll_at=due_at)
    await batch.write()


def end_of(generation: Generation, reply: Reply) -> Update | None:
    """Return the time-out of a generation whose poll at or after its deadline brought no outcome.

    A 429, or an answer about another task, says nothing about this task: the poll is repeated, for
    as long as PATIENCE_MS says.
    """
    outcome = reply.exchange.outcome
    if reply.exchange.at < generation.deadline_at + PATIENCE_MS.get(outcome, 0):
        return None
    if outcome == "throttled":
        return _update("not_asked", _last_message(reply.exchange), NOT_ASKED_MESSAGE)
    answer = reply.answer
    is_unknown = isinstance(answer, wire.Report) and (answer.possible or not answer.recognised)
    code = "unknown_status" if is_unknown else "deadline_exceeded"
    return _update(code, _last_message(reply.exchange))


def _reason(context: Context, generation: Generation, exchange: generations.Exchange | None) -> str:
    """Return why a generation without a task timed out: what its last exchange said."""
    if exchange is None:
        return NEVER_SENT if generation.submission == "waiting" else NO_RECORD
    return ingest.excerpt(context, _last_message(exchange))  # Secrets may have changed since.


def _update(code: str, reason: str, message: str = DEADLINE_MESSAGE) -> Update:
    return Update(status="timed_out", error={"code": code, "message": message + reason})


def _last_message(exchange: generations.Exchange) -> str:
    """Return as a sentence what upstream last said, or how the exchange went if it said nothing."""
    kind, outcome, detail = exchange.kind, exchange.outcome, exchange.detail
    if not detail or (kind, outcome) == ("submission", "taken") or outcome == "throttled":
        return f" The outcome of the last {kind} was: {outcome}."  # The detail is no message.
    if outcome in ("put_off", "lost", "unwell") and not exchange.status_code:
        return f" Upstream did not answer the last {kind}: {detail}"
    return f" Upstream last said: {detail}"


async def move_on(tx: Transaction, context: Context, id_: str) -> None:
    """Move a row that cannot be worked behind the others, with its own back-off.

    A day after its deadline it is not asked about any more.
    """
    batch = Batch(tx, context, await generations.lock_many(tx, [id_]))
    present = batch.generations.get(id_)
    if present is None or present.is_final:
        return  # A callback has ended it since.
    count = present.trouble_count + 1
    due_at = schedule.poll_after_trouble(count, tx.now, context.jitter())
    if tx.now < present.deadline_at + HARD_END_MS:
        batch.change(id_, next_poll_at=due_at, trouble_count=count)
    elif present.is_terminal:
        batch.change(id_, next_poll_at=None)
    else:
        batch.ingest(id_, _update("not_asked", "", NOT_ASKED_MESSAGE))
    await batch.write()
    if batch.generations[id_].next_poll_at is None:
        await generations.delete_confirmations(tx, [id_])
    else:
        await generations.delay_confirmation(tx, id_, due_at)
