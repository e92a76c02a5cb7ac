"""Submit generations to upstream: stored first, sent once, repeated only where that is safe."""

import asyncio
from typing import Any

import msgspec
from msgspec.structs import replace

from service.context import Context
from service.delivery.tenants import subscriber_for
from service.generations import budget, ingest, judge, schedule
from service.generations.ingest import Batch, Reply
from service.model.clock import SECOND
from service.model.errors import StorageError
from service.model.generation import Generation
from service.model.ids import time_of
from service.store import generations
from service.store.database import Transaction
from service.telemetry import log, metrics
from service.upstream import wire
from service.upstream.callback_url import callback_url, new_nonce

_log = log.get()

# Requests to upstream under way; of one tenant at most half. The client has as many connections,
# so that none waits for one. What finds no place is a row that waits, and no memory.
PLACES = 64
NO_ANSWER: dict[str, Any] = {"status_code": None, "outcome": "lost", "detail": None}
UNKNOWN_MODEL_PATH = "/images/generations"
# A generation after its submission, and the HTTP status with which upstream refused it, if it did.
Submission = tuple[Generation, int | None]


class NewGeneration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A client's request for a generation, validated in api/generations.py."""

    model: str
    input: dict[str, Any]
    metadata: dict[str, str] = {}
    notify_url: str | None = None


async def store_new(
    tx: Transaction, context: Context, tenant: str, generation_id: str, new: NewGeneration
) -> Generation:
    """Store a generation that this process will submit at once, as `sending`."""
    model = context.catalogue.get(new.model)
    expects_callback = model and model.callbacks and context.settings.public_url is not None
    subscriber = new.notify_url and await subscriber_for(tx, context, tenant, new.notify_url)
    generation = Generation(
        **msgspec.structs.asdict(new),
        id=generation_id,
        tenant=tenant,
        status="queued",
        route="callback" if expects_callback else "poll",
        notify_subscriber_id=subscriber.id if subscriber else None,
        created_at=time_of(generation_id),
        deadline_at=tx.now + context.settings.deadline_seconds * SECOND,
        nonce=new_nonce(context.random_bytes),
        submission="sending",
    )
    await generations.insert(tx, generation)
    tx.after_commit(context.signals.deadline.set)
    return generation


class Submitter:
    """The submissions under way in this process."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.places = budget.Places(PLACES)
        self.in_flight: dict[str, asyncio.Task[Submission]] = {}
        self.repeated: set[asyncio.Task[Submission]] = set()

    def start(self, generation: Generation) -> asyncio.Task[Submission]:
        """Submit a generation that is stored as `sending`, even if the client hangs up.

        If no place is free for it, it is stored as `waiting`, and submitted as soon as one is.
        """
        owner = budget.tenant_owner(generation)
        has_place = self.places.take(owner)
        work = submit if has_place else put_off
        task = asyncio.create_task(work(self.context, generation), name=f"submit {generation.id}")
        self.in_flight[generation.id] = task
        task.add_done_callback(lambda _task: self._end(generation.id, owner if has_place else None))
        return task

    def _end(self, generation_id: str, owner: str | None) -> None:
        task = self.in_flight.pop(generation_id, None)
        if task in self.repeated:
            self.repeated.discard(task)
            if not task.cancelled() and (error := task.exception()):
                # The row stays `sending`: upstream may have a task, so it is never sent again.
                _log.error("submission.failed", generation_id=generation_id, error=repr(error))
        if owner is not None:
            self.places.give_back(owner)
            self.context.signals.submit.set()

    async def run_due(self, now: int) -> tuple[int, int | None]:
        """Repeat due submissions that were put off; return how many, and the next due time."""
        database, places = self.context.database, self.places
        if places.free <= 0:
            return 0, None  # The next place that is given back sets the signal.
        full = places.full("tenant ")
        due_at = await database.read(generations.next_due, "submit", full)
        if due_at is None or due_at > now:
            return 0, due_at
        choice = generations.Choice(min(places.free, places.owner_max), tenants=full)
        due = await database.write(_claim_due, choice)
        self.repeated |= {self.start(generation) for generation in due}
        return len(due), now

    async def settle_repeated(self) -> None:
        """Wait for the submissions that `run_due` started; cancelling the wait cancels none."""
        if self.repeated:
            await asyncio.wait(self.repeated)

    async def settle(self) -> None:
        """Wait for every submission under way; cancelling the wait cancels none."""
        if self.in_flight:
            await asyncio.wait(self.in_flight.values())


async def submit(context: Context, generation: Generation) -> Submission:
    """Send a generation that is stored as `sending`, and record upstream's answer."""
    model = context.catalogue.get(generation.model)
    url = None
    if model is None or model.callbacks:
        url = callback_url(context.tokens, context.settings.public_url, generation)
    fields = {"model": model.sent_as if model else generation.model, "callback_url": url}
    body = generation.input | {name: value for name, value in fields.items() if value is not None}
    path = model.path if model else UNKNOWN_MODEL_PATH
    reply = await ingest.ask(context, generation.id, context.client.create(path, body), None)
    try:
        after = await context.database.write_always(_record, context, reply)
    except StorageError:
        raise
    except Exception as error:  # noqa: BLE001  an answer that cannot be stored
        _log.error("submission.failed", generation_id=generation.id, error=repr(error))
        task_id = reply.answer.task_id if isinstance(reply.answer, wire.Report) else None
        reply = replace(reply, update=None, exchange=replace(reply.exchange, **NO_ANSWER))
        answer = wire.Report("processing", task_id) if task_id else wire.NoReport("lost")
        reply = replace(reply, answer=answer)
        after = await context.database.write_always(_record, context, reply)
    ingest.announce_exchange(metrics.submissions, reply.exchange, model=generation.model)
    return after, reply.exchange.status_code if after.submission == "refused" else None


