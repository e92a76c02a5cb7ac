"""Poll upstream about generations: confirmations first, within a budget, until the deadline."""

import asyncio
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from msgspec.structs import replace

from service.context import Context
from service.delivery import retry
from service.generations import ingest, judge, schedule
from service.generations.ingest import Batch, Reply, Update
from service.generations.sightings import Sightings
from service.model.clock import MINUTE, SECOND
from service.model.generation import Generation
from service.store import callbacks, generations, rows
from service.store.database import Transaction
from service.telemetry import log, metrics
from service.upstream import wire

_log = log.get()

IN_FLIGHT_MAX = 32
EXPIRED_MAX = 100
THROTTLED_MS = 5 * SECOND
WAIT_MAX_MS = 5 * MINUTE  # A longer pause would delay deadlines.
POSSIBLE_POLL_MS = 15 * SECOND  # After an answer that proves an outcome only when it is repeated.
NO_TASK_RETRY_MS = 5 * SECOND  # The create answer may still be on its way.

DEADLINE_MESSAGE = "No outcome by the deadline. A late result is still accepted."
TIMED_OUT = Update(
    status="timed_out", error={"code": "deadline_exceeded", "message": DEADLINE_MESSAGE}
)


class Budget:
    """A token bucket with a token for each poll, and the pause that a 429 asks for."""

    def __init__(self, rate_per_second: float) -> None:
        self.rate = rate_per_second
        self.capacity = max(1.0, rate_per_second)
        self.tokens = self.capacity
        self.updated_at = 0
        self.paused_until = 0

    def available(self, now: int) -> int:
        """Return how many polls may be made at `now`."""
        refill = max(now - self.updated_at, 0) * self.rate / 1_000
        self.tokens = min(self.capacity, self.tokens + refill)
        self.updated_at = now
        return 0 if now < self.paused_until else int(self.tokens)

    def spend(self) -> None:
        """Take one token."""
        self.tokens -= 1

    def pause(self, until: int) -> None:
        """Allow no poll before `until`: upstream answered 429."""
        self.paused_until = max(self.paused_until, until)

    def next_at(self, now: int) -> int:
        """Return when the next poll may be made."""
        missing = max(0.0, 1.0 - self.tokens)
        return max(self.paused_until, now + int(missing / self.rate * 1_000) + 1)


class Poller:
    """The polls under way in this process, and the budget that they share."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.budget = Budget(context.settings.poll_rate_per_second)
        self.in_flight: dict[str, asyncio.Task[None]] = {}
        self.sightings = Sightings()

    async def run_due(self, now: int) -> tuple[int, int | None]:
        """Start due polls; return how many, and the next due time (None: wait for the signal)."""
        room = IN_FLIGHT_MAX - len(self.in_flight)
        free = min(self.budget.available(now), room)
        if free <= 0:
            return 0, self.budget.next_at(now) if room > 0 else None
        limit = free + len(self.in_flight)
        due, next_at = await self.context.database.read(_read_due, limit)
        due = [generation for generation in due if generation.id not in self.in_flight][:free]
        for generation in due:
            self.budget.spend()
            self.start(generation)
        return len(due), self.budget.next_at(now) if len(due) == free else next_at

    async def expire_due(self, now: int) -> int | None:
        """Time out generations past their deadline; return the next deadline."""
        deadline_at = await self.context.database.read(generations.next_due, "expire")
        if deadline_at is None or deadline_at > now:
            return deadline_at
        await self.context.database.write(expire, self.context)
        return now

    def start(self, generation: Generation) -> asyncio.Task[None]:
        """Poll one generation now, or return its poll that is under way."""
        id_ = generation.id
        if id_ not in self.in_flight:
            self.in_flight[id_] = asyncio.create_task(self._poll(generation), name=f"poll {id_}")
        return self.in_flight[id_]

    async def settle(self) -> None:
        """Wait for every poll under way; cancelling the wait cancels none."""
        if self.in_flight:
            await asyncio.wait(self.in_flight.values())

    async def _poll(self, generation: Generation) -> None:
        context = self.context
        try:
            task_id = generation.task_id
            task_id = task_id or await context.database.read(_callback_task_id, generation)
            if task_id is None:
                await context.database.write(_plan_without_task, generation.id)
                return
            model = context.catalogue.get(generation.model)
            # Ids are opaque: what they hold is encoded, so that it changes no path.
            encoded_id = quote(task_id, safe="")
            path = (model.status_path if model else "/tasks/{task_id}").format(task_id=encoded_id)
            reply = await ingest.ask(context, generation.id, context.client.poll(path), task_id)
            reply = await judge.judge(context, self.sightings, generation, reply)
            if reply.exchange.outcome == "throttled":
                now = context.clock()
                self.budget.pause(now + _wait_ms(reply.answer, now))
            await context.database.write_batched(self._record, reply)
            ingest.announce_exchange(metrics.polls, reply.exchange)
            if isinstance(reply.answer, wire.Report) and not reply.answer.recognised:
                ingest.log_unknown_word(reply.exchange.detail, generation.id)
        except Exception as error:  # noqa: BLE001  one poll must not end the others
            _log.error("poll.failed", generation_id=generation.id, error=repr(error))
            self.budget.pause(context.clock() + SECOND)
        finally:
            self.in_flight.pop(generation.id, None)
            context.signals.poll.set()

    async def _record(self, tx: Transaction, replies: Sequence[Reply]) -> list[None]:
        """Record answered polls: the exchanges, the reports, and when the next polls are due."""
        asked_at = {reply.exchange.generation_id: reply.exchange.at for reply in replies}
        batch = Batch(tx, self.context, await generations.get_many(tx, asked_at))
        exchanges = [
            replace(reply.exchange, number=self._apply(batch, reply))
            for reply in replies
            if reply.exchange.generation_id in batch.generations
        ]
        await generations.record_exchanges(tx, exchanges)
        await generations.complete_confirmations(tx, asked_at)
        await batch.write()
        return [None] * len(replies)

    def _apply(self, batch: Batch, reply: Reply) -> int:
        """Change the generation by the answer; return its number of polls."""
        id_, asked_at = reply.exchange.generation_id, reply.exchange.at
        if reply.update is not None:
            batch.ingest(id_, reply.update)
        generation = batch.generations[id_]
        in_trouble = reply.exchange.outcome in ("absent", "unwell", "other_task")
        generation = batch.change(
            id_,
            task_id=generation.task_id or (reply.task_id if reply.update else None),
            poll_count=generation.poll_count + 1,
            last_poll_at=asked_at,
            trouble_count=generation.trouble_count + 1 if in_trouble else 0,
        )
        if asked_at >= generation.deadline_at and not generation.is_terminal:
            generation = batch.ingest(id_, _timed_out(reply))
        if generation.status not in ("succeeded", "failed"):
            batch.change(id_, **_next_poll(self.context, generation, reply.answer, batch.now))
        return generation.poll_count


def _timed_out(reply: Reply) -> Update:
    """Return the end by the deadline, with the last that upstream said as its reason."""
    answer = reply.answer
    is_unknown = isinstance(answer, wire.Report) and (answer.possible or not answer.recognised)
    code = "unknown_status" if is_unknown else "deadline_exceeded"
    reason = f" Upstream last said: {reply.exchange.detail}" if reply.exchange.detail else ""
    return replace(TIMED_OUT, error={"code": code, "message": DEADLINE_MESSAGE + reason})


async def _read_due(tx: Transaction, limit: int) -> tuple[list[Generation], int | None]:
    """Read due generations and the next due time in one snapshot: two could miss a row."""
    return await generations.list_due(tx, "poll", limit), await generations.next_due(tx, "poll")


async def expire(tx: Transaction, context: Context) -> None:
    """Time out generations that are past their deadline and have no planned poll."""
    expired = await generations.list_due(tx, "expire", EXPIRED_MAX)
    batch = Batch(tx, context, {generation.id: generation for generation in expired})
    for generation in expired:
        batch.ingest(generation.id, TIMED_OUT)
        # Upstream may have a task, even one whose id only a callback will name.
        if generation.submission != "waiting":
            due_at = schedule.poll_after_deadline(generation.deadline_at, 0, context.jitter())
            batch.change(generation.id, next_poll_at=due_at)
    await batch.write()


async def _callback_task_id(tx: Transaction, generation: Generation) -> str | None:
    """Return the task id that callbacks name; ids of other generations' tasks do not count."""
    for body in await callbacks.latest_bodies(tx, generation.tenant, generation.id):
        report = wire.read_callback(body)
        task_id = report.task_id if report else None
        if task_id and not await generations.another_has_task(tx, task_id, generation.id):
            return task_id
    return None


