"""Poll upstream about generations: within a budget with shares, until the deadline."""

import asyncio
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from msgspec.structs import replace

from service.context import Context
from service.generations import budget, deadlines, hints, ingest, judge, schedule
from service.generations.budget import Budget, Places, tenant_owner
from service.generations.ingest import Batch, Reply
from service.generations.refreshes import Refreshes
from service.generations.sightings import Sightings
from service.generations.stuck import LOOK_AGAIN_MS, Stuck
from service.model.clock import SECOND
from service.model.errors import StorageError
from service.model.generation import Generation
from service.store import generations, rows
from service.store.database import Transaction
from service.telemetry import log, metrics
from service.upstream import wire
from service.upstream.catalogue import STATUS_PATH

_log = log.get()

IN_FLIGHT_MAX = 32
POSSIBLE_POLL_MS = 15 * SECOND  # After an answer that proves an outcome only when it is repeated.
RECORD_MS = SECOND  # For the answer to a submission to be recorded.


class Poller:
    """The polls under way in this process, and the budget that they share."""

    def __init__(self, context: Context) -> None:
        self.context = context
        rate = context.settings.poll_rate_per_second
        self.budget = Budget(rate)
        self.refreshes = Refreshes(rate, IN_FLIGHT_MAX)
        self.stuck = Stuck()
        self.places = Places(IN_FLIGHT_MAX)
        self.in_flight: dict[str, asyncio.Task[None]] = {}
        self._has_waiting = False
        self._hints_first = True
        self.sightings = Sightings()

    async def load_pause(self) -> None:
        """Keep to the pause that upstream asked for before this process started."""
        paused_until = await self.context.database.read(generations.get_pause)
        self.budget.note(paused_until, self.context.clock(), budget.pause_max_ms(self.context))

    async def run_due(self, now: int) -> tuple[int, int | None]:
        """Start due polls; return how many, and the next due time (None: wait for the signal)."""
        room = self.places.free
        free = min(self.budget.available(now) or self.budget.may_probe(now), room)
        if free <= 0:
            self._has_waiting = True  # As far as is known.
            return 0, self._next_token_at(now) if room > 0 else None
        models, models_only = self._models_without_place()
        choice = generations.Choice(
            limit=free + len(self.in_flight),
            models=models,
            models_only=models_only,
            tenants=self.places.full("tenant "),
            without=self.stuck.ids(now),
        )
        due, polls, next_at, paused_until = await self.context.database.read(_read_due, choice)
        self.stuck.put_all(choice.unreadable, now)
        if self.budget.note(paused_until, now, budget.pause_max_ms(self.context)):
            # Upstream asked another process for it, or a submission.
            return 0, self._next_token_at(now)
        started = 0
        for generation in self._shared(due, polls, free):
            if started < free and self._start(generation) is not None:
                self.budget.spend()
                started += 1
        self._has_waiting = started == free
        if started == free:
            return started, self._next_token_at(now)
        if choice.unreadable:
            return started, now + LOOK_AGAIN_MS
        return started, self.stuck.next_at(next_at, now)

    def _next_token_at(self, now: int) -> int:
        """Return when the next poll may be made, a probe during a pause included."""
        next_at, probe_at = self.budget.next_at(now), self.budget.probe_at
        return probe_at if now < probe_at < self.budget.paused_until else next_at

    def _models_without_place(self) -> tuple[list[str], bool]:
        """Return the models whose route has no further place, or (True) the only ones that have.

        A model that is not in the catalogue has the usual route. Nobody can list all of these.
        """
        full = set(self.places.full("route "))
        models_only = STATUS_PATH in full
        paths = {id_: model.status_path for id_, model in self.context.catalogue.items()}
        models = [id_ for id_, path in paths.items() if (path in full) != models_only]
        return models if full else [], models_only

    def _shared(
        self, due: Sequence[Generation], polls: Sequence[Generation], free: int
    ) -> list[Generation]:
        """Return confirmations and polls in order: while both wait, half of the tokens for each."""
        due = [generation for generation in due if generation.id not in self.in_flight]
        ids = self.in_flight.keys() | {generation.id for generation in due}
        polls = [generation for generation in polls if generation.id not in ids]
        share = free
        if due and polls:
            share = free // 2 + (free % 2 if self._hints_first else 0)
            self._hints_first = not self._hints_first if free % 2 else self._hints_first
        return [*due[:share], *polls, *due[share:]]

    async def expire_due(self, now: int) -> int | None:
        """Time out generations past their deadline; return the next deadline."""
        return await deadlines.expire_due(self.context, self.stuck, now)

    def refresh(self, generation: Generation, now: int) -> asyncio.Task[None] | None:
        """Poll a generation for a client, or return its poll that is under way.

        None: it was polled within the last second, or its tenant has no share or place for it now.
        """
        id_, refreshes = generation.id, self.refreshes
        if id_ in self.in_flight:
            return self.in_flight[id_]
        # The generation may have been read before a poll of this second was recorded.
        last_poll_at = refreshes.last_at(id_, now) or generation.last_poll_at
        if last_poll_at is not None and now - last_poll_at < SECOND:
            return None
        has_share = refreshes.has_share(generation.tenant, now)
        if self.budget.available(now) < 1 or not (has_share or self._has_unused):
            return None
        if not refreshes.places.take(generation.tenant):
            return None
        task = self._start(generation)
        if task is None:
            refreshes.places.give_back(generation.tenant)
            return None
        task.add_done_callback(lambda _task: refreshes.places.give_back(generation.tenant))
        self.budget.spend()
        refreshes.note(id_, generation.tenant, now, has_share=has_share)
        return task

    @property
    def _has_unused(self) -> bool:
        """Whether nobody waits for a token that is left, as far as the last look at the rows."""
        return self.budget.is_unused and not self._has_waiting

    def _start(self, generation: Generation) -> asyncio.Task[None] | None:
        """Poll one generation now, unless its tenant or its route has no place."""
        id_ = generation.id
        route = budget.status_path(self.context.catalogue, generation)
        owners = (f"route {route}", tenant_owner(generation.tenant))
        if id_ in self.in_flight or not self.places.take(*owners):
            return None
        task = asyncio.create_task(self._poll(generation), name=f"poll {id_}")
        task.add_done_callback(lambda _task: self._end(id_, *owners))
        self.in_flight[id_] = task
        return task

    def _end(self, id_: str, *owners: str) -> None:
        self.in_flight.pop(id_, None)
        self.places.give_back(*owners)
        self.context.signals.poll.set()

    async def settle(self) -> None:
        """Wait for every poll under way; cancelling the wait cancels none."""
        if self.in_flight:
            await asyncio.wait(self.in_flight.values())

    async def _poll(self, generation: Generation) -> None:
        context = self.context
        try:
            await self._ask(generation)
        except StorageError as error:
            _log.error("poll.failed", generation_id=generation.id, error=repr(error))
            self.budget.pause(context.clock() + SECOND)
        except Exception as error:  # noqa: BLE001  one poll must not end the others
            _log.error("poll.failed", generation_id=generation.id, error=repr(error))
            await deadlines.move_on_or_pass(context, self.stuck, generation, context.clock())

    async def _ask(self, generation: Generation) -> None:
        context = self.context
        task_id = generation.task_id
        if task_id is None:
            task_id = await hints.task_id_of_callbacks(context, generation)
            if generation.submission == "sending" and not generation.is_poll_due(context.clock()):
                await context.database.write(_plan_after_submission, context, generation.id)
                return
        if task_id is None:
            await context.database.write(_plan_without_task, context, generation.id)
            return
        # Ids are opaque: what they hold is encoded, so that it changes no path.
        encoded_id = quote(task_id, safe="")
        path = budget.status_path(context.catalogue, generation).format(task_id=encoded_id)
        reply = await ingest.ask(
            context, generation.id, context.client.poll(path, task_id, generation.input), task_id
        )
        reply = await judge.judge(context, self.sightings, generation, reply)
        if reply.exchange.outcome == "throttled":
            now = context.clock()
            self.budget.pause(now + budget.wait_ms(context, reply.answer, now))
        await context.database.write_batched(self._record, reply)
        ingest.announce_exchange(metrics.polls, reply.exchange)
        if isinstance(reply.answer, wire.Report) and not reply.answer.recognised:
            ingest.log_unknown_word(reply.exchange.detail, generation.id)

    async def _record(self, tx: Transaction, replies: Sequence[Reply]) -> list[None]:
        """Record answered polls: the exchanges, the reports, and when the next polls are due."""
        by_id = {reply.exchange.generation_id: reply for reply in replies}
        batch = Batch(tx, self.context, await generations.get_polled(tx, by_id))
        exchanges: list[generations.Exchange] = []
        for id_ in filter(batch.generations.__contains__, [*by_id]):
            by_id[id_] = reply = await judge.judge_recorded(tx, self.context, batch, by_id[id_])
            exchanges.append(replace(reply.exchange, number=self._apply(batch, reply)))
        await generations.record_exchanges(tx, exchanges)
        judge.share_outcomes(batch, by_id)
        await hints.use_hints(tx, self.context, batch, by_id)
        if throttled := [r.answer for r in replies if r.exchange.outcome == "throttled"]:
            wait_ms = max(budget.wait_ms(self.context, answer, tx.now) for answer in throttled)
            await generations.put_pause(tx, tx.now + wait_ms)
        await batch.write()
        if any(generation.submit_at is not None for generation in batch.generations.values()):
            tx.after_commit(self.context.signals.submit.set)  # A hint may have held it.
        return [None] * len(replies)

    def _apply(self, batch: Batch, reply: Reply) -> int:
        """Change the generation by the answer; return its number of polls."""
        id_, asked_at = reply.exchange.generation_id, reply.exchange.at
        before = batch.generations[id_]
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
        if not generation.is_terminal and (end := deadlines.end_of(generation, reply)):
            generation = batch.ingest(id_, end)
        if generation.status not in ("succeeded", "failed"):
            planned = _next_poll(self.context, before, generation, reply, batch.now)
            if judge.awaits_files(reply.answer) and generation.status != "timed_out":
                due_at = self.sightings.files_due_at(id_, asked_at) or batch.now + POSSIBLE_POLL_MS
                planned = {"next_poll_at": min(due_at, generation.deadline_at)}
            batch.change(id_, **planned)
        return generation.poll_count


