"""The worker: the loops that do due work. Only this module sleeps.

One process at a time is the worker of a database: the one that holds its ownership. Others stand
by and take over within a second of its death.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import msgspec

from service.context import Context, NoInbox
from service.delivery import replay
from service.delivery.dispatch import Dispatcher
from service.generations.poll import Poller
from service.generations.submit import Submitter
from service.model.clock import SECOND
from service.model.errors import StorageError
from service.store import reseal, retention, subscribers
from service.store.database import Ownership
from service.telemetry import log

_log = log.get()
STANDBY_SECONDS = 1.0
WATCH_SECONDS = 0.1
SLEEP_SECONDS_MAX = 30.0
CLEAN_PAUSE_MS = 100

Step = Callable[[int], Awaitable[int | None]]


class WorkCounts(msgspec.Struct):
    """How many rows were worked on; `more` if some are still due."""

    submitted: int = 0
    polled: int = 0
    attempted: int = 0
    replayed: int = 0
    deleted: int = 0
    more: bool = False

    def since(self, before: "WorkCounts", *, more: bool) -> "WorkCounts":
        """Return the difference from earlier counts."""
        return WorkCounts(
            submitted=self.submitted - before.submitted,
            polled=self.polled - before.polled,
            attempted=self.attempted - before.attempted,
            replayed=self.replayed - before.replayed,
            deleted=self.deleted - before.deleted,
            more=more,
        )


class Worker:
    """The loops of one process. They run while it holds the ownership of the database."""

    def __init__(
        self,
        context: Context,
        ownership: Ownership,
        submitter: Submitter,
        poller: Poller,
        dispatcher: Dispatcher,
    ) -> None:
        self.context = context
        self.ownership = ownership
        self.submitter = submitter
        self.poller = poller
        self.dispatcher = dispatcher
        self._counts = WorkCounts()  # Without `attempted`, which the dispatcher counts.
        self.task: asyncio.Task[None] | None = None
        self._attempts_due = asyncio.Event()
        self._stopping = asyncio.Event()
        self._subscribers_revision = 0
        self._sweep = retention.Sweep()
        self._tick_lock = asyncio.Lock()
        self._clean_lock = asyncio.Lock()

    @property
    def is_working(self) -> bool:
        """True if this process holds the ownership of the database."""
        return self.ownership.is_held

    @property
    def is_alive(self) -> bool:
        """False if the loops were started and have ended."""
        return self.task is None or not self.task.done()

    def start(self) -> None:
        """Run the loops in a new task; if one fails, the task ends with its error."""
        self.task = asyncio.create_task(self.run(), name="worker")

    def stop(self) -> None:
        """Start no more work; `run` returns once requests under way have ended or time is up."""
        self._stopping.set()

    async def run(self) -> None:
        """Wait for ownership, then run every loop until `stop`."""
        try:
            while not self._stopping.is_set() and not await self._take_over():
                await self._sleep(self._stopping, STANDBY_SECONDS)
            if self.is_working:
                await self._work()
        finally:
            self.ownership.release()

    async def _work(self) -> None:
        """Run every loop until `stop`, then wait for the requests under way."""
        _log.info("worker.started")
        signals = self.context.signals
        async with asyncio.TaskGroup() as group:
            group.create_task(self._loop(self._submit, signals.submit))
            group.create_task(self._loop(self._poll, signals.poll))
            group.create_task(self._loop(self._expire, signals.deadline))
            group.create_task(self._loop(self.dispatcher.run_due, self._attempts_due))
            group.create_task(self._loop(self._replay, signals.replay))
            group.create_task(self._loop(self._clean_with_pauses, asyncio.Event()))
            group.create_task(self._loop(self._watch, asyncio.Event()))
        await self._finish()

    async def _take_over(self) -> bool:
        """Try to become the worker; False while another process is, or while the disk fails."""
        try:
            if not self.ownership.acquire():
                return False
            await reseal.run(self.context.database, self.context.vault)
            self.attach()
            await self.dispatcher.scan()
        except StorageError as error:
            _log.error("worker.storage_failed", error=str(error))
            self.dispatcher.is_open = False
            self.ownership.release()
            return False
        return True

    def attach(self) -> None:
        """Make this process's lanes receive newly committed deliveries."""
        self.context.inbox = self.dispatcher
        self.dispatcher.on_timer = self._attempts_due.set
        self.dispatcher.is_open = True

    async def tick(self, seconds: float) -> WorkCounts:
        """Do due work for up to `seconds`; do none while another tick of this process runs."""
        if self._tick_lock.locked():
            return WorkCounts(more=True)
        async with self._tick_lock:
            return await self._tick(seconds)

    async def _tick(self, seconds: float) -> WorkCounts:
        for_this_tick = not self.is_working
        if for_this_tick and not self.ownership.acquire():
            return WorkCounts(more=True)
        ends_at = asyncio.get_running_loop().time() + seconds
        before = self._all_counts()
        try:
            if for_this_tick:
                self.attach()
            more = await self._work_until(ends_at)
        finally:
            if for_this_tick:
                await self._finish()
                self.ownership.release()
        return self._all_counts().since(before, more=more)

    async def _work_until(self, ends_at: float) -> bool:
        """Repeat every step until no row is due or time is up; return whether rows are due."""
        loop = asyncio.get_running_loop()
        while True:
            await self.dispatcher.scan()
            now = self.context.clock()
            steps = (self._submit, self._poll, self._expire, self._replay, self._clean)
            due_times = [await step(now) for step in (*steps, self.dispatcher.run_due)]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(ends_at - loop.time(), 0)):
                    await self._settle()
            is_due = any(at is not None and at <= self.context.clock() for at in due_times)
            if loop.time() >= ends_at or not is_due:
                return is_due

    async def _settle(self) -> None:
        """Wait until no poll and no attempt is under way."""
        await self.poller.settle()
        await self.dispatcher.settle()

    async def _loop(self, step: Step, signal: asyncio.Event) -> None:
        while not self._stopping.is_set():
            signal.clear()
            try:
                next_at = await step(self.context.clock())
            except StorageError as error:
                _log.error("worker.storage_failed", error=str(error))
                next_at = self.context.clock() + SECOND
            seconds = SLEEP_SECONDS_MAX
            if next_at is not None:
                seconds = min(max(next_at - self.context.clock(), 0) / SECOND, seconds)
            await self._sleep(signal, seconds)

    async def _sleep(self, signal: asyncio.Event, seconds: float) -> None:
        """Sleep until the signal, `stop`, or the end of `seconds`."""
        if seconds <= 0:
            await asyncio.sleep(0)  # noqa: TID251  the one module that sleeps
            return
        waits = [asyncio.ensure_future(e.wait()) for e in {signal, self._stopping}]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _submit(self, now: int) -> int | None:
        count, next_at = await self.submitter.run_due(now)
        self._counts.submitted += count
        return next_at

    async def _poll(self, now: int) -> int | None:
        count, next_at = await self.poller.run_due(now)
        self._counts.polled += count
        return next_at

    async def _expire(self, now: int) -> int | None:
        _, next_at = await self.poller.expire_due(now)
        return next_at

    async def _clean(self, now: int) -> int:
        if self._clean_lock.locked():  # The loop or a tick is already cleaning.
            return now + SECOND
        async with self._clean_lock:
            days = self.context.settings.retention_days
            database = self.context.database
            deleted, next_at = await retention.run_due(database, self._sweep, days, now)
        self._counts.deleted += deleted
        return next_at

    async def _clean_with_pauses(self, now: int) -> int:
        """Clean with a pause after each batch, so that other commits can run in between."""
        return max(await self._clean(now), now + CLEAN_PAUSE_MS)

    async def _replay(self, now: int) -> int | None:
        count, next_at = await replay.run_due(self.context, now)
        self._counts.replayed += count
        return next_at

    async def _watch(self, now: int) -> int | None:
        """Wake the loops after a commit of another process, which set no signal here."""
        if await self.ownership.other_process_committed():
            self.context.signals.set_all()
            revision = await self.context.database.read(subscribers.get_revision)
            if revision != self._subscribers_revision:
                self.dispatcher.reload(None)
            self._subscribers_revision = revision
            await self.dispatcher.scan()
        return now + int(WATCH_SECONDS * SECOND)

    def _all_counts(self) -> WorkCounts:
        return msgspec.structs.replace(self._counts, attempted=self.dispatcher.attempted)

    async def _finish(self) -> None:
        """Wait up to `shutdown_seconds` for requests under way.

        The rows of requests that do not end in time are still due after a restart.
        """
        self.dispatcher.is_open = False
        try:
            async with asyncio.timeout(self.context.settings.shutdown_seconds):
                await self.submitter.settle()
                await self._settle()
        except TimeoutError:
            _log.warning("worker.stopped_late")
        self.context.inbox = NoInbox()
        self.dispatcher.forget()
