"""Poll upstream about generations: confirmations first, within a budget, until the deadline."""

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
PollAnswer = wire.Report | wire.TaskNotFound | wire.Throttled | wire.NoReport

IN_FLIGHT_MAX = 32
THROTTLED_MS = 5 * SECOND
WAIT_MAX_MS = 5 * MINUTE  # A longer pause would delay deadlines.
NO_TASK_RETRY_MS = 5 * SECOND  # The create answer may still be on its way.

TIMED_OUT = Update(
    status="timed_out",
    error={
        "code": "deadline_exceeded",
        "message": "No outcome by the deadline. A late result is still accepted.",
    },
)


class AnsweredPoll(msgspec.Struct, frozen=True):
    """A poll with upstream's answer, parsed and redacted, to be recorded."""

    task_id: str
    answer: PollAnswer
    update: Update | None
    exchange: Exchange


class Poller:
    """The polls under way in this process, and the budget that they share."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.budget = Budget(context.settings.poll_rate_per_second)
        self.in_flight: dict[str, asyncio.Task[None]] = {}

    async def run_due(self, now: int) -> tuple[int, int | None]:
        """Start due polls; return how many, and the next due time (None: wait for the signal)."""
        if len(self.in_flight) >= IN_FLIGHT_MAX:
            return 0, None
        free = min(self.budget.available(now), IN_FLIGHT_MAX - len(self.in_flight))
        if free <= 0:
            return 0, self.budget.next_at(now)
        due, next_at = await self._read_due(free)
        for generation in due:
            self.budget.spend()
            self.start(generation)
        return len(due), self.budget.next_at(now) if len(due) == free else next_at

    async def expire_due(self, now: int) -> int | None:
        """Time out generations past their deadline; return the next deadline."""
        deadline_at = await self.context.database.read(generations.next_deadline)
        if deadline_at is None or deadline_at > now:
            return deadline_at
        await self.context.database.write(expire, self.context, 100)
        return now

    def start(self, generation: Generation) -> asyncio.Task[None]:
        """Poll one generation now, or return its poll that is under way."""
        task = self.in_flight.get(generation.id)
        if task is None:
            task = asyncio.create_task(self._poll(generation), name=f"poll {generation.id}")
            self.in_flight[generation.id] = task
        return task

    async def settle(self) -> None:
        """Wait for every poll under way; cancelling the wait cancels none."""
        if self.in_flight:
            await asyncio.wait(self.in_flight.values())

    async def _read_due(self, free: int) -> tuple[list[Generation], int | None]:
        limit = free + len(self.in_flight)
        due, next_at = await self.context.database.read(_read_due, limit)
        return [g for g in due if g.id not in self.in_flight][:free], next_at

    async def _poll(self, generation: Generation) -> None:
        try:
            await self._ask_and_record(generation)
        except Exception as error:  # noqa: BLE001  one poll must not end the others
            _log.error("poll.failed", generation_id=generation.id, error=repr(error))
            self.budget.pause(self.context.clock() + SECOND)
        finally:
            self.in_flight.pop(generation.id, None)
            self.context.signals.poll.set()

    async def _ask_and_record(self, generation: Generation) -> None:
        """Ask upstream about one generation and record the answer."""
        context = self.context
        database = context.database
        task_id = generation.task_id or await database.read(_callback_task_id, generation)
        if task_id is None:
            await database.write(_plan_without_task, generation.id)
            return
        asked_at, timer_start = context.clock(), time.monotonic()
        model = context.catalogue.get(generation.model)
        path = (model.status_path if model else "/tasks/{task_id}").format(task_id=task_id)
        answer = await context.client.poll(path)
        exchange = Exchange(
            generation_id=generation.id,
            at=asked_at,
            kind="poll",
            duration_ms=round((time.monotonic() - timer_start) * 1_000),
            status_code=answer.status if isinstance(answer, wire.NoReport) else None,
            outcome=_outcome(answer),
            detail=context.redactor.json(_detail(answer)),
        )
        if isinstance(answer, wire.Throttled):
            now = context.clock()
            self.budget.pause(now + _wait_ms(answer, now))
        update = ingest.update_of(context, answer) if isinstance(answer, wire.Report) else None
        poll = AnsweredPoll(task_id, answer, update, exchange)
        await database.write_batched(self._record, poll)
        _log_poll(answer, exchange)

    async def _record(self, tx: Transaction, polls: Sequence[AnsweredPoll]) -> list[None]:
        """Record answered polls: the exchanges, the reports, and when the next polls are due."""
        asked_at = {poll.exchange.generation_id: poll.exchange.at for poll in polls}
        batch = Batch(tx, self.context, await generations.get_many(tx, asked_at))
        exchanges = [
            replace(poll.exchange, number=self._apply(batch, poll))
            for poll in polls
            if poll.exchange.generation_id in batch.generations
        ]
        await generations.record_exchanges(tx, exchanges)
        await generations.complete_confirmations(tx, asked_at)
        await batch.write()
        return [None] * len(polls)

    def _apply(self, batch: Batch, poll: AnsweredPoll) -> int:
        """Change the generation by the answer; return its number of polls."""
        id_, answer = poll.exchange.generation_id, poll.answer
        if poll.update is not None:
            batch.ingest(id_, poll.update)
        generation = batch.generations[id_]
        changes: dict[str, Any] = {
            "poll_count": generation.poll_count + 1,
            "last_poll_at": poll.exchange.at,
            "trouble_count": 0,
        }
        if isinstance(answer, wire.Report):
            changes["task_id"] = generation.task_id or poll.task_id
        elif not isinstance(answer, wire.Throttled):
            changes["trouble_count"] = generation.trouble_count + 1
        generation = batch.change(id_, **changes)
        if poll.exchange.at >= generation.deadline_at and not generation.is_terminal:
            generation = batch.ingest(id_, TIMED_OUT)
        if generation.status not in ("succeeded", "failed"):
            batch.change(id_, **_next_poll(self.context, generation, answer, batch.now))
        return generation.poll_count


async def _read_due(tx: Transaction, limit: int) -> tuple[list[Generation], int | None]:
    """Read due generations and the next due time in one snapshot.

    Two reads could miss a row that becomes due in between.
    """
    return await generations.to_poll(tx, limit), await generations.next_poll(tx)


def _log_poll(answer: PollAnswer, exchange: Exchange) -> None:
    metrics.polls.add(1, exchange.outcome)
    _log.info(
        "poll",
        generation_id=exchange.generation_id,
        outcome=exchange.outcome,
        detail=exchange.detail,
        duration_ms=exchange.duration_ms,
    )
    if isinstance(answer, wire.Report) and not answer.recognised:
        _log.warning(
            "upstream.unknown_word", word=exchange.detail, generation_id=exchange.generation_id
        )


async def expire(tx: Transaction, context: Context, limit: int) -> int:
    """Time out generations that are past their deadline and have no planned poll."""
    expired = await generations.to_expire(tx, limit)
    batch = Batch(tx, context, {generation.id: generation for generation in expired})
    for generation in expired:
        batch.ingest(generation.id, TIMED_OUT)
        # Upstream may have a task, even one whose id only a callback will name.
        if generation.submission != "waiting":
            due_at = schedule.poll_after_deadline(generation.deadline_at, 0, context.jitter())
            batch.change(generation.id, next_poll_at=due_at)
    await batch.write()
    return len(expired)


async def _callback_task_id(tx: Transaction, generation: Generation) -> str | None:
    """Return the task id that callbacks name, for a generation whose create answer was lost.

    It is only a hint: upstream is polled about the task. Ids of other generations' tasks do not
    count.
    """
    for body in await callbacks.latest_bodies(tx, generation.tenant, generation.id):
        report = wire.read_callback(body)
        if (
            report
            and report.task_id
            and not await generations.another_has_task(tx, report.task_id, generation.id)
        ):
            return report.task_id
    return None


async def _plan_without_task(tx: Transaction, generation_id: str) -> None:
    """Plan the next poll without a task id: after the submission, or after another callback."""
    generation = await generations.get(tx, generation_id)
    if generation is None or generation.task_id is not None:
        return
    if generation.submission == "sending" and not generation.is_terminal:
        await generations.delay_confirmation(tx, generation_id, tx.now + NO_TASK_RETRY_MS)
    else:
        await generations.complete_confirmations(tx, {generation_id: tx.now})
    await generations.update(tx, [(generation, replace(generation, next_poll_at=None))])


def _wait_ms(answer: wire.Throttled | wire.NoReport, now: int) -> int:
    """Return the delay that upstream asks for; THROTTLED_MS for a 429 without one."""
    wait_ms = retry.parse_retry_after(answer.retry_after, now)
    if isinstance(answer, wire.Throttled):
        wait_ms = THROTTLED_MS if wait_ms is None else max(wait_ms, SECOND)
    return min(wait_ms or 0, WAIT_MAX_MS)


def _next_poll(
    context: Context, generation: Generation, answer: PollAnswer, now: int
) -> dict[str, Any]:
    """Return the changes that plan the next poll."""
    if isinstance(answer, wire.Throttled):  # Repeat the poll right after the pause.
        return {"next_poll_at": now + _wait_ms(answer, now)}
    if generation.status == "timed_out":
        # Count planned polls only, so that a client's refresh does not use them up.
        planned_at = generation.next_poll_at
        was_planned = planned_at is not None and planned_at <= (generation.last_poll_at or now)
        count = generation.late_poll_count + was_planned
        late_at = schedule.poll_after_deadline(generation.deadline_at, count, context.jitter())
        return {"next_poll_at": late_at, "late_poll_count": count}
    if generation.trouble_count:
        due_at = schedule.poll_after_trouble(generation.trouble_count, now, context.jitter())
        if isinstance(answer, wire.NoReport):
            due_at = max(due_at, now + _wait_ms(answer, now))
    else:
        due_at = schedule.plan_poll(context, generation, generation.poll_count, now)
    return {"next_poll_at": min(due_at, generation.deadline_at)}


def _outcome(answer: PollAnswer) -> str:
    if isinstance(answer, wire.Report):
        return answer.state
    return {
        wire.TaskNotFound: "absent",
        wire.Throttled: "throttled",
        wire.NoReport: "unwell",
    }[type(answer)]


def _detail(answer: PollAnswer) -> str | None:
    if isinstance(answer, wire.Report):
        return answer.error_message if answer.state == "failed" else answer.word
    if isinstance(answer, wire.NoReport):
        return answer.message
    return answer.retry_after if isinstance(answer, wire.Throttled) else None