async def _read_due(
    tx: Transaction, choice: generations.Choice
) -> tuple[list[Generation], list[Generation], int | None, int]:
    """Read due confirmations, due polls, the next due time and the pause in one snapshot.

    Two snapshots could miss a row. Overdue polls come before planned ones.
    """
    confirmations = await generations.list_confirmations(tx, choice)
    polls = await generations.list_polls(tx, choice)
    next_at = await generations.next_due(tx, "poll")
    return confirmations, polls, next_at, await generations.get_pause(tx)


async def _plan_after_submission(tx: Transaction, context: Context, generation_id: str) -> None:
    """Ask about the task that a callback names once the submission cannot be under way any more.

    Until then a callback decides nothing: upstream's answer to the submission says which task it
    is. That answer brings the question at once.
    """
    generation = await rows.read_by_id(tx, Generation, generation_id)
    if generation is None or generation.submission != "sending":
        return
    due_at = tx.now + round(context.settings.upstream_timeout_seconds * SECOND) + RECORD_MS
    due_at = min(due_at, generation.next_poll_at or due_at)
    await generations.delay_confirmation(tx, generation_id, due_at)
    await generations.update(tx, [(generation, replace(generation, next_poll_at=due_at))])


async def _plan_without_task(tx: Transaction, context: Context, generation_id: str) -> None:
    """Plan the next poll without a task id: after another callback.

    Without a callback a client asked: a submission that waits goes on waiting.
    """
    generation = await rows.read_by_id(tx, Generation, generation_id)
    if generation is None or generation.task_id is not None:
        return
    changes: dict[str, Any] = {"next_poll_at": None}
    due_times = await generations.confirmations_of(tx, [generation_id])
    if due_times:
        # A callback came, and it names no task that could be asked about: it is not certain any
        # more that upstream has none, so the submission is not repeated.
        changes["submit_at"] = None
    answered = [id_ for id_, due_at in due_times.items() if due_at <= tx.now]
    await generations.delete_confirmations(tx, answered)
    await generations.update(tx, [(generation, replace(generation, **changes))])
    tx.after_commit(context.signals.deadline.set)


