"""The loops that run due work until told to stop; only this module sleeps.

One process works on a database at a time: the one that holds its ownership. Others stand by and
take over within a second of its death.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import msgspec

from service.context import Context, NoInbox
from service.delivery import replay
from service.delivery.dispatch import Deliverer
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


class Done(msgspec.Struct):
    """How many rows a tick worked on; `more` if some are still due."""

    submitted: int = 0
    polled: int = 0
    attempted: int = 0
    replayed: int = 0
    deleted: int = 0
    more: bool = False

    def since(self, before: "Done", *, more: bool) -> "Done":
        """Return the difference to an earlier count."""
        return Done(
            submitted=self.submitted - before.submitted,
            polled=self.polled - before.polled,
            attempted=self.attempted - before.attempted,
            replayed=self.replayed - before.replayed,
            deleted=self.deleted - before.deleted,
            more=more,
        )


class Worker:
    """The loops of one process, run while it owns the database's work."""

    def __init__(
        self,
        context: Context,
        ownership: Ownership,
        submitter: Submitter,
        poller: Poller,
        deliverer: Deliverer,
    ) -> None:
        self.context = context
        self.ownership = ownership
        self.submitter = submitter
        self.poller = poller
        self.deliverer = deliverer
        self.done = Done()
        self.task: asyncio.Task[None] | None = None
        self._timer = asyncio.Event()
        self._stopping = asyncio.Event()
        self._subscribers_revision = 0
        self._sweep = retention.Sweep()
        self._ticking = asyncio.Lock()
        self._cleaning = asyncio.Lock()

    @property
    def is_working(self) -> bool:
        """True if this process is the one that works."""
        return self.ownership.is_held

    @property
    def is_alive(self) -> bool:
        """True unless the loops should run here and do not."""
        return self.task is None or not self.task.done()

    def start(self) -> None:
        """Run the loops in a task of their own; if one fails, the task ends with its error."""
        self.task = asyncio.create_task(self.run(), name="worker")

    def stop(self) -> None:
        """Start nothing more; `run` returns once attempts under way have ended or time is up."""
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
        """Run every loop until `stop`, then let what is under way end."""
        _log.info("worker.started")
        signals = self.context.signals
        async with asyncio.TaskGroup() as group:
            group.create_task(self._loop(self._submit, signals.submit))
            group.create_task(self._loop(self._poll, signals.poll))
            group.create_task(self._loop(self._expire, signals.deadline))
            group.create_task(self._loop(self.deliverer.run_due, self._timer))
            group.create_task(self._loop(self._replay, signals.replay))
            group.create_task(self._loop(self._clean_gently, asyncio.Event()))
            group.create_task(self._loop(self._watch, asyncio.Event()))
        await self._finish()

    async def _take_over(self) -> bool:
        """Try to own the work; False while another process does, or while the disk fails."""
        try:
            if not self.ownership.acquire():
                return False
            await reseal.run(self.context.database, self.context.vault)
            self.attach()
            await self.deliverer.scan()
        except StorageError as error:
            _log.error("worker.storage_failed", error=str(error))
            self.deliverer.is_open = False
            self.ownership.release()
            return False
        return True

    def attach(self) -> None:
        """From now on, hand newly committed deliveries to our lanes."""
        self.context.inbox = self.deliverer
        self.deliverer.on_timer = self._timer.set
        self.deliverer.is_open = True

    async def tick(self, seconds: float) -> Done:
        """Do due work for up to `seconds`; nothing while another tick runs here."""
        if self._ticking.locked():
            return Done(more=True)
        async with self._ticking:
            return await self._tick(seconds)

    async def _tick(self, seconds: float) -> Done:
        acquired = not self.is_working
        if acquired and not self.ownership.acquire():
            return Done(more=True)
        ends_at = asyncio.get_running_loop().time() + seconds
        before = self._counts()
        try:
            if acquired:
                self.attach()
            more = await self._work_until(ends_at)
        finally:
            if acquired:
                await self._finish()
                self.ownership.release()
        return self._counts().since(before, more=more)

    async def _work_until(self, ends_at: float) -> bool:
        """Run every step again and again while it finds work; True if some is left."""
        loop = asyncio.get_running_loop()
        while True:
            await self.deliverer.scan()
            now = self.context.clock()
            steps = (self._submit, self._poll, self._expire, self._replay, self._clean)
            due_times = [await step(now) for step in (*steps, self.deliverer.run_due)]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(ends_at - loop.time(), 0)):
                    await self._settle()
            is_due = any(at is not None and at <= self.context.clock() for at in due_times)
            if loop.time() >= ends_at or not is_due:
                return is_due

    async def _settle(self) -> None:
        """Wait until no poll and no attempt is under way."""
        await self.poller.settle()
        await self.deliverer.settle()

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
        self.done.submitted += count
        return next_at

    async def _poll(self, now: int) -> int | None:
        count, next_at = await self.poller.run_due(now)
        self.done.polled += count
        return next_at

    async def _expire(self, now: int) -> int | None:
        _, next_at = await self.poller.expire_due(now)
        return next_at

    async def _clean(self, now: int) -> int:
        if self._cleaning.locked():  # A tick beside the loop cleans already.
            return now + SECOND
        async with self._cleaning:
            days = self.context.settings.retention_days
            database = self.context.database
            deleted, next_at = await retention.run_due(database, self._sweep, days, now)
        self.done.deleted += deleted
        return next_at

    async def _clean_gently(self, now: int) -> int:
        """Clean with a pause after each batch, so that other commits come between."""
        return max(await self._clean(now), now + CLEAN_PAUSE_MS)

    async def _replay(self, now: int) -> int | None:
        count, next_at = await replay.run_due(self.context, now)
        self.done.replayed += count
        return next_at

    async def _watch(self, now: int) -> int | None:
        """Read due rows again after another process's commit, which no signal announced."""
        if await self.ownership.other_process_committed():
            self.context.signals.set_all()
            revision = await self.context.database.read(subscribers.revision)
            if revision != self._subscribers_revision:
                self.deliverer.reload(None)
            self._subscribers_revision = revision
            await self.deliverer.scan()
        return now + int(WATCH_SECONDS * SECOND)

    def _counts(self) -> Done:
        return msgspec.structs.replace(self.done, attempted=self.deliverer.attempted)

    async def _finish(self) -> None:
        """Give what is under way its time; what does not end is due again after the restart."""
        self.deliverer.is_open = False
        try:
            async with asyncio.timeout(self.context.settings.shutdown_seconds):
                await self.submitter.settle()
                await self._settle()
        except TimeoutError:
            _log.warning("worker.stopped_late")
        self.context.inbox = NoInbox()
        self.deliverer.forget()