async def put_off(context: Context, generation: Generation) -> Submission:
    """Store a generation for which there is no place as `waiting`: it never left."""
    after = await context.database.write_always(_put_off, context, generation.id)
    return after, None


async def _put_off(tx: Transaction, context: Context, generation_id: str) -> Generation:
    batch = Batch(tx, context, await generations.get_many(tx, [generation_id]))
    changes = ingest.submission_changes(batch.before(generation_id), "waiting", tx.now)
    after = batch.change(generation_id, **changes)
    await batch.write()
    tx.after_commit(context.signals.submit.set)
    return after


async def _claim_due(tx: Transaction, choice: generations.Choice) -> list[Generation]:
    """Mark due submissions as `sending`; `poll.expire` ends those past their deadline."""
    due = await generations.list_submissions(tx, choice)
    claimed = [replace(generation, submission="sending", submit_at=None) for generation in due]
    await generations.update(tx, zip(due, claimed, strict=True))
    return [generation for generation in claimed if generation.deadline_at > tx.now]


async def _record(tx: Transaction, context: Context, reply: Reply) -> Generation:
    """Record upstream's answer to a submission; return the changed generation."""
    id_ = reply.exchange.generation_id
    batch = Batch(tx, context, await generations.get_many(tx, [id_]))
    before = batch.generations[id_]
    reply = await judge.judge_submission(tx, context, before, reply)
    was_open = not before.is_terminal  # A callback or the deadline may have come first.
    count = before.submit_count + 1
    await generations.record_exchanges(tx, [replace(reply.exchange, number=count)])
    if reply.update is not None and (was_open or isinstance(reply.answer, wire.Report)):
        batch.ingest(id_, reply.update)
    batch.change(id_, submit_count=count)
    after = _change_submission(context, batch, id_, reply.answer, was_open=was_open)
    await batch.write()
    if after.next_poll_at is not None:
        tx.after_commit(context.signals.poll.set)
    if after.submit_at is not None:
        tx.after_commit(context.signals.submit.set)
    return after


def _change_submission(
    context: Context, batch: Batch, id_: str, answer: wire.Answer, *, was_open: bool
) -> Generation:
    generation, now = batch.generations[id_], batch.now
    if isinstance(answer, wire.Report):
        next_poll_at = generation.next_poll_at
        if not generation.is_terminal and next_poll_at is None:
            next_poll_at = schedule.next_poll(context, generation, 0, now)
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
        wait_ms = budget.asked_pause_ms(context, answer.retry_after, now)
        due_at = schedule.next_submission(generation.submit_count, now, wait_ms, context.jitter())
        return batch.change(id_, **ingest.submission_changes(generation, "waiting", due_at))
    return batch.change(id_, **ingest.submission_changes(generation, "lost"))