def _next_poll(
    context: Context, before: Generation, generation: Generation, reply: Reply, now: int
) -> dict[str, Any]:
    """Return the changes that plan the next poll. Only a planned poll advances the plan."""
    planned_at = before.next_poll_at
    was_planned = planned_at is not None and planned_at <= reply.exchange.at
    if generation.next_poll_at is not None and not was_planned:
        return {}  # A confirmation or a refresh.
    wait_ms = budget.wait_ms(context, reply.answer, now)
    if reply.exchange.outcome == "throttled" and generation.status == before.status:
        return {"next_poll_at": now + wait_ms} if was_planned else {}
    if generation.status == "timed_out":
        # Count planned polls only, so that a client's refresh does not use them up.
        count = generation.late_poll_count + (was_planned and before.status == "timed_out")
        late_at = schedule.poll_after_deadline(generation.deadline_at, count, context.jitter())
        return {"next_poll_at": late_at, "late_poll_count": count}
    if generation.trouble_count:
        due_at = schedule.poll_after_trouble(generation.trouble_count, now, context.jitter())
        due_at = max(due_at, now + wait_ms)
    else:
        polls = schedule.planned_polls(context, generation, now)
        due_at = schedule.next_poll(context, generation, polls, now)
        if isinstance(reply.answer, wire.Report) and reply.answer.possible:
            due_at = min(due_at, now + POSSIBLE_POLL_MS)
    return {"next_poll_at": min(due_at, generation.deadline_at)}
