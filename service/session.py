"""A session: what a worker keeps in memory while it holds the right to work on the database.

It begins with that right and is thrown away whole with it: another process may work afterwards, and
what this one remembers would be old. The rows are the queue; a hand-over in memory only saves
reading them, so a full look at the rows stands behind every hand-over.
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
from service.model.clock import MINUTE, SECOND
from service.model.errors import StorageError
from service.store import reseal, retention, subscribers
from service.store.database import Ownership
from service.store.shards import NONE, SHARDS, shard_of
from service.telemetry import log

_log = log.get()
WATCH_SECONDS = 0.1
LOOK_EVERY_MS = MINUTE  # How long a hand-over that was missed can stay unnoticed.
LANES_PER_SECOND = 10_000  # Looked at on account of other processes' commits.
# Between two batches of cleaning others commit: for twice as long as the first of them took.
CLEAN_PAUSES = 2
CLEAN_PAUSE_MS_MIN, CLEAN_PAUSE_MS_MAX = 10, SECOND
BACKOFF_SECONDS_MAX = 60.0  # Of a step that fails again and again.

Step = Callable[[int], Coroutine[Any, Any, int | None]]  # Returns when to be called next.


class WorkCounts(msgspec.Struct):
    """How many rows were worked on; `more` if some are still due."""

    submitted: int = 0
    polled: int = 0
    attempted: int = 0
    replayed: int = 0
    deleted: int = 0
    more: bool = False


class Session:
    """The lanes with their slots, the steps of the loops, and what was seen of other processes.

    `steps` are due work, each with the event that wakes its loop; `loops` has the watch as well.
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
        self._in_tick = False
        self._sweep = sweep
        self._is_cleaning = False
        self._look_at: int | None = None  # None: the rows were not looked at yet.
        self._rest_until = 0  # No look before on account of another process's commit.
        self._shards = NONE  # As they were seen last.
        self._is_resealed = False
        self._requests = submitter.in_flight, poller.in_flight
        self._budget, self._poller = submitter.budget, poller
        self._subscribers_revision = -1  # None: whatever was changed before counts as changed.
        signals, attempts_due = context.signals, asyncio.Event()
        self.dispatcher.on_timer = attempts_due.set
        self.steps: tuple[tuple[Step, asyncio.Event], ...] = (
            (self._counted("submitted", submitter.run_due), signals.submit),
            (self._counted("polled", poller.run_due), signals.poll),
            (poller.expire_due, signals.deadline),
            (self._counted("replayed", partial(replay.run_due, context)), signals.replay),
            (self._clean, asyncio.Event()),
            (self.dispatcher.run_due, attempts_due),
        )
        # What a request has made due: its submission, its question, its first attempts.
        self.drive_steps = tuple(step for step, _ in (*self.steps[:2], self.steps[-1]))
        self.loops: tuple[tuple[Step, asyncio.Event], ...] = (
            *self.steps,
            (self.watch, asyncio.Event()),
        )

    def resume(self) -> None:
        """Take what is committed from now on, and let attempts start.

        What the rows hold already is found by the first `watch`, while the loops work: with many
        lanes that takes seconds.
        """
        self.ownership.busy = self._busy
        self._is_resealed = 0 in self.ownership.shards  # Else it is, once that is taken.
        self.context.inbox.lanes = self.dispatcher
        self.dispatcher.is_open = True

    def pause(self) -> None:
        """Start no more attempts; those under way go on."""
        self.dispatcher.is_open = False
        if self.context.inbox.lanes is self.dispatcher:
            self.context.inbox.lanes = None

    def wake(self) -> None:
        """Wake every loop."""
        for _, signal in self.loops:
            signal.set()

    async def close(self) -> None:
        """End what is under way, and drop all memory. Rows of attempts that end here stay due."""
        self.pause()
        await self.dispatcher.close()

    async def look(self, now: int) -> int:
        """Find all lanes that have rows, and wake every loop; return when to look again."""
        self._follow_shards()
        self._look_at = now  # Until the look has succeeded, it is due.
        for signal in msgspec.structs.astuple(self.context.signals):
            signal.set()
        await self._follow_changes()
        lanes = await self.dispatcher.scan()
        self._look_at = now + LOOK_EVERY_MS
        self._rest_until = now + lanes * SECOND // LANES_PER_SECOND
        return self._look_at

    async def _follow_changes(self) -> None:
        """Have the lanes of subscribers that were changed read them again."""
        changes = await self.context.database.read(
            subscribers.changes_since, self._subscribers_revision
        )
        self.dispatcher.reload_changed(changes)
        self._subscribers_revision = changes.revision

    def _follow_shards(self) -> bool:
        """Let go of what other processes work on now; return whether there is more to do here."""
        before, self._shards = self._shards, self.ownership.shards
        if self._shards not in (before, NONE):
            share = len(self._shards) / SHARDS
            self._budget.is_shared = self._poller.is_in_turn and share < 1
            # Who takes turns has few shards and short time: it asks for each question instead.
            share = 1.0 if self._poller.is_in_turn else share
            self._budget.take_share(share, self.context.clock())
        if before - self._shards:
            drop_lost(self.dispatcher.lanes, self.context.database.holds)
        return bool(self._shards - before)

    def _busy(self) -> set[int]:
        """Return the shards with requests under way."""
        lanes = self.dispatcher.lanes.values()
        ids = [lane.subscriber_id for lane in lanes if lane.in_flight]
        return {shard_of(id_) for id_ in chain(ids, *self._requests)}

    async def watch(self, now: int) -> int:
        """Look at the rows at first, with new shards, after others' commits, and once a minute.

        A commit is looked for before the rows are: what is committed meanwhile is seen next time.
        Subscribers are looked at each time: the writer, who is asked for commits, may be busy.
        """
        if self._look_at is not None:
            await self._follow_changes()
        if self._follow_shards():
            self._look_at = None
        if await self.ownership.other_process_committed() and self._look_at is not None:
            self._look_at = min(self._look_at, self._rest_until)
        if self._look_at is None or now >= self._look_at:
            await self.look(now)
        return now + int(WATCH_SECONDS * SECOND)

    def begin_tick(self) -> None:
        """Count what is done from now on."""
        self._counts.clear()
        self._attempted_before = self.dispatcher.attempted
        self._in_tick = True

    def end_tick(self) -> dict[str, int]:
        """Return how many rows were worked on since the tick began."""
        self._in_tick = False
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
        """Clean once; outside of ticks with a pause, so that other commits can run in between.

        It is of no shard, so who holds the first one does it.
        """
        if 0 not in self.ownership.shards:
            self._is_resealed = False
            return now + MINUTE
        if not self._is_resealed:
            await reseal.run(self.context.database, self.context.vault)
            self._is_resealed = True
        if self._is_cleaning:  # The loop or a tick is already cleaning.
            return now + SECOND
        self._is_cleaning = True
        try:
            database, days = self.context.database, self.context.settings.retention_days
            deleted, next_at = await retention.run_due(database, self._sweep, days, now)
        finally:
            self._is_cleaning = False
        self._counts["deleted"] += deleted
        if self._in_tick:
            return next_at
        ended_at = self.context.clock()
        pause_ms = max(CLEAN_PAUSES * (ended_at - now), CLEAN_PAUSE_MS_MIN)
        return max(next_at, ended_at + min(pause_ms, CLEAN_PAUSE_MS_MAX))


def log_failure(step: Step, error: Exception, failures: int) -> float:
    """Log that a step failed; return for how many seconds its loop backs off."""
    name = getattr(step, "__name__", "step")
    if isinstance(error, StorageError):  # It is the disk's, and may be over at any moment.
        _log.error("worker.storage_failed", step=name, error=str(error))
        return 1.0
    seconds: float = min(2.0 ** (failures - 1), BACKOFF_SECONDS_MAX)
    _log.error("worker.step_failed", step=name, retry_seconds=seconds, exc_info=error)
    return seconds