async def _plan_without_task(tx: Transaction, generation_id: str) -> None:
    """Plan the next poll without a task id: after the submission, or after another callback."""
    generation = await rows.read_by_id(tx, Generation, generation_id)
    if generation is None or generation.task_id is not None:
        return
    if generation.submission == "sending" and not generation.is_terminal:
        await generations.delay_confirmation(tx, generation_id, tx.now + NO_TASK_RETRY_MS)
    else:
        await generations.complete_confirmations(tx, {generation_id: tx.now})
    await generations.update(tx, [(generation, replace(generation, next_poll_at=None))])


def _wait_ms(answer: wire.Answer, now: int) -> int:
    """Return the delay that upstream asks for; THROTTLED_MS for a 429 without one."""
    if isinstance(answer, wire.Report):
        return 0
    wait_ms = retry.parse_retry_after(answer.retry_after, now)
    if answer.outcome == "throttled":
        wait_ms = THROTTLED_MS if wait_ms is None else max(wait_ms, SECOND)
    return min(wait_ms or 0, WAIT_MAX_MS)


def _next_poll(
    context: Context, generation: Generation, answer: wire.Answer, now: int
) -> dict[str, Any]:
    """Return the changes that plan the next poll."""
    wait_ms = _wait_ms(answer, now)
    if isinstance(answer, wire.NoReport) and answer.outcome == "throttled":
        return {"next_poll_at": now + wait_ms}  # Repeat the poll right after the pause.
    if generation.status == "timed_out":
        # Count planned polls only, so that a client's refresh does not use them up.
        planned_at = generation.next_poll_at
        was_planned = planned_at is not None and planned_at <= (generation.last_poll_at or now)
        count = generation.late_poll_count + was_planned
        late_at = schedule.poll_after_deadline(generation.deadline_at, count, context.jitter())
        return {"next_poll_at": late_at, "late_poll_count": count}
    if generation.trouble_count:
        due_at = schedule.poll_after_trouble(generation.trouble_count, now, context.jitter())
        due_at = max(due_at, now + wait_ms)
    else:
        due_at = schedule.next_poll(context, generation, generation.poll_count, now)
        if isinstance(answer, wire.Report) and answer.possible:
            due_at = min(due_at, now + POSSIBLE_POLL_MS)
    return {"next_poll_at": min(due_at, generation.deadline_at)}
