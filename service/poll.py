"""Ask upstream about open generations: confirmations first, within a budget, to the deadline."""

import asyncio
import time
from typing import Any

from service import ingest, log, metrics, schedule
from service.clock import SECOND
from service.context import Context
from service.model import Generation
from service.store import callbacks, generations
from service.store.database import Transaction
from service.store.generations import CONFIRMATION, ROUTINE, Exchange
from service.submit import poll_plan
from service.upstream import wire

_log = log.get()
Reply = wire.Report | wire.Absent | wire.Throttled | wire.Unwell

IN_FLIGHT_MAX = 32
CONFIRM_INTERVAL_MS = SECOND
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
        due = await self._due(room)
        for generation in due:
            self.budget.spend()
            self.start(generation)
        if len(due) == room:
            return len(due), self.budget.next_at(now)
        return len(due), await self.context.database.read(generations.next_poll)

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
        """Wait for every question under way."""
        if self.in_flight:
            await asyncio.gather(*self.in_flight.values(), return_exceptions=True)

    async def _due(self, room: int) -> list[Generation]:
        limit = room + len(self.in_flight)
        found = await self.context.database.read(generations.to_poll, limit)
        return [g for g in found if g.id not in self.in_flight][:room]

    async def _ask(self, generation: Generation) -> None:
        try:
            await ask(self.context, self.budget, generation)
        except Exception as error:  # noqa: BLE001  one question must not end the others
            _log.error("poll.failed", generation_id=generation.id, error=repr(error))
            self.budget.pause(self.context.clock() + SECOND)
        finally:
            self.in_flight.pop(generation.id, None)
            self.context.wakes.poll.set()


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
        detail=_detail(reply),
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
        _log.warning("upstream.unknown_word", word=reply.word, generation_id=generation.id)


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
        if late.task_id is not None:
            due_at = schedule.after_deadline(late.deadline_at, 0, context.jitter())
            await generations.change(tx, late, next_poll_at=due_at, poll_rank=ROUTINE)
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
    due_at = tx.now + BLIND_RETRY_MS if generation.submission == "sending" else None
    await generations.change(tx, generation, next_poll_at=due_at, poll_rank=ROUTINE)


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
    generation = await generations.get(tx, exchange.generation_id)
    assert generation is not None
    changes: dict[str, Any] = {
        "poll_count": generation.poll_count + 1,
        "last_poll_at": exchange.at,
        "trouble_count": generation.trouble_count + 1 if isinstance(reply, wire.Unwell) else 0,
    }
    if isinstance(reply, wire.Throttled):
        wait_ms = schedule.parse_retry_after(reply.retry_after, tx.now)
        budget.pause(tx.now + (5 * SECOND if wait_ms is None else max(wait_ms, SECOND)))
    if isinstance(reply, wire.Report):
        changes["task_id"] = generation.task_id or task_id
        await ingest.ingest(tx, context, ingest.news_of(context, generation, reply))
        latest = await generations.get(tx, generation.id)
        assert latest is not None
        generation = latest
    if generation.status in ("succeeded", "failed"):
        await generations.change(tx, generation, **changes)
        return
    changes.update(_next(context, generation, changes, tx.now, exchange.at))
    await generations.change(tx, generation, **changes)


def _next(
    context: Context, generation: Generation, changes: dict[str, Any], now: int, asked_at: int
) -> dict[str, Any]:
    """When to ask again. A callback that came while upstream was asked keeps its turn."""
    pending = generation.next_poll_at
    if generation.poll_rank == CONFIRMATION and pending is not None and pending > asked_at:
        due_at = max(pending, asked_at + CONFIRM_INTERVAL_MS)
        return {"next_poll_at": due_at, "poll_rank": CONFIRMATION}
    if generation.status == "timed_out":
        late = generation.late_poll_count + 1
        due = schedule.after_deadline(generation.deadline_at, late, context.jitter())
        return {"next_poll_at": due, "poll_rank": ROUTINE, "late_poll_count": late}
    if changes["trouble_count"]:
        due = schedule.after_trouble(changes["trouble_count"], now, context.jitter())
    else:
        due = poll_plan(context, generation, changes["poll_count"], now)
    return {"next_poll_at": min(due, generation.deadline_at), "poll_rank": ROUTINE}


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
