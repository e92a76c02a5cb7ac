"""Ask upstream about open generations: confirmations first, within a budget, to the deadline."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from service.context import Context
from service.delivery import retry
from service.generations import ingest, schedule
from service.generations.budget import Budget
from service.generations.ingest import Batch, Update
from service.model.clock import MINUTE, SECOND
from service.model.generation import Generation
from service.store import callbacks, generations
from service.store.database import Transaction
from service.store.generations import Exchange
from service.telemetry import log, metrics
from service.upstream import wire

_log = log.get()
Reply = wire.Report | wire.TaskNotFound | wire.Throttled | wire.UpstreamTrouble

IN_FLIGHT_MAX = 32
THROTTLED_MS = 5 * SECOND
WAIT_MAX_MS = 5 * MINUTE  # A longer pause would hold up deadlines.
BLIND_RETRY_MS = 5 * SECOND  # No task id yet: the create answer may still be on its way.


TIMED_OUT = Update(
    status="timed_out",
    error={
        "code": "deadline_exceeded",
        "message": "No outcome by the deadline. A late result is still taken.",
    },
)


class Answered(msgspec.Struct, frozen=True):
    """Upstream's answer to one question, read and cut of secrets before it is recorded."""

    task_id: str
    reply: Reply
    update: Update | None
    exchange: Exchange


