"""The worker: the loops that do due work, in the process that owns the database.

Others stand by and take over within a second of its death. Only this module sleeps.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec

from service.context import Context, Inbox
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


class Worker:
    """The loops of one process. They run while it holds the ownership of the database."""

    def __init__(self, context: Context, ownership: Ownership, dispatcher: Dispatcher) -> None:
        self.context = context
        self.ownership = ownership
        self.dispatcher = dispatcher
        self.submitter = Submitter(context)
        self.poller = Poller(context)
        self.task: asyncio.Task[None] | None = None
        self._counts = Counter[str]()  # Without the attempts, which the dispatcher counts.
        self._attempts_due = asyncio.Event()
        self._stopping = asyncio.Event()
        self._subscribers_revision = 0
        self._sweep = retention.Sweep()
        self._tick_lock = asyncio.Lock()
        self._clean_lock = asyncio.Lock()
        signals = context.signals
        self._steps: tuple[tuple[Step, asyncio.Event], ...] = (
            (self._counted("submitted", self.submitter.run_due), signals.submit),
            (self._counted("polled", self.poller.run_due), signals.poll),
            (self.poller.expire_due, signals.deadline),
            (self._counted("replayed", partial(replay.run_due, context)), signals.replay),
            (self._clean, asyncio.Event()),
            (self.dispatcher.run_due, self._attempts_due),
        )
        self._loops = (*self._steps, (self._watch, asyncio.Event()))

    @property
    def is_alive(self) -> bool:
        """False if the loops were started and have ended."""
        return self.task is None or not self.task.done()

    @property
    def has_failed(self) -> bool:
        """True if an error has ended the loops."""
        task = self.task
        return bool(task and task.done() and not task.cancelled() and task.exception())

    def start(self) -> None:
        """Run the loops in a new task; if one fails, the task ends with its error."""
        self.task = asyncio.create_task(self.run(), name="worker")

    def when_ended(self, do: Callable[[], object]) -> None:
        """Call `do` once the loops have ended, if they were started."""
        if self.task is not None:
            self.task.add_done_callback(lambda _task: do())

    def stop(self) -> None:
        """Start no more work; `run` returns once requests under way have ended or time is up."""
        self._stopping.set()
        for _, signal in self._loops:
            signal.set()

    async def run(self) -> None:
        """Wait for ownership; run every loop until `stop`, then await the requests under way."""
        try:
            while not self._stopping.is_set() and not await self._take_over():
                await _sleep(self._stopping, STANDBY_SECONDS)
            if self.ownership.is_held:
                _log.info("worker.started")
                async with asyncio.TaskGroup() as group:
                    for step, signal in self._loops:
                        group.create_task(self._loop(step, signal))
                await self._finish()
        except Exception:
            _log.exception("worker.failed")
            raise
        finally:
            self.ownership.release()

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
        dispatcher = self.dispatcher
        self.context.inbox = Inbox(dispatcher.offer, dispatcher.refill, dispatcher.reload)
        dispatcher.on_timer = self._attempts_due.set
        dispatcher.is_open = True

    async def tick(self, seconds: float) -> WorkCounts:
        """Do due work for up to `seconds`; do none while another tick of this process runs."""
        for_this_tick = not self.ownership.is_held
        if self._tick_lock.locked() or (for_this_tick and not self.ownership.acquire()):
            return WorkCounts(more=True)
        async with self._tick_lock:
            ends_at = asyncio.get_running_loop().time() + seconds
            self._counts.clear()
            attempted = self.dispatcher.attempted
            try:
                if for_this_tick:
                    self.attach()
                more = await self._work_until(ends_at)
            finally:
                if for_this_tick:
                    await self._finish()
                    self.ownership.release()
            attempted = self.dispatcher.attempted - attempted
            return WorkCounts(**self._counts, attempted=attempted, more=more)

    async def _work_until(self, ends_at: float) -> bool:
        """Repeat every step until no row is due or time is up; return whether rows are due."""
        loop = asyncio.get_running_loop()
        while True:
            await self.dispatcher.scan()
            now = self.context.clock()
            due_times = [await step(now) for step, _ in self._steps]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(ends_at - loop.time(), 0)):
                    await self._settle()
            is_due = any(at is not None and at <= self.context.clock() for at in due_times)
            if loop.time() >= ends_at or not is_due:
                return is_due

    async def _settle(self) -> None:
        await self.submitter.settle_repeated()
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
            await _sleep(signal, seconds)

    def _counted(
        self, name: str, run_due: Callable[[int], Awaitable[tuple[int, int | None]]]
    ) -> Step:
        """Return a step that does due work and counts its rows under this name."""

        async def step(now: int) -> int | None:
            count, next_at = await run_due(now)
            self._counts[name] += count
            return next_at

        return step

    async def _clean(self, now: int) -> int:
        """Clean once; outside of ticks with a pause, so that other commits can run in between."""
        if self._clean_lock.locked():  # The loop or a tick is already cleaning.
            return now + SECOND
        async with self._clean_lock:
            database, days = self.context.database, self.context.settings.retention_days
            deleted, next_at = await retention.run_due(database, self._sweep, days, now)
        self._counts["deleted"] += deleted
        return next_at if self._tick_lock.locked() else max(next_at, now + CLEAN_PAUSE_MS)

    async def _watch(self, now: int) -> int | None:
        """Wake the loops after a commit of another process, which set no signal here."""
        if await self.ownership.other_process_committed():
            for signal in msgspec.structs.astuple(self.context.signals):
                signal.set()
            revision = await self.context.database.read(subscribers.get_revision)
            if revision != self._subscribers_revision:
                self.dispatcher.reload(None)
            self._subscribers_revision = revision
            await self.dispatcher.scan()
        return now + int(WATCH_SECONDS * SECOND)

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
        self.context.inbox = Inbox()
        self.dispatcher.forget()


async def _sleep(signal: asyncio.Event, seconds: float) -> None:
    """Let others run; then sleep until the signal or the end of `seconds`."""
    await asyncio.sleep(0)  # noqa: TID251  the one module that sleeps
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await signal.wait()
