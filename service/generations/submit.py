"""Submit generations to upstream: stored first, sent once, repeated only where that is safe."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from service.context import Context
from service.delivery.tenants import subscriber_for
from service.generations import budget, ingest, judge, schedule
from service.generations.ingest import Batch, Reply
from service.generations.request import request_of
from service.generations.stuck import LOOK_AGAIN_MS, Stuck
from service.model.clock import SECOND
from service.model.errors import StorageBusyError, StorageError
from service.model.generation import Generation, NewGeneration
from service.model.ids import time_of
from service.store import generations
from service.store.database import Transaction
from service.telemetry import log, metrics
from service.upstream import wire
from service.upstream.callback_url import new_nonce

_log = log.get()

# Requests to upstream under way; of one tenant at most half. The client has as many connections,
# so that none waits for one. What finds no place is a row that waits, and no memory.
PLACES = 64
# A generation after its submission, and the HTTP status with which upstream refused it, if it did.
Submission = tuple[Generation, int | None]
# A stored generation, and its submission unless it found no place.
Accepted = tuple[Generation, asyncio.Task[Submission] | None]
Store = Callable[[bool], Awaitable[Generation]]  # Its argument: whether there is a place.
T = TypeVar("T")


async def store_new(
    tx: Transaction,
    context: Context,
    tenant: str,
    generation_id: str,
    new: NewGeneration,
    has_place: bool,  # noqa: FBT001  units have no keyword arguments
) -> Generation:
    """Store a generation: as `sending` if this process has a place for it, else as `waiting`.

    While upstream wants no request it is `waiting`, too.
    """
    paused_ms = await generations.get_pause(tx) - tx.now
    has_place = has_place and not 0 < paused_ms <= budget.pause_max_ms(context)
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
        submission="sending" if has_place else "waiting",
        submit_at=None if has_place else tx.now,
    )
    await generations.insert(tx, generation)
    tx.after_commit(context.signals.deadline.set)
    if not has_place:
        tx.after_commit(context.signals.submit.set)
    return generation


class Submitter:
    """The submissions under way in this process.

    A place is taken before a row says `sending`: what finds none never says so. If the process
    stops, what certainly did not leave is put back to `waiting`.
    """

    def __init__(self, context: Context, upstream_budget: budget.Budget) -> None:
        self.context = context
        self.budget = upstream_budget  # The poller's: a pause is for both.
        self.places = budget.Places(PLACES)
        self.stuck = Stuck()
        self.in_flight: dict[str, asyncio.Task[Any]] = {}
        self.repeated: set[asyncio.Task[Submission]] = set()

    async def accept(self, tenant: str, generation_id: str, store: Store) -> Accepted:
        """Store a new generation and begin to submit it, even if the client hangs up.

        If no place is free for it, it is submitted as soon as one is.
        """
        accepting = self._accept(budget.tenant_owner(tenant), generation_id, store)
        return await asyncio.shield(self._begin(generation_id, accepting))

    async def _accept(self, owner: str, generation_id: str, store: Store) -> Accepted:
        has_place = self.places.take(owner)
        try:
            if has_place:
                self.context.client.prepare()
            generation = await self._mark([generation_id], store(has_place))
        except StorageBusyError:  # The client is told at once, and the commit may still succeed.
            if has_place:
                self._begin(generation_id, self._put_back_late(owner, generation_id))
            raise
        except BaseException:
            if has_place:
                self._give_back(owner)
            raise
        is_sending = has_place and generation.submission == "sending"
        if has_place and not is_sending:
            self._give_back(owner)
        return generation, self._submit(generation) if is_sending else None

    async def _put_back_late(self, owner: str, id_: str) -> None:
        """Put a generation back whose place nobody uses, once the database commits again."""
        try:
            with contextlib.suppress(StorageError):  # The database was closed.
                await self.context.database.write_always(_put_back, self.context, [id_])
        finally:
            self._give_back(owner)

    def _begin(self, id_: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Work in a task that is known to be under way, so that a stop waits for it."""
        task = asyncio.create_task(work, name=f"submit {id_}")
        self.in_flight[id_] = task
        task.add_done_callback(partial(self._end, id_))
        return task

    def _end(self, id_: str, task: asyncio.Task[Any]) -> None:
        if self.in_flight.get(id_) is task:
            del self.in_flight[id_]

    def _submit(self, generation: Generation) -> asyncio.Task[Submission]:
        """Submit a generation that is stored as `sending`, and for which a place was taken."""
        task = self._begin(generation.id, self._send(generation))
        task.add_done_callback(partial(self._end_submission, generation))
        return task

    async def _send(self, generation: Generation) -> Submission:
        try:
            request = request_of(self.context, generation)
        except Exception as error:  # noqa: BLE001  nothing left: it is tried again later
            self.stuck.put(generation.id, self.context.clock(), error)
            await self.context.database.write_always(_put_back, self.context, [generation.id])
            return generation, None
        return await submit(self.context, generation, *request)

    def _end_submission(self, generation: Generation, task: asyncio.Task[Submission]) -> None:
        self.repeated.discard(task)
        self._give_back(budget.tenant_owner(generation.tenant))
        if not task.cancelled() and (error := task.exception()):
            # The row stays `sending`: upstream may have a task, so it is never sent again.
            _log.error("submission.failed", generation_id=generation.id, error=repr(error))

    def _give_back(self, owner: str) -> None:
        self.places.give_back(owner)
        self.context.signals.submit.set()

    async def _mark(self, ids: Sequence[str], marking: Awaitable[T]) -> T:
        """Await the unit that marks rows as `sending`.

        If the process stops meanwhile, they may be marked, and nothing left: they are put back.
        """
        try:
            return await marking
        except asyncio.CancelledError:
            await self.context.database.write_always(_put_back, self.context, ids)
            raise

    async def run_due(self, now: int) -> tuple[int, int | None]:
        """Repeat due submissions that were put off; return how many, and the next due time."""
        places = self.places
        if places.free <= 0:
            return 0, None  # The next place that is given back sets the signal.
        limit = min(places.free, places.owner_max)
        full = places.full("tenant ")
        choice = generations.Choice(limit, tenants=full, without=self.stuck.ids(now))
        due, next_at, paused_until = await self.context.database.read(_read_due, choice)
        self.stuck.put_all(choice.unreadable, now)
        self.budget.note(paused_until, now, budget.pause_max_ms(self.context))
        if due and now < self.budget.paused_until:  # One request goes through now and then.
            if now < self.budget.probe_at:
                return 0, min(self.budget.paused_until, self.budget.probe_at)
            self.budget.probe_at, due = now + budget.PROBE_MS, due[:1]
        chosen = [g for g in due if places.take(budget.tenant_owner(g.tenant))]
        if not chosen:
            return 0, now + LOOK_AGAIN_MS if choice.unreadable else self.stuck.next_at(next_at, now)
        claimed: dict[str, Generation] = {}
        try:
            ids = [generation.id for generation in chosen]
            self.context.client.prepare()
            claimed = await self._mark(ids, self._claim(ids, now))
        finally:
            for generation in chosen:
                if generation.id not in claimed:
                    self._give_back(budget.tenant_owner(generation.tenant))
        self.repeated |= {self._submit(generation) for generation in claimed.values()}
        return len(claimed), now

    async def _claim(self, ids: Sequence[str], now: int) -> dict[str, Generation]:
        """Mark due submissions as `sending`, one by one if one of them cannot be changed.

        A wait that ends before its commit would leave rows that say `sending` and are never sent.
        """
        write = self.context.database.write_always
        try:
            return await write(_claim_due, ids)
        except StorageError:
            raise
        except Exception as error:  # noqa: BLE001  one row must not hold the others
            _log.error("submission.not_claimed", error=repr(error))
        claimed: dict[str, Generation] = {}
        for id_ in ids:
            try:
                claimed |= await write(_claim_due, [id_])
            except Exception as error:  # noqa: BLE001  its row cannot be changed
                self.stuck.put(id_, now, error)
        return claimed

    async def settle_repeated(self) -> None:
        """Wait for the submissions that `run_due` started; cancelling the wait cancels none."""
        if self.repeated:
            await asyncio.wait(self.repeated)

    async def settle(self) -> None:
        """Wait for every submission under way; cancelling the wait cancels none."""
        while self.in_flight:
            await asyncio.wait(self.in_flight.values())