class Poller:
    """Questions under way in this process, and the budget that they share."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.budget = Budget(context.settings.poll_rate_per_second)
        self.in_flight: dict[str, asyncio.Task[None]] = {}

    async def run_due(self, now: int) -> tuple[int, int | None]:
        """Start asking what is due; how many, and when to come again (None: when woken)."""
        if len(self.in_flight) >= IN_FLIGHT_MAX:
            return 0, None
        room = min(self.budget.available(now), IN_FLIGHT_MAX - len(self.in_flight))
        if room <= 0:
            return 0, self.budget.next_at(now)
        due, next_at = await self._due(room)
        for generation in due:
            self.budget.spend()
            self.start(generation)
        return len(due), self.budget.next_at(now) if len(due) == room else next_at

    async def expire_due(self, now: int) -> tuple[int, int | None]:
        """End what has passed its deadline; how many, and when the next one does."""
        deadline_at = await self.context.database.read(generations.next_deadline)
        if deadline_at is None or deadline_at > now:
            return 0, deadline_at
        return await self.context.database.write(expire, self.context, 100), now

    def start(self, generation: Generation) -> asyncio.Task[None]:
        """Ask about one generation now; a question under way is shared."""
        task = self.in_flight.get(generation.id)
        if task is None:
            task = asyncio.create_task(self._ask(generation), name=f"poll {generation.id}")
            self.in_flight[generation.id] = task
        return task

    async def settle(self) -> None:
        """Wait for every question under way; who gives up waiting cancels none."""
        if self.in_flight:
            await asyncio.wait(self.in_flight.values())

    async def _due(self, room: int) -> tuple[list[Generation], int | None]:
        limit = room + len(self.in_flight)
        found, next_at = await self.context.database.read(_look, limit)
        return [g for g in found if g.id not in self.in_flight][:room], next_at

    async def _ask(self, generation: Generation) -> None:
        try:
            await self._ask_and_record(generation)
        except Exception as error:  # noqa: BLE001  one question must not end the others
            _log.error("poll.failed", generation_id=generation.id, error=repr(error))
            self.budget.pause(self.context.clock() + SECOND)
        finally:
            self.in_flight.pop(generation.id, None)
            self.context.signals.poll.set()

    async def _ask_and_record(self, generation: Generation) -> None:
        """Ask upstream about one generation and record the answer."""
        context = self.context
        task_id = generation.task_id or await context.database.read(_hinted_task, generation)
        if task_id is None:
            await context.database.write(_record_blind, generation.id)
            return
        asked_at, began = context.clock(), time.monotonic()
        model = context.catalogue.get(generation.model)
        path = (model.status_path if model else "/tasks/{task_id}").format(task_id=task_id)
        reply = await context.client.ask(path)
        exchange = Exchange(
            generation_id=generation.id,
            at=asked_at,
            kind="poll",
            duration_ms=round((time.monotonic() - began) * 1_000),
            status_code=reply.status if isinstance(reply, wire.UpstreamTrouble) else None,
            outcome=_outcome(reply),
            detail=context.redactor.json(_detail(reply)),
        )
        if isinstance(reply, wire.Throttled):
            now = context.clock()
            self.budget.pause(now + _wait_ms(reply, now))
        update = ingest.update_of(context, reply) if isinstance(reply, wire.Report) else None
        answered = Answered(task_id, reply, update, exchange)
        await context.database.write_batched(self._record, answered)
        _log_poll(reply, exchange)

    async def _record(self, tx: Transaction, answers: Sequence[Answered]) -> list[None]:
        """Record answers: the exchanges, what they report, and when upstream is asked next."""
        asked_at = {one.exchange.generation_id: one.exchange.at for one in answers}
        batch = Batch(tx, self.context, await generations.get_many(tx, asked_at))
        exchanges = [
            replace(one.exchange, number=self._apply(batch, one))
            for one in answers
            if one.exchange.generation_id in batch.generations
        ]
        await generations.record(tx, exchanges)
        await generations.confirmed(tx, asked_at)
        await batch.write()
        return [None] * len(answers)

    def _apply(self, batch: Batch, answered: Answered) -> int:
        """Change the generation as an answer says; return how many polls it has had."""
        id_, reply = answered.exchange.generation_id, answered.reply
        if answered.update is not None:
            batch.ingest(id_, answered.update)
        generation = batch.generations[id_]
        changes: dict[str, Any] = {
            "poll_count": generation.poll_count + 1,
            "last_poll_at": answered.exchange.at,
            "trouble_count": 0,
        }
        if isinstance(reply, wire.Report):
            changes["task_id"] = generation.task_id or answered.task_id
        elif not isinstance(reply, wire.Throttled):
            changes["trouble_count"] = generation.trouble_count + 1
        generation = batch.change(id_, **changes)
        if answered.exchange.at >= generation.deadline_at and not generation.is_terminal:
            generation = batch.ingest(id_, TIMED_OUT)
        if generation.status not in ("succeeded", "failed"):
            batch.change(id_, **_next(self.context, generation, reply, batch.now))
        return generation.poll_count


async def _look(tx: Transaction, limit: int) -> tuple[list[Generation], int | None]:
    """What is due, and when the next is: at one moment, or what lies between would be missed."""
    return await generations.to_poll(tx, limit), await generations.next_poll(tx)


def _log_poll(reply: Reply, exchange: Exchange) -> None:
    metrics.polls.add(1, exchange.outcome)
    _log.info(
        "poll",
        generation_id=exchange.generation_id,
        outcome=exchange.outcome,
        detail=exchange.detail,
        duration_ms=exchange.duration_ms,
    )
    if isinstance(reply, wire.Report) and not reply.recognised:
        _log.warning(
            "upstream.unknown_word", word=exchange.detail, generation_id=exchange.generation_id
        )


async def expire(tx: Transaction, context: Context, limit: int) -> int:
    """End generations as `timed_out` that passed their deadline with no poll planned."""
    expired = await generations.expired(tx, limit)
    batch = Batch(tx, context, {generation.id: generation for generation in expired})
    for generation in expired:
        late = batch.ingest(generation.id, TIMED_OUT)
        if late.submission != "waiting":  # Upstream may have it, if only a callback names it.
            due_at = schedule.after_deadline(late.deadline_at, 0, context.jitter())
            batch.change(late.id, next_poll_at=due_at)
    await batch.write()
    return len(expired)


async def _hinted_task(tx: Transaction, generation: Generation) -> str | None:
    """Return the task id that callbacks name, if the create answer was lost.

    It is only a hint: what upstream answers to our own key about it is what is published. A task
    that another generation has is not this one's.
    """
    for body in await callbacks.latest_bodies(tx, generation.tenant, generation.id):
        report = wire.read_callback(body)
        if (
            report
            and report.task_id
            and not await generations.has_task(tx, report.task_id, generation.id)
        ):
            return report.task_id
    return None


async def _record_blind(tx: Transaction, generation_id: str) -> None:
    """Plan what to do without a task id: wait for the submission, or for another callback."""
    generation = await generations.get(tx, generation_id)
    if generation is None or generation.task_id is not None:
        return
    if generation.submission == "sending" and not generation.is_terminal:
        await generations.delay_confirmation(tx, generation_id, tx.now + BLIND_RETRY_MS)
    else:
        await generations.confirmed(tx, {generation_id: tx.now})
    await generations.update(tx, [(generation, replace(generation, next_poll_at=None))])


def _wait_ms(reply: wire.Throttled | wire.UpstreamTrouble, now: int) -> int:
    """Return the wait that upstream asks for, THROTTLED_MS for a 429 that names none."""
    wait_ms = retry.parse_retry_after(reply.retry_after, now)
    if isinstance(reply, wire.Throttled):
        wait_ms = THROTTLED_MS if wait_ms is None else max(wait_ms, SECOND)
    return min(wait_ms or 0, WAIT_MAX_MS)


def _next(context: Context, generation: Generation, reply: Reply, now: int) -> dict[str, Any]:
    """Return the changes that plan the next poll."""
    if isinstance(reply, wire.Throttled):  # Not an answer: it keeps its place behind the pause.
        return {"next_poll_at": now + _wait_ms(reply, now)}
    if generation.status == "timed_out":
        # Only the planned late polls count: who refreshes does not use them up.
        pending = generation.next_poll_at
        planned = pending is not None and pending <= (generation.last_poll_at or now)
        late = generation.late_poll_count + planned
        due = schedule.after_deadline(generation.deadline_at, late, context.jitter())
        return {"next_poll_at": due, "late_poll_count": late}
    if generation.trouble_count:
        due = schedule.after_trouble(generation.trouble_count, now, context.jitter())
        if isinstance(reply, wire.UpstreamTrouble):
            due = max(due, now + _wait_ms(reply, now))
    else:
        due = schedule.plan_poll(context, generation, generation.poll_count, now)
    return {"next_poll_at": min(due, generation.deadline_at)}


def _outcome(reply: Reply) -> str:
    if isinstance(reply, wire.Report):
        return reply.state
    return {
        wire.TaskNotFound: "absent",
        wire.Throttled: "throttled",
        wire.UpstreamTrouble: "unwell",
    }[type(reply)]


def _detail(reply: Reply) -> str | None:
    if isinstance(reply, wire.Report):
        return reply.error_message if reply.state == "failed" else reply.word
    if isinstance(reply, wire.UpstreamTrouble):
        return reply.message
    return reply.retry_after if isinstance(reply, wire.Throttled) else None
