"""Ask upstream about open generations: confirmations first, within a budget, to the deadline."""

import asyncio
import time
from typing import Any

from service.context import Context
from service.delivery import retry
from service.generations import ingest, schedule
from service.generations.submit import poll_plan
from service.model.clock import SECOND
from service.model.generation import Generation
from service.store import callbacks, generations
from service.store.database import Transaction
from service.store.generations import Exchange
from service.telemetry import log, metrics
from service.upstream import wire

_log = log.get()
Reply = wire.Report | wire.Absent | wire.Throttled | wire.Unwell

IN_FLIGHT_MAX = 32
THROTTLED_MS = 5 * SECOND
BLIND_RETRY_MS = 5 * SECOND  # No task id yet: the create answer may still be on its way.


class Budget:
    """A token bucket over the rate towards upstream, and the pause that a 429 asks for."""

    def __init__(self, rate_per_second: float) -> None:
        self.rate = rate_per_second
        self.capacity = max(1.0, rate_per_second)
        self.tokens = self.capacity
        self.updated_at: int | None = None
        self.paused_until = 0

    def available(self, now: int) -> int:
        """How many questions may be asked at `now`."""
        if self.updated_at is not None and now > self.updated_at:
            gained = (now - self.updated_at) * self.rate / 1_000
            self.tokens = min(self.capacity, self.tokens + gained)
        self.updated_at = now
        return 0 if now < self.paused_until else int(self.tokens)

    def spend(self) -> None:
        """Take one token."""
        self.tokens -= 1

    def pause(self, until: int) -> None:
        """Ask nothing before `until`: upstream said that we are too many."""
        self.paused_until = max(self.paused_until, until)

    def next_at(self, now: int) -> int:
        """When a question may be asked again."""
        missing = max(0.0, 1.0 - self.tokens)
        return max(self.paused_until, now + int(missing / self.rate * 1_000) + 1)


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
            await ask(self.context, self.budget, generation)
        except Exception as error:  # noqa: BLE001  one question must not end the others
            _log.error("poll.failed", generation_id=generation.id, error=repr(error))
            self.budget.pause(self.context.clock() + SECOND)
        finally:
            self.in_flight.pop(generation.id, None)
            self.context.signals.poll.set()


async def _look(tx: Transaction, limit: int) -> tuple[list[Generation], int | None]:
    """What is due, and when the next is: at one moment, or what lies between would be missed."""
    return await generations.to_poll(tx, limit), await generations.next_poll(tx)


async def ask(context: Context, budget: Budget, generation: Generation) -> None:
    """Ask upstream about one generation and record the answer."""
    task_id = generation.task_id or await context.database.read(_hinted_task, generation.id)
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
        status_code=reply.status if isinstance(reply, wire.Unwell) else None,
        outcome=_outcome(reply),
        detail=ingest.cleaned(context, _detail(reply)),
    )
    await context.database.write(_record, context, budget, task_id, reply, exchange)
    metrics.polls.add(1, exchange.outcome)
    _log.info(
        "poll",
        generation_id=generation.id,
        outcome=exchange.outcome,
        detail=exchange.detail,
        duration_ms=exchange.duration_ms,
    )
    if isinstance(reply, wire.Report) and not reply.recognised:
        _log.warning("upstream.unknown_word", word=exchange.detail, generation_id=generation.id)


async def expire(tx: Transaction, context: Context, limit: int) -> int:
    """End what has passed its deadline as `timed_out`; how many."""
    expired = await generations.expired(tx, limit)
    for generation in expired:
        error = {
            "code": "deadline_exceeded",
            "message": "No outcome by the deadline. A late result is still taken.",
        }
        news = ingest.News(generation_id=generation.id, status="timed_out", error=error)
        await ingest.ingest(tx, context, news)
        late = await generations.get(tx, generation.id)
        assert late is not None
        if late.submission != "waiting":  # A task may be there, if only a callback names it.
            due_at = schedule.after_deadline(late.deadline_at, 0, context.jitter())
            await generations.change(tx, late, next_poll_at=due_at)
    return len(expired)


async def _hinted_task(tx: Transaction, generation_id: str) -> str | None:
    """The task id that callbacks name, where the create answer was lost.

    Only a hint: what upstream answers to our own key about it is what is published. A task that
    another generation has is none of ours.
    """
    for body in await callbacks.latest_bodies(tx, generation_id):
        report = wire.read_callback(body)
        if report and report.task_id:
            taken = await tx.one("generation_by_task", task_id=report.task_id, id=generation_id)
            if taken is None:
                return report.task_id
    return None


async def _record_blind(tx: Transaction, generation_id: str) -> None:
    """Nothing to ask about yet: come back while the submission is under way, else wait."""
    generation = await generations.get(tx, generation_id)
    if generation is None or generation.task_id is not None:
        return
    if generation.submission == "sending" and not generation.is_terminal:
        await generations.delay_confirmation(tx, generation_id, tx.now + BLIND_RETRY_MS)
    else:
        await generations.confirmed(tx, generation_id, tx.now)
    await generations.change(tx, generation, next_poll_at=None)


async def _record(
    tx: Transaction,
    context: Context,
    budget: Budget,
    task_id: str,
    reply: Reply,
    exchange: Exchange,
) -> None:
    """Keep the exchange, let the news in, and plan the next question, in one transaction."""
    await generations.record(tx, exchange)
    await generations.confirmed(tx, exchange.generation_id, exchange.at)
    generation = await generations.get(tx, exchange.generation_id)
    assert generation is not None
    trouble = isinstance(reply, wire.Unwell | wire.Absent)
    changes: dict[str, Any] = {
        "poll_count": generation.poll_count + 1,
        "last_poll_at": exchange.at,
        "trouble_count": generation.trouble_count + 1 if trouble else 0,
    }
    if isinstance(reply, wire.Report):
        changes["task_id"] = generation.task_id or task_id
        await ingest.ingest(tx, context, ingest.news_of(context, generation, reply))
        latest = await generations.get(tx, generation.id)
        assert latest is not None
        generation = latest
    generation = await generations.change(tx, generation, **changes)
    if isinstance(reply, wire.Throttled):
        budget.pause(tx.now + _wait_ms(reply, tx.now))
    if generation.status not in ("succeeded", "failed"):
        plan = _next(context, generation, reply, tx.now)
        await generations.change(tx, generation, **plan)


def _wait_ms(reply: wire.Throttled | wire.Unwell, now: int) -> int:
    """How long upstream asks to be left alone; a 429 that does not say means a moment."""
    asked_ms = retry.parse_retry_after(reply.retry_after, now)
    if isinstance(reply, wire.Throttled):
        return THROTTLED_MS if asked_ms is None else max(asked_ms, SECOND)
    return asked_ms or 0


def _next(context: Context, generation: Generation, reply: Reply, now: int) -> dict[str, Any]:
    """When to ask again."""
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
        if isinstance(reply, wire.Unwell):
            due = max(due, now + _wait_ms(reply, now))
    else:
        due = poll_plan(context, generation, generation.poll_count, now)
    return {"next_poll_at": min(due, generation.deadline_at)}


def _outcome(reply: Reply) -> str:
    if isinstance(reply, wire.Report):
        return reply.state
    return {wire.Absent: "absent", wire.Throttled: "throttled", wire.Unwell: "unwell"}[type(reply)]


def _detail(reply: Reply) -> str | None:
    if isinstance(reply, wire.Report):
        return reply.error_message if reply.state == "failed" else reply.word
    if isinstance(reply, wire.Unwell):
        return reply.message
    return reply.retry_after if isinstance(reply, wire.Throttled) else None
