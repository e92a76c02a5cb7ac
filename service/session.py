"""A session: what a worker keeps in memory while it holds the right to work on the database.

It begins and ends with that right: once another process works, this memory is out of date. The rows
are the queue. A hand-over in memory only saves reading them, so a full look at the rows follows at
least every LOOK_EVERY_MS.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import partial
from itertools import chain
from typing import Any

import msgspec

from service.context import Context
from service.delivery import replay
from service.delivery.dispatch import Dispatcher
from service.delivery.lanes import drop_lost
from service.delivery.target import Sender
from service.generations.poll import Poller
from service.generations.submit import Submitter
from service.model.clock import HOUR, MINUTE, SECOND
from service.model.errors import StorageError
from service.store import reseal, retention, subscribers
from service.store.database import Ownership
from service.store.shards import NONE, SHARDS, shard_of
from service.telemetry import log

_log = log.get()
WATCH_SECONDS = 0.1  # Between two runs of `watch`.
LOOK_EVERY_MS = MINUTE  # How long a hand-over that was missed can stay unnoticed.
LANES_PER_SECOND = 10_000  # Scanned because other processes committed.
# After a batch of cleaning, other units may commit for twice as long as the batch took.
CLEAN_PAUSES = 2
CLEAN_PAUSE_MS_MIN, CLEAN_PAUSE_MS_MAX = 10, SECOND
RESEAL_EVERY_MS = HOUR
BACKOFF_SECONDS_MAX = 60.0  # Before a step that keeps failing runs again.

Step = Callable[[int], Coroutine[Any, Any, int | None]]  # Takes `now`, returns the next due time.
Steps = tuple[tuple[Step, asyncio.Event], ...]  # Each with the signal that wakes its loop.


class Session:
    """The lanes with their slots, the steps of the loops, and what was seen of other processes.

    steps: functions that do due work, each with the signal that wakes its loop; `loops` adds
    `watch`. tick_steps: the same functions. drive_steps: those for the rows that a request makes
    due.
    """

    def __init__(
        self,
        context: Context,
        ownership: Ownership,
        sender: Sender,
        submitter: Submitter,
        poller: Poller,
        sweep: retention.Sweep,
    ) -> None:
        self.context = context
        self.ownership = ownership
        self.dispatcher = Dispatcher(context, sender)
        self._counts = Counter[str]()  # Without the attempts, which the dispatcher counts.
        self._attempted_before = 0
        self._is_in_tick = False
        self.loops_ending = asyncio.Event()  # Set once they are to end: it wakes who backs off.
        self._sweep = sweep
        self._is_cleaning = False
        self._last_look_at = 0
        self._next_look_at: int | None = None  # When to look again; None: as soon as possible.
        self._no_look_until = 0  # Until then, no other process's commit causes a look.
        self._shards = NONE  # Those of the last `_follow_shards`.
        self._lost = NONE  # Those lost since; they may have come back.
        self._requests = submitter.in_flight, poller.in_flight
        self._budget = poller.budget
        self._is_in_turn = False  # Whether processes take turns, each for a short time.
        self._subscribers_revision = -1  # Before any: the first read takes all as changed.
        signals, attempts_due = context.signals, asyncio.Event()
        self.dispatcher.on_timer = attempts_due.set
        self.steps: Steps = (
            (self._counted("submitted", submitter.run_due), signals.submit),
            (self._counted("polled", poller.run_due), signals.poll),
            (poller.expire_due, signals.deadline),
            (self._counted("replayed", partial(replay.run_due, context)), signals.replay),
            (self._clean, asyncio.Event()),
            (self.dispatcher.run_due, attempts_due),
        )
        self.tick_steps = tuple(step for step, _ in self.steps)
        self.drive_steps = (*self.tick_steps[:2], self.tick_steps[-1])  # Submit, poll, attempt.
        self.loops: Steps = (*self.steps, (self.watch, asyncio.Event()))

    def resume(self, *, is_in_turn: bool) -> None:
        """Receive deliveries that are committed from now on, and let attempts start.

        The rows that are due already are found by the first `watch`, while the loops run: with many
        lanes it takes seconds. Also if a tick's session goes on: meanwhile it received nothing.
        """
        self._next_look_at = None
        self._is_in_turn = is_in_turn
        self.ownership.busy, self.ownership.on_lost = self._busy, self._forget
        self.context.inbox.lanes = self.dispatcher
        self.dispatcher.is_open = True

    def pause(self) -> None:
        """Start no more attempts; attempts under way go on."""
        self.dispatcher.is_open = False
        if self.context.inbox.lanes is self.dispatcher:
            self.context.inbox.lanes = None

    def end_loops(self) -> None:
        """Wake every loop, also those that back off: they end."""
        self.loops_ending.set()
        for _, signal in self.loops:
            signal.set()

    async def close(self) -> None:
        """Cancel the attempts under way, and drop all lanes. The rows stay due."""
        self.pause()
        await self.dispatcher.close()

    async def look(self, now: int) -> int:
        """Find all lanes that have rows, and wake every loop; return when to look again."""
        self._follow_shards()
        self._last_look_at = self._next_look_at = now  # A look that fails stays due.
        for signal in msgspec.structs.astuple(self.context.signals):
            signal.set()
        await self.follow_changes(now)
        lanes = await self.dispatcher.scan()
        self._next_look_at = now + LOOK_EVERY_MS
        self._no_look_until = now + lanes * SECOND // LANES_PER_SECOND
        return self._next_look_at

    async def follow_changes(self, _now: int) -> None:
        """Let lanes read their subscribers again where any process has changed them."""
        changes = await self.context.database.read(
            subscribers.changes_since, self._subscribers_revision
        )
        self.dispatcher.reload_changed(changes)
        self._subscribers_revision = changes.revision

    def _follow_shards(self) -> bool:
        """Adapt the poll rate to the shards held now. Return whether there are new shards."""
        before, self._shards = self._shards, self.ownership.shards
        lost, self._lost = self._lost, NONE
        if self._shards not in (before, NONE):
            share = len(self._shards) / SHARDS
            self._budget.is_shared = self._is_in_turn and share < 1
            # A process in turn has few shards and little time: it asks a stored rate for each poll.
            share = 1.0 if self._is_in_turn else share
            self._budget.take_share(share, self.context.clock())
        return bool(self._shards - (before - lost))

    def _forget(self, shards: frozenset[int]) -> None:
        """Drop the lanes of shards that were lost: once these come back, the rows may differ."""
        self._lost |= shards
        others = self._shards - self._lost  # All but these are looked at again.
        drop_lost(self.dispatcher.lanes, lambda id_: shard_of(id_) in others)

    def debt_seconds(self) -> float:
        """Return for how long to keep the right to work, so that all turns keep the poll rate."""
        return self._budget.debt_seconds(self.context.clock()) if self._is_in_turn else 0.0

    def _busy(self) -> set[int]:
        """Return the shards with attempts, submissions or polls under way."""
        lanes = self.dispatcher.lanes.values()
        ids = [lane.subscriber_id for lane in lanes if lane.in_flight]
        return {shard_of(id_) for id_ in chain(ids, *self._requests)}

    async def watch(self, now: int) -> int:
        """Look at the rows at first, with new shards, after others' commits, and once a minute.

        It asks for commits before it reads the rows: what is committed in between is seen next
        time. It reads changed subscribers each time, as the answer about commits may be late.
        """
        if self._next_look_at is not None:
            await self.follow_changes(now)
        # A tick may have looked since `now`; if its look is still to come, the clock was set back.
        if self._follow_shards() or self.context.clock() < self._last_look_at:
            self._next_look_at = None
        if await self.ownership.other_process_committed() and self._next_look_at is not None:
            self._next_look_at = min(self._next_look_at, self._no_look_until)
        if self._next_look_at is None or now >= self._next_look_at:
            await self.look(now)
        return now + int(WATCH_SECONDS * SECOND)

    def begin_tick(self) -> None:
        """Count the rows that are worked on from now on."""
        self._counts.clear()
        self._attempted_before = self.dispatcher.attempted
        self._is_in_tick = True

    def end_tick(self) -> dict[str, int]:
        """Return how many rows were worked on since the tick began."""
        self._is_in_tick = False
        return {**self._counts, "attempted": self.dispatcher.attempted - self._attempted_before}

    def _counted(
        self, name: str, run_due: Callable[[int], Coroutine[Any, Any, tuple[int, int | None]]]
    ) -> Step:
        """Return a step that does due work and counts its rows under this name."""

        async def step(now: int) -> int | None:
            count, next_at = await run_due(now)
            self._counts[name] += count
            return next_at

        step.__name__ = name
        return step

    async def _clean(self, now: int) -> int:
        """Reseal, then delete one batch of old rows; outside of ticks, pause for others' commits.

        Both belong to no shard: the process that holds shard 0 does them.
        """
        if 0 not in self.ownership.shards:
            self._sweep.reseal_at = 0
            return now + MINUTE
        if now >= self._sweep.reseal_at:
            await reseal.run(self.context.database, self.context.vault)
            self._sweep.reseal_at = now + RESEAL_EVERY_MS
        if self._is_cleaning:  # The loop or a tick is already cleaning.
            return now + SECOND
        self._is_cleaning = True
        try:
            database, days = self.context.database, self.context.settings.retention_days
            deleted, next_at = await retention.run_due(database, self._sweep, days, now)
        finally:
            self._is_cleaning = False
        self._counts["deleted"] += deleted
        if self._is_in_tick:
            return next_at
        ended_at = self.context.clock()
        pause_ms = max(CLEAN_PAUSES * (ended_at - now), CLEAN_PAUSE_MS_MIN)
        return max(next_at, ended_at + min(pause_ms, CLEAN_PAUSE_MS_MAX))


def log_failure(step: Step, error: Exception, failures: int) -> float:
    """Log that a step failed; return for how many seconds its loop backs off."""
    name = getattr(step, "__name__", "step")
    if isinstance(error, StorageError):  # The disk may recover at any moment.
        _log.error("worker.storage_failed", step=name, error=str(error))
        return 1.0
    seconds: float = min(2.0 ** (failures - 1), BACKOFF_SECONDS_MAX)
    _log.error("worker.step_failed", step=name, retry_seconds=seconds, exc_info=error)
    return seconds
