"""Submit generations to upstream: stored first, sent once, repeated only where that is safe."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from service.context import Context
from service.delivery.tenants import subscriber_for
from service.generations import budget, ingest, schedule
from service.generations.ingest import Batch
from service.generations.places import Places, Unplaced
from service.generations.send import Submitted, request_of, send
from service.generations.stuck import LOOK_AGAIN_MS, Stuck
from service.model.clock import SECOND
from service.model.errors import StorageError
from service.model.generation import Generation, NewGeneration
from service.model.ids import time_of
from service.store import generations
from service.store.database import Transaction
from service.telemetry import log
from service.upstream.callback_url import new_nonce

_log = log.get()

# Submissions under way. The client has as many connections, so that none waits for one. A
# generation that finds no place waits as a row, and takes no memory.
PLACES = 64
# A stored generation, and its submission; None if it found no place or came during a pause.
Accepted = tuple[Generation, asyncio.Task[Submitted] | None]
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

    During a pause that upstream asked for, it is `waiting`, too.
    """
    paused_until = await generations.get_pause(tx)
    is_paused = budget.is_pause(paused_until, tx.now, budget.pause_max_ms(context))
    has_place = has_place and not is_paused
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
        tx.after_commit(context.tell, context.signals.submit, generation.id)
    return generation


