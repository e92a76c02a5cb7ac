"""Poll upstream about generations: within a budget with shares, until the deadline."""

import asyncio
from collections.abc import Awaitable, Container, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from urllib.parse import quote

import msgspec

from service.context import Context
from service.generations import answers, budget, deadlines, hints, ingest, judge
from service.generations.budget import Budget
from service.generations.ingest import Reply
from service.generations.places import PathPlaces, full_models
from service.generations.refreshes import Refreshes
from service.generations.shared import Key, SharedPoll, SharedPolls
from service.generations.sightings import Sightings
from service.generations.stuck import LOOK_AGAIN_MS, Stuck
from service.model.clock import MINUTE, SECOND
from service.model.errors import StorageError
from service.model.generation import Generation
from service.store import generations, poll_rate
from service.store.database import Transaction
from service.telemetry import log, metrics
from service.upstream import wire

_log = log.get()

IN_FLIGHT_MAX = 64  # The client has as many connections.
# A submission of another process may have waited for its commit, and its answer waits for one.
COMMITS_MS = 10 * SECOND


class Poller:
    """The polls under way in this process, and the budget that they share.

    `submitting` has the ids of the generations that this process is submitting.
    """

    def __init__(self, context: Context, budget_: Budget, submitting: Container[str]) -> None:
        self.context = context
        self.budget = budget_
        self._submitting = submitting
        self._began_at = context.clock()  # Processes that submitted before have ended.
        self.refreshes = Refreshes(budget_.rate, IN_FLIGHT_MAX)
        self.stuck = Stuck()
        self.places = PathPlaces(IN_FLIGHT_MAX)
        self.in_flight: dict[str, asyncio.Task[None]] = {}  # By generation, followers too.
        self._shared = SharedPolls()
        self.retry_at: int | None = None  # When to poll again what could not be stored.
        self._unused_until = 0  # Until then nobody waits for a token, as far as is known.
        self._confirmations_first = True  # Whether confirmations get the next odd token.
        # The tenants of the last poll of each kind: the next tenant follows. So none waits longer
        # than a turn of all tenants, however many polls another has.
        self._last_tenants = {"confirm": "", "poll": ""}
        self.sightings = Sightings()
        self.record_answers = partial(answers.record, context=context, sightings=self.sightings)
        self._is_storing = True  # Else an answer was not stored, and no commit went well since.

    async def take_over(self, now: int) -> None:
        """Poll at once about the tasks of callbacks that waited for an ended process's submissions.

        A tick does not: other processes may serve clients beside it, and submit meanwhile.
        """
        self._began_at = now
        await self.context.database.write(generations.confirm_submissions)

    async def run_due(self, now: int) -> tuple[int, int | None]:
        """Start due polls; return how many, and the next due time (None: wait for the signal)."""
        if self.retry_at is not None and self.retry_at <= now:
            self.retry_at = None  # From now on its rows are due.
        if not self._is_storing and await self.context.database.commit_problem() is not None:
            self.retry_at = now + SECOND
            return 0, self.retry_at  # Until a commit goes well, upstream would be asked in vain.
        self._is_storing = True
        room = self.places.all.free
        free = min(self.budget.available(now) or self.budget.may_probe(now), room)
        if free <= 0:
            self._unused_until = 0
            return 0, self.budget.next_at(now) if room > 0 else None
        choice = self._choose(free, now)
        confirmations, polls, sharers, next_at, paused_until = await self.context.database.read(
            _read_due, choice, self._last_tenants
        )
        self.stuck.put_all(choice.unreadable, now)
        if self.budget.note(paused_until, now):  # Another process was asked, or a submission.
            return 0, self.budget.next_at(now)
        chosen = self._in_order(confirmations, polls, free)
        allowed = missing = free
        if self.budget.is_shared:
            missing = self._shared.missing({*map(self._key, chosen)})
            allowed = await self._reserve(min(free, missing))
        started = self._start_due(chosen, allowed, {generation.id for generation in confirmations})
        for sharer in sharers:
            self._follow(sharer)
        # Where all follow polls under way, nothing was reserved, and nothing is spent.
        is_spent = started == (allowed if missing else free)
        self._unused_until = 0 if is_spent else now + MINUTE
        if is_spent:
            return started, self.budget.next_at(now)
        if started < len(chosen):
            return started, now  # Some follow or found no place: others may find one.
        if choice.unreadable:
            return started, now + LOOK_AGAIN_MS
        return started, self.stuck.next_at(next_at, now)

    def _choose(self, most: int, now: int) -> generations.Choice:
        """Return which due polls to read: up to `most` that could start now."""
        apart, full = full_models(self.places, lambda: self.context.catalogue)
        return generations.Choice(
            limit=most,
            tenants=self.places.all.full(),
            without=[*self.stuck.ids(now), *self.in_flight],
            apart=apart,
            full=full,
        )

    async def _reserve(self, count: int) -> int:
        """Take up to `count` polls from the rate that all processes share; return how many."""
        if not count:
            return 0
        count = await self.context.database.write(poll_rate.take, count, self.budget.rate)
        if not count:
            self.budget.tokens = 0.0  # It is tried again once the next token is here.
        return count

    def _start_due(
        self, chosen: Sequence[Generation], most: int, confirmation_ids: AbstractSet[str]
    ) -> int:
        """Start up to `most` of the chosen polls; return how many."""
        started = 0
        for generation in chosen:
            if self._follow(generation) or started == most:
                continue
            if not self.context.database.holds(generation.id):
                continue  # Another process has its shard since it was read.
            if self._start(generation, is_due=True) is not None:
                self.budget.spend()
                kind = "confirm" if generation.id in confirmation_ids else "poll"
                self._last_tenants[kind] = generation.tenant
                started += 1
        return started

    def _in_order(
        self, confirmations: Sequence[Generation], polls: Sequence[Generation], free: int
    ) -> list[Generation]:
        """Return confirmations and polls in order: while both wait, half of the tokens for each."""
        # A client's refresh may have started since.
        due = [generation for generation in confirmations if generation.id not in self.in_flight]
        polls = [generation for generation in polls if generation.id not in self.in_flight]
        share = free
        if due and polls:
            share = (free + self._confirmations_first) // 2
            self._confirmations_first ^= free % 2 == 1
        return [*due[:share], *polls, *due[share:]]

    async def expire_due(self, now: int) -> int | None:
        """Time out generations past their deadline; return the next deadline."""
        return await deadlines.expire_due(self.context, self.stuck, now)

    def refresh(
        self, generation: Generation, paused_until: int, now: int
    ) -> asyncio.Task[None] | None:
        """Poll a generation for a client, or return its poll that is under way.

        `paused_until` is the stored pause, for which upstream may have asked another process.
        None: it was polled within the last second, its tenant has no share or place for it now, or
        an answer could not be stored just now.
        """
        id_, refreshes = generation.id, self.refreshes
        if id_ in self.in_flight:
            return self.in_flight[id_]
        # The generation may have been read before a poll of this second was recorded.
        last_poll_at = refreshes.last_at(id_, now) or generation.last_poll_at
        if (last_poll_at is not None and now - last_poll_at < SECOND) or now < (self.retry_at or 0):
            return None
        if (followed := self._follow(generation)) is not None:
            return followed
        self.budget.note(paused_until, now)
        self.budget.refill(now)
        if refreshes.rate != self.budget.rate:  # Other processes have come or gone.
            refreshes.keep_to(self.budget.rate)
        has_share = refreshes.has_share(generation.tenant, now)
        # Planned polls take each token as it comes, so a share is borrowed: they then wait for it.
        if self.budget.is_paused(now) or not (has_share or self._has_unused(now)):
            return None
        if not refreshes.places.take(generation.tenant):
            return None
        task = self._start(generation, is_due=False)
        if task is None:
            refreshes.places.give_back(generation.tenant)
            return None
        task.add_done_callback(lambda _task: refreshes.places.give_back(generation.tenant))
        self.budget.spend()
        refreshes.note(id_, generation.tenant, now, has_share=has_share)
        return task

    def _has_unused(self, now: int) -> bool:
        """Whether tokens are left that no due poll needs, by the last look at the rows.

        A process that does not look leaves the rate to the one that does.
        """
        return self.budget.is_unused and now < self._unused_until

    def _start(self, generation: Generation, *, is_due: bool) -> asyncio.Task[None] | None:
        """Poll one generation now, unless its tenant or its status path has no place."""
        id_, key = generation.id, self._key(generation)
        if id_ in self.in_flight or not self.places.take(key[0], generation.tenant):
            return None
        poll = self._shared.open(key, generation, is_due=is_due)
        asking = self._guard(generation, self._ask(poll))
        task = asyncio.create_task(asking, name=f"poll {id_}")
        task.add_done_callback(lambda _task: self._end(poll))
        self.in_flight[id_] = task
        return task

    def _key(self, generation: Generation) -> Key:
        path = budget.status_path(self.context.catalogue, generation)
        return path, generation.task_id or generation.id

    def _follow(self, generation: Generation) -> asyncio.Task[None] | None:
        """Let a generation follow the poll under way about its task; return that poll, or None.

        It takes no token and no place: no further request is sent.
        """
        id_ = generation.id
        if id_ in self.in_flight or not self.context.database.holds(id_):
            return None
        poll = self._shared.join(self._key(generation), generation)
        if poll is None:
            return None
        task = self.in_flight[id_] = self.in_flight[poll.leader.id]
        return task

    def _answer_due_at(self, generation: Generation, now: int) -> int | None:
        """Return until when a submission's answer may come; None: no process waits for it."""
        timeout_ms = round(self.context.settings.upstream_timeout_seconds * SECOND) + COMMITS_MS
        if generation.submission != "sending":
            return None
        if generation.id in self._submitting:
            return now + timeout_ms
        if not self._began_at < generation.created_at <= now:
            return None  # If created after `now`, the clock was set back and says nothing.
        # Beside the worker, a process submits only what it has just stored.
        due_at = generation.created_at + timeout_ms
        return due_at if due_at > now else None

    def _end(self, poll: SharedPoll) -> None:
        self._shared.close(poll)
        for generation in (poll.leader, *poll.followers):
            self.in_flight.pop(generation.id, None)
        self.places.give_back(poll.key[0], poll.leader.tenant)
        self.context.signals.poll.set()

    async def settle(self) -> None:
        """Wait for every poll under way; cancelling the wait cancels none."""
        if self.in_flight:
            await asyncio.wait(self.in_flight.values())

    async def _guard(self, generation: Generation, work: Awaitable[None]) -> None:
        context = self.context
        try:
            await work
        except StorageError as error:
            _log.error("poll.failed", generation_id=generation.id, error=repr(error))
            self._is_storing, self.retry_at = False, (now := context.clock()) + SECOND
            self.stuck.put(generation.id, now, error)  # Nor could it be moved on.
        except Exception as error:  # noqa: BLE001  one poll must not end the others
            _log.error("poll.failed", generation_id=generation.id, error=repr(error))
            await deadlines.move_on_or_pass(context, self.stuck, generation, context.clock())

    async def _ask(self, poll: SharedPoll) -> None:
        generation = poll.leader
        context, write, tenant = self.context, self.context.database.write, generation.tenant
        task_id = generation.task_id
        if task_id is None:
            if (due_at := self._answer_due_at(generation, context.clock())) is not None:
                await write(answers.plan_after_submission, generation.id, due_at, tenant=tenant)
                return
            task_id = await hints.task_id_of_callbacks(context, generation)
        if task_id is None:
            await write(answers.drop_plan_without_task, context, generation.id, tenant=tenant)
            return
        # Ids are opaque: they are encoded, so that they change no path.
        encoded_id = quote(task_id, safe="")
        path = poll.key[0].format(task_id=encoded_id)
        reply = await ingest.ask(
            context, generation.id, context.client.poll(path, task_id, generation.input), task_id
        )
        self._shared.close(poll)  # A generation that is due from now on gets its own poll.
        now, replies = context.clock(), [(generation, reply)]
        replies += [(each, poll.reply_for(each, reply, now)) for each in poll.followers]
        records = (self._guard(each, self._record(each, own, poll)) for each, own in replies)
        await asyncio.gather(*records)

    async def _record(self, generation: Generation, reply: Reply, poll: SharedPoll) -> None:
        """Judge and record an answer for the generation that was polled, or for a follower."""
        context, tenant = self.context, generation.tenant
        follows = generation is not poll.leader
        is_due = follows or poll.is_due
        if is_due and not context.database.holds(generation.id):
            return  # This process was frozen or lost the shard: the one that has it now polls.
        reply = await judge.judge(context, self.sightings, generation, reply)
        write = partial(context.database.write_batched, self.record_answers, tenant=tenant)
        if follows:
            await write(reply)
            self.stuck.forget(generation.id)
            return
        if pause_ms := budget.pause_after(context, self.budget, generation.id, reply.answer):
            self.budget.pause((now := context.clock()) + pause_ms, now)
            reply = msgspec.structs.replace(reply, pause_ms=pause_ms)
        await write(reply)
        self.stuck.forget(generation.id)
        ingest.announce_exchange(metrics.polls, reply.exchange)
        if isinstance(reply.answer, wire.Report) and not reply.answer.recognised:
            ingest.log_unknown_word(reply.exchange.detail, generation.id)


async def _read_due(
    tx: Transaction, choice: generations.Choice, after: Mapping[str, str]
) -> tuple[list[Generation], list[Generation], list[Generation], int | None, int]:
    """Read due confirmations and polls, those that share tasks, the next due time and the pause.

    They are read in one snapshot: two could miss a row.
    """
    confirmations = await generations.list_due(tx, "confirm", choice, after["confirm"])
    # A generation that is due as both must not hide another's poll.
    without = [*choice.without, *(generation.id for generation in confirmations)]
    choice = msgspec.structs.replace(choice, without=without)
    polls = await generations.list_due(tx, "poll", choice, after["poll"])
    sharers = await generations.list_sharers(tx, choice) if choice.shared else []
    next_at = await generations.next_due(tx, "poll")
    return confirmations, polls, sharers, next_at, await generations.get_pause(tx)
