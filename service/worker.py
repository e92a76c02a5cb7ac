"""Runs what is due until told to stop; the only loop that sleeps.

One process works for a database at a time: the one that holds a lock on a file beside it. Others
stand by and take over within a second of its death, since the kernel releases the lock.
"""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO

import msgspec

from service.context import Context
from service.delivery import replay
from service.delivery.dispatch import Deliverer
from service.generations import submit
from service.generations.poll import Poller
from service.model.clock import SECOND
from service.model.errors import StorageError
from service.store import reseal, retention, subscribers
from service.telemetry import log

_log = log.get()
STANDBY_SECONDS = 1.0
WATCH_SECONDS = 0.1
SLEEP_SECONDS_MAX = 30.0
CLEAN_PAUSE_MS = 100

Step = Callable[[int], Awaitable[int | None]]


class Done(msgspec.Struct):
    """What was done in a tick."""

    submitted: int = 0
    polled: int = 0
    attempted: int = 0
    replayed: int = 0
    deleted: int = 0
    more: bool = False

    def since(self, before: "Done", *, more: bool) -> "Done":
        """What was done after `before`."""
        return Done(
            submitted=self.submitted - before.submitted,
            polled=self.polled - before.polled,
            attempted=self.attempted - before.attempted,
            replayed=self.replayed - before.replayed,
            deleted=self.deleted - before.deleted,
            more=more,
        )