async def submit(
    context: Context, generation: Generation, path: str, body: dict[str, Any]
) -> Submission:
    """Send a generation that is stored as `sending`, and record upstream's answer."""
    reply = await ingest.ask(context, generation.id, context.client.create(path, body), None)
    try:
        after = await context.database.write_always(_record, context, reply)
    except StorageError:
        raise
    except Exception as error:  # noqa: BLE001  an answer that cannot be stored
        _log.error("submission.failed", generation_id=generation.id, error=repr(error))
        task_id = reply.answer.task_id if isinstance(reply.answer, wire.Report) else None
        answer = wire.Report("processing", task_id) if task_id else wire.NoReport("lost")
        exchange = replace(reply.exchange, status_code=None, outcome="lost", detail=None)
        reply = replace(reply, answer=answer, update=None, exchange=exchange)
        after = await context.database.write_always(_record, context, reply)
    ingest.announce_exchange(metrics.submissions, reply.exchange, model=generation.model)
    return after, reply.exchange.status_code if after.submission == "refused" else None


async def _put_back(tx: Transaction, context: Context, ids: Sequence[str]) -> None:
    """Mark submissions as `waiting` that may be marked as `sending` and certainly did not leave."""
    batch = Batch(tx, context, await generations.get_many(tx, ids))
    for id_, generation in [*batch.generations.items()]:
        due_at = schedule.next_submission(1, tx.now, None, context.jitter())
        batch.change(id_, **ingest.submission_changes(generation, "waiting", due_at))
    await batch.write()
    tx.after_commit(context.signals.submit.set)