class Submitter:
    """The submissions under way in this process.

    A place is taken before a row says `sending`. If the process stops, submissions that certainly
    did not leave are put back to `waiting`.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        # The poller has the same one: a pause is for both.
        self.budget = budget.Budget(
            context.settings.poll_rate_per_second, pause_max_ms=budget.pause_max_ms(context)
        )
        self.places = Places(PLACES)
        self.stuck = Stuck()
        self._last_tenant = ""  # The tenant behind it has the next turn.
        self.unplaced = Unplaced()
        self.in_flight: dict[str, asyncio.Task[Any]] = {}
        self.from_rows: set[asyncio.Task[Submitted]] = set()

    async def accept(self, tenant: str, generation_id: str, store: Store) -> Accepted:
        """Store a new generation and begin to submit it, even if the client hangs up.

        If no place is free for it, it is submitted as soon as one is.
        """
        accepting = self._accept(tenant, generation_id, store)
        return await asyncio.shield(self._begin(generation_id, accepting))

    async def _accept(self, tenant: str, generation_id: str, store: Store) -> Accepted:
        has_place = self.places.take(tenant)
        try:
            if has_place:
                self.context.client.prepare()
            generation = await self._mark([generation_id], store(has_place), tenant)
        except StorageError:  # The client is told at once; the row may be stored all the same.
            if has_place:
                self._begin(generation_id, self._put_back_late(tenant, generation_id))
            else:
                self.unplaced.note(tenant, generation_id)
            raise
        except BaseException:
            if has_place:
                self._give_back(tenant)
            raise
        if not has_place:
            self.unplaced.note(tenant, generation_id)
        elif generation.submission == "sending":
            return generation, self._submit(generation)
        else:  # Upstream has asked for a pause.
            self._give_back(tenant)
        return generation, None

    async def _put_back_late(self, tenant: str, id_: str) -> None:
        """Put a generation back to `waiting`, once the database commits again; free its place."""
        try:
            with contextlib.suppress(StorageError):  # The database was closed.
                await self._put_back([id_], tenant)
        finally:
            self._give_back(tenant)

    def _begin(self, id_: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` in a task of `in_flight`, so that a stop waits for it."""
        task = asyncio.create_task(work, name=f"submit {id_}")
        self.in_flight[id_] = task
        task.add_done_callback(partial(self._end, id_))
        return task

    def _end(self, id_: str, task: asyncio.Task[Any]) -> None:
        if self.in_flight.get(id_) is task:
            del self.in_flight[id_]

    def _submit(self, generation: Generation) -> asyncio.Task[Submitted]:
        """Submit a generation that is stored as `sending`, and for which a place was taken."""
        task = self._begin(generation.id, self._send(generation))
        task.add_done_callback(partial(self._end_submission, generation))
        return task

    async def _send(self, generation: Generation) -> Submitted:
        try:
            request = request_of(self.context, generation)
        except Exception as error:  # noqa: BLE001  nothing left: it is tried again later
            self.stuck.put(generation.id, self.context.clock(), error)
            await self._put_back([generation.id], generation.tenant)
            return generation, None
        if self.context.clock() >= generation.deadline_at:  # This process was frozen meanwhile.
            await self._put_back([generation.id], generation.tenant)
            return generation, None
        return await send(self.context, self.budget, generation, *request)

    def _end_submission(self, generation: Generation, task: asyncio.Task[Submitted]) -> None:
        self.from_rows.discard(task)
        self._give_back(generation.tenant)
        if not task.cancelled() and (error := task.exception()):
            # The row stays `sending`: upstream may have a task, so it is never sent again.
            _log.error("submission.failed", generation_id=generation.id, error=repr(error))

    def _give_back(self, tenant: str) -> None:
        self.places.give_back(tenant)
        self.context.signals.submit.set()
        # For the next drive. A tick or a loop looks at all shards.
        self.context.missed_shards.update(self.unplaced.shards_with_room(self.places))

    async def _mark(
        self, ids: Sequence[str], marking: Awaitable[T], tenant: str | None = None
    ) -> T:
        """Await the unit that marks rows as `sending`, in the turn of the tenant.

        If the process stops meanwhile, they may be marked, but were not sent: they are put back.
        """
        try:
            return await marking
        except asyncio.CancelledError:
            await self._put_back(ids, tenant)
            raise

    async def _put_back(self, ids: Sequence[str], tenant: str | None) -> None:
        """Put back rows that were certainly not sent, after the unit that marked them."""
        write = self.context.database.write_behind
        # A process that stops late cancels this wait, but not the write.
        await asyncio.shield(write(_put_back, self.context, ids, tenant=tenant))

    async def run_due(self, now: int) -> tuple[int, int | None]:
        """Start due submissions that wait in their rows; return how many, and the next due time."""
        places = self.places
        if places.free <= 0:
            return 0, None  # The next place that is given back sets the signal.
        full = places.full()
        choice = generations.Choice(places.free, tenants=full, without=self.stuck.ids(now))
        due, next_at, paused_until = await self.context.database.read(
            _read_due, choice, self._last_tenant
        )
        self.stuck.put_all(choice.unreadable, now)
        self.budget.note(paused_until, now)
        if due and self.budget.is_paused(now):  # One submission a minute goes through.
            if now < (probe_at := self.budget.probe_at("submission", now)):
                return 0, probe_at
            self.budget.note_probe("submission", now)
            due = due[:1]
        chosen = [g for g in due if places.take(g.tenant)]
        if not chosen:
            return 0, now + LOOK_AGAIN_MS if choice.unreadable else self.stuck.next_at(next_at, now)
        self._last_tenant = chosen[-1].tenant
        claimed: dict[str, Generation] = {}
        try:
            ids = [generation.id for generation in chosen]
            self.context.client.prepare()
            claimed = await self._mark(ids, self._claim(ids, now))
        finally:
            for generation in chosen:
                if generation.id not in claimed:
                    self._give_back(generation.tenant)
        self.from_rows |= {self._submit(generation) for generation in claimed.values()}
        return len(claimed), now

    async def has_due(self) -> bool:
        """Return whether submissions are due in the shards held here, with or without a place.

        True if the database fails; False during a pause that upstream asked for.
        """
        now, database = self.context.clock(), self.context.database
        try:
            due_at, _, paused_until = await database.read(_next_due, (), self.stuck.ids(now))
        except StorageError:
            return True
        self.budget.note(paused_until, now)
        return due_at is not None and due_at <= now and not self.budget.is_paused(now)

    async def forget_placed(self) -> None:
        """Forget the shards held here in which no submission is due any more that found no place.

        While the database fails, they are kept.
        """
        if not self.unplaced:
            return
        now, database, full = self.context.clock(), self.context.database, self.places.full()
        unplaced = [each for each in self.unplaced.ids() if database.holds(each[1])]
        try:
            of_all, of_others, _ = await database.read(_next_due, full, self.stuck.ids(now))
        except StorageError:
            return
        for tenant, id_ in unplaced:
            due_at = of_all if tenant in full else of_others
            is_due = due_at is not None and due_at <= now
            if not is_due and database.holds(id_):  # Else the shard was lost meanwhile.
                self.unplaced.forget(tenant, id_)

    async def _claim(self, ids: Sequence[str], now: int) -> dict[str, Generation]:
        """Mark due submissions as `sending`, one by one if one of them cannot be changed.

        A write that gives up may be committed all the same, and would leave rows that are `sending`
        and that nobody sends.
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

    async def settle_from_rows(self) -> None:
        """Wait for the submissions that `run_due` started; cancelling the wait cancels none."""
        if self.from_rows:
            await asyncio.wait(self.from_rows)

    async def settle(self, ids: Collection[str] | None = None) -> None:
        """Wait until these submissions, or all, are stored; cancelling the wait cancels none."""
        while tasks := [t for id_, t in self.in_flight.items() if ids is None or id_ in ids]:
            await asyncio.wait(tasks)


async def _put_back(tx: Transaction, context: Context, ids: Sequence[str]) -> None:
    """Mark submissions as `waiting` that may be `sending` and were certainly not sent."""
    batch = Batch(tx, context, await generations.lock_many(tx, ids))
    for id_, generation in [*batch.generations.items()]:
        due_at = schedule.next_submission(1, tx.now, None, context.jitter())
        submit_at = None if generation.is_terminal else due_at
        batch.change(id_, **ingest.submission_changes(generation, "waiting", submit_at))
    await batch.write()
    for id_ in batch.generations:
        tx.after_commit(context.tell, context.signals.submit, id_)


async def _read_due(
    tx: Transaction, choice: generations.Choice, after: str
) -> tuple[list[Generation], int | None, int]:
    """Return due submissions, when the next one is due, and until when upstream is paused."""
    due_at = await generations.next_due(tx, "submit", choice.tenants, choice.without)
    if due_at is None or due_at > tx.now:
        return [], due_at, 0
    due = await generations.list_due(tx, "submit", choice, after)
    return due, due_at, await generations.get_pause(tx)


async def _next_due(
    tx: Transaction, full: Sequence[str], without: Sequence[str]
) -> tuple[int | None, int | None, int]:
    """Return the next due time, that of tenants that are not `full`, and the end of the pause."""
    due_at = await generations.next_due(tx, "submit", (), without)
    of_others = await generations.next_due(tx, "submit", full, without) if full else due_at
    return due_at, of_others, await generations.get_pause(tx)


async def _claim_due(tx: Transaction, ids: Sequence[str]) -> dict[str, Generation]:
    """Mark those submissions that are still due as `sending`; return them by id.

    `deadlines.expire` ends those past their deadline.
    """
    read = await generations.lock_many(tx, ids)
    held = await generations.confirmations_of(tx, ids)
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