class Worker:
    """The loops of one process, and the lock that makes it the one that works."""

    def __init__(self, context: Context, poller: Poller, deliverer: Deliverer) -> None:
        self.context = context
        self.poller = poller
        self.deliverer = deliverer
        self.done = Done()
        self._timer = asyncio.Event()
        self._stopping = asyncio.Event()
        self._lock: IO[bytes] | None = None
        self._data_version = 0
        self._revision = 0
        self._sweep = retention.Sweep()
        self._ticking = asyncio.Lock()
        self._cleaning = asyncio.Lock()
        self.task: asyncio.Task[None] | None = None

    @property
    def is_working(self) -> bool:
        """True if this process is the one that works."""
        return self._lock is not None

    @property
    def is_alive(self) -> bool:
        """True unless the loops should run here and do not."""
        return self.task is None or not self.task.done()

    def start(self) -> None:
        """Run the loops in a task of their own; should one fail, the process ends."""
        self.task = asyncio.create_task(self.run(), name="worker")

    def stop(self) -> None:
        """Start nothing more; `run` ends once what is under way has ended or time is up."""
        self._stopping.set()

    async def run(self) -> None:
        """Wait for the lock, then run every loop until `stop`."""
        try:
            while not self._stopping.is_set() and not await self._take_over():
                await self._sleep(self._stopping, STANDBY_SECONDS)
            if self.is_working:
                await self._work()
        finally:
            self.release()

    async def _work(self) -> None:
        """Run every loop until `stop`, then give what is under way its time."""
        _log.info("worker.started")
        wakes = self.context.wakes
        async with asyncio.TaskGroup() as group:
            group.create_task(self._loop(self._submit, wakes.submit))
            group.create_task(self._loop(self._poll, wakes.poll))
            group.create_task(self._loop(self._expire, wakes.deadline))
            group.create_task(self._loop(self.deliverer.run_due, self._timer))
            group.create_task(self._loop(self._replay, wakes.replay))
            group.create_task(self._loop(self._clean_gently, asyncio.Event()))
            group.create_task(self._loop(self._watch, asyncio.Event()))
        await self._finish()

    async def _take_over(self) -> bool:
        """Become the one that works; False while another one is, or while the disk fails."""
        try:
            if not self.acquire():
                return False
            await reseal.run(self.context.database, self.context.vault)
            self.attach()
            await self.deliverer.scan()
        except StorageError as error:
            _log.error("worker.storage_failed", error=str(error))
            self.deliverer.is_open = False
            self.release()
            return False
        return True

    def attach(self) -> None:
        """Have what is committed here handed over in memory."""
        wakes = self.context.wakes
        wakes.deliver, wakes.look = self.deliverer.offer, self.deliverer.look
        wakes.reload = self.deliverer.reload
        self.deliverer.on_timer = self._timer.set
        self.deliverer.is_open = True

    async def tick(self, seconds: float) -> Done:
        """Do due work for up to `seconds`, and say what was done; nothing if another tick does."""
        if self._ticking.locked():
            return Done(more=True)
        async with self._ticking:
            return await self._tick(seconds)

    async def _tick(self, seconds: float) -> Done:
        mine = self._lock is None
        if mine and not self.acquire():
            return Done(more=True)
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + seconds
        before = self._counted()
        try:
            if mine:
                self.attach()
            more = await self._work_until(ends_at)
        finally:
            if mine:
                await self._finish()
                self.release()
        return self._counted().since(before, more=more)

    async def _work_until(self, ends_at: float) -> bool:
        """Run every step again and again while it finds work; True if some is left."""
        loop = asyncio.get_running_loop()
        while True:
            await self.deliverer.scan()
            now = self.context.clock()
            steps = (self._submit, self._poll, self._expire, self._replay, self._clean)
            next_ats = [await step(now) for step in (*steps, self.deliverer.run_due)]
            await self._settle(ends_at - loop.time())
            due = any(at is not None and at <= self.context.clock() for at in next_ats)
            if loop.time() >= ends_at or not due:
                return due

    async def _settle(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(max(seconds, 0)):
                await self.poller.settle()
                await self.deliverer.settle()
        except TimeoutError:
            return

    def acquire(self) -> bool:
        """Become the one that works, if nobody is. StorageError if the lock cannot be opened."""
        path = Path(f"{self.context.database.path}-worker")
        try:
            lock = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "rb+")
        except OSError as error:
            raise StorageError(f"cannot open {path}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            return False
        self._lock = lock
        return True

    def release(self) -> None:
        """Let another process work."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def _loop(self, step: Step, wake: asyncio.Event) -> None:
        while not self._stopping.is_set():
            wake.clear()
            try:
                next_at = await step(self.context.clock())
            except StorageError as error:
                _log.error("worker.storage_failed", error=str(error))
                next_at = self.context.clock() + SECOND
            seconds = SLEEP_SECONDS_MAX
            if next_at is not None:
                seconds = min(max(next_at - self.context.clock(), 0) / SECOND, seconds)
            await self._sleep(wake, seconds)

    async def _sleep(self, wake: asyncio.Event, seconds: float) -> None:
        """Sleep until woken, told to stop, or `seconds` have passed."""
        if seconds <= 0:
            await asyncio.sleep(0)  # noqa: TID251  this is the place
            return
        waits = [asyncio.ensure_future(e.wait()) for e in {wake, self._stopping}]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _submit(self, now: int) -> int | None:
        count, next_at = await submit.run_due(self.context, now)
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
        if self._cleaning.locked():  # By a tick beside the loop: a sweep is nobody's to share.
            return now + SECOND
        async with self._cleaning:
            days = self.context.settings.retention_days
            deleted, next_at = await retention.run_due(
                self.context.database, self._sweep, days, now
            )
        self.done.deleted += deleted
        return next_at

    async def _clean_gently(self, now: int) -> int:
        """Between two batches, the commit stream is for others."""
        return max(await self._clean(now), now + CLEAN_PAUSE_MS)

    async def _replay(self, now: int) -> int | None:
        count, next_at = await replay.run_due(self.context, now)
        self.done.replayed += count
        return next_at

    async def _watch(self, now: int) -> int | None:
        """Notice what other processes committed: their work was not handed over in memory."""
        version = await self.context.database.apply(_data_version)
        if self._data_version not in (0, version):
            self.context.wakes.submit.set()
            self.context.wakes.poll.set()
            self.context.wakes.deadline.set()
            self.context.wakes.replay.set()
            revision = await self.context.database.read(subscribers.revision)
            if revision != self._revision:
                self.deliverer.reload(None)
            self._revision = revision
            await self.deliverer.scan()
        self._data_version = version
        return now + int(WATCH_SECONDS * SECOND)

    def _counted(self) -> Done:
        return msgspec.structs.replace(self.done, attempted=self.deliverer.attempted)

    async def _finish(self) -> None:
        """Give what is under way its time; what does not end is due again after the restart."""
        submitting = self.context.wakes.submitting
        self.deliverer.is_open = False
        try:
            async with asyncio.timeout(self.context.settings.shutdown_seconds):
                if submitting:  # Not gather: when time is up it would cancel what is under way.
                    await asyncio.wait(submitting.values())
                await self.poller.settle()
                await self.deliverer.settle()
        except TimeoutError:
            _log.warning("worker.stopped_late")
        self.context.wakes.nobody()
        self.deliverer.forget()


def _data_version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA data_version").fetchone()[0])