async def _read_due(
    tx: Transaction, choice: generations.Choice
) -> tuple[list[Generation], int | None, int]:
    """Return due submissions, when the next one is due, and until when upstream wants none."""
    due_at = await generations.next_due(tx, "submit", choice.tenants, choice.without)
    if due_at is None or due_at > tx.now:
        return [], due_at, 0
    return await generations.list_submissions(tx, choice), due_at, await generations.get_pause(tx)


async def _claim_due(tx: Transaction, ids: Sequence[str]) -> dict[str, Generation]:
    """Mark those submissions that are still due as `sending`; return them by id.

    `deadlines.expire` ends those past their deadline.
    """
    held = await generations.confirmations_of(tx, ids)
    read = await generations.get_many(tx, ids)
    due = [g for g in read.values() if g.id not in held and g.is_submission_due(tx.now)]
    late = [replace(g, submit_at=None) for g in due if g.deadline_at <= tx.now]
    claimed = [
        replace(g, submission="sending", submit_at=None, next_poll_at=None)
        for g in due
        if g.deadline_at > tx.now
    ]
    after = {generation.id: generation for generation in (*late, *claimed)}
    await generations.update(tx, [(generation, after[generation.id]) for generation in due])
    return {generation.id: generation for generation in claimed}


async def _record(tx: Transaction, context: Context, reply: Reply) -> Generation:
    """Record upstream's answer to a submission; return the changed generation."""
    id_ = reply.exchange.generation_id
    batch = Batch(tx, context, await generations.get_many(tx, [id_]))
    before = batch.generations[id_]
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
    if budget.is_throttled(reply.answer):
        await generations.put_pause(tx, tx.now + budget.wait_ms(context, reply.answer, tx.now))
    await batch.write()
    if await generations.confirmations_of(tx, [id_]):  # It waited for this answer.
        due_at = generations.confirm_at(tx.now, after.last_poll_at)
        await generations.plan_confirmations(tx, {id_: due_at})
        tx.after_commit(context.signals.poll.set)
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
        wait_ms = budget.asked_pause_ms(context, answer.retry_after, now)
        due_at = schedule.next_submission(generation.submit_count, now, wait_ms, context.jitter())
        return batch.change(id_, **ingest.submission_changes(generation, "waiting", due_at))
    return batch.change(id_, **ingest.submission_changes(generation, "lost"))
