"""Submit generations to upstream: stored first, sent once, repeated only where that is safe."""

import asyncio
from typing import Any

import msgspec
from msgspec.structs import replace

from service.context import Context
from service.delivery import retry
from service.delivery.tenants import subscriber_for
from service.generations import ingest, schedule
from service.generations.ingest import Batch, Reply
from service.model.clock import SECOND
from service.model.generation import Generation
from service.model.ids import time_of
from service.store import generations
from service.store.database import Transaction
from service.telemetry import metrics
from service.upstream import wire
from service.upstream.callback_url import callback_url, new_nonce

CLAIMED_MAX = 20
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
        self.in_flight: dict[str, asyncio.Task[Submission]] = {}

    def start(self, generation: Generation) -> asyncio.Task[Submission]:
        """Submit a generation that is stored as `sending`, even if the client hangs up."""
        task = asyncio.create_task(submit(self.context, generation), name=f"submit {generation.id}")
        self.in_flight[generation.id] = task
        task.add_done_callback(lambda _task: self.in_flight.pop(generation.id, None))
        return task

    async def run_due(self, now: int) -> tuple[int, int | None]:
        """Repeat due submissions that were put off; return how many, and the next due time."""
        database = self.context.database
        due_at = await database.read(generations.next_due, "submit")
        if due_at is None or due_at > now:
            return 0, due_at
        due = await database.write(_claim_due)
        await asyncio.gather(*map(self.start, due))
        return len(due), now

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
    after = await context.database.write_always(_record, context, reply)
    ingest.announce_exchange(metrics.submissions, reply.exchange, model=generation.model)
    return after, reply.exchange.status_code if after.submission == "refused" else None


async def _claim_due(tx: Transaction) -> list[Generation]:
    """Mark due submissions as `sending`; `poll.expire` ends those past their deadline."""
    due = await generations.list_due(tx, "submit", CLAIMED_MAX)
    claimed = [replace(generation, submission="sending", submit_at=None) for generation in due]
    await generations.update(tx, zip(due, claimed, strict=True))
    return [generation for generation in claimed if generation.deadline_at > tx.now]


async def _record(tx: Transaction, context: Context, reply: Reply) -> Generation:
    """Record upstream's answer to a submission; return the changed generation."""
    id_ = reply.exchange.generation_id
    batch = Batch(tx, context, await generations.get_many(tx, [id_]))
    before = batch.generations[id_]
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
            submission="taken",
            submit_at=None,
            task_id=generation.task_id or answer.task_id,
            submitted_at=generation.submitted_at or now,
            next_poll_at=next_poll_at,
        )
    if was_open and answer.outcome == "refused":
        return batch.change(id_, submission="refused")
    is_spent = answer.repeats_max is not None and generation.submit_count > answer.repeats_max
    if was_open and answer.outcome == "put_off" and not is_spent:
        wait_ms = retry.parse_retry_after(answer.retry_after, now)
        due_at = schedule.next_submission(generation.submit_count, now, wait_ms, context.jitter())
        return batch.change(id_, submission="waiting", submit_at=due_at)
    return batch.change(id_, submission="lost")
