"""SQLite: one writer that commits units in groups, and readers in parallel (docs/decisions/0002).

Statements on SQLite block, so a whole group of units runs on the writer's thread without a switch.
The units that queue up during a commit are the next group. There is no timer: a single unit is
committed at once, and under load many units share one commit. Only units that may wait, such as
records of attempts, wait a moment for others: each commit costs a sync of the disk.
"""

import asyncio
import contextlib
import math
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from service.model.clock import Clock, now_ms
from service.model.errors import StorageError
from service.store.database import T, Transaction, Unit
from service.store.item import Item
from service.store.sqlite import group, schema
from service.store.sqlite.connection import Connection, checkpoint, connect, is_lost
from service.store.sqlite.file import File
from service.store.sqlite.readers import Readers
from service.store.write_queue import STALLED, Queue
from service.telemetry import log

_log = log.get()

CHECKPOINT_SECONDS = 0.25  # Often, so that each one is short.
RETRY_SECONDS = 1.0
PATIENCE_SECONDS = 0.02  # Of units that may wait for a group.
FAILING_SECONDS = 5.0  # So long after a failed commit `write_problem` still tells of it.
PROBE_SECONDS = 10.0  # If the last commit is older, `write_problem` tries one.


def _resolve(items: Iterable[Item], failure: BaseException | None) -> None:
    """Set the result or the error of every item's future, unless its caller has canceled it."""
    for item in items:
        error = failure or item.error
        if item.future.done():
            continue
        if error is None:
            item.future.set_result(item.result)
        elif _is_of_database(error):
            item.future.set_exception(StorageError(f"the database failed: {error}"))
        else:
            item.future.set_exception(error)


def _is_of_database(error: BaseException | None) -> bool:
    return isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.IntegrityError)


class Database:
    """The database of one process; see store/database.py."""

    def __init__(self, path: str, *, clock: Clock = now_ms, queue_max: int = 10_000) -> None:
        self.path = path
        self._clock = clock
        self.file = File(path)
        self._queue = Queue(queue_max)
        self._retried: list[Item] = []
        self._retry_timer: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._wake_timer: asyncio.TimerHandle | None = None
        self._readers = Readers(self.file)
        self._writer: Connection | None = None
        self._is_lost = False  # The connections have to be opened anew before the next group.
        self._stream: asyncio.Task[None] | None = None
        self._checkpoint_timer: asyncio.TimerHandle | None = None
        self._checkpoint: asyncio.Task[None] | None = None
        # Times of the loop's clock, and why the last failed commit failed.
        self._committed_at, self._failed_at, self._failure = -math.inf, -math.inf, ""
        self._probe: asyncio.Future[str | None] | None = None

    async def open(self) -> None:
        """Open the writer's connection. StorageError if the file cannot be opened."""
        self.file = File(self.path)
        self.file.open()
        try:
            self._writer = await connect(self.path, descriptor=self.file.descriptor)
        except BaseException:
            self.file.close()
            raise
        self.file.watch()
        if self.file.is_new:
            _log.warning("database.created", path=self.path)
        self._readers, self._is_lost = Readers(self.file), False
        self._stream = asyncio.create_task(self._commit_stream(), name="commit-stream")

    async def close(self) -> None:
        """Commit the queue, then close every connection."""
        stream, self._stream = self._stream, None
        self._retry()
        if stream:
            await stream
        self._queue.clear()
        if self._checkpoint_timer:
            self._checkpoint_timer.cancel()
        if self._checkpoint:
            await self._checkpoint
        await self._readers.close()
        if self._writer:
            await self._writer.close()
            self._writer = None
        self.file.close()

    async def migrate(self) -> list[str]:
        """Apply the missing migrations; return their names. StorageError for any other file."""
        try:
            return await self.apply(schema.migrate)
        except StorageError as error:
            if error.__cause__ is None:
                raise  # It says itself what is wrong with the schema.
            raise StorageError(f"cannot migrate {self.path}: {error.__cause__}") from error

    @property
    def schema_version(self) -> int:
        """The version of the schema that this genhook needs."""
        return schema.latest()

    async def order_events(self) -> None:
        """Nothing: an event has its place in the order when it is committed."""

    async def schema_problem(self) -> str | None:
        """Return what is wrong with the file or the version of its schema, or None."""
        return self.file.problem() or self.file.damage or await self._readers.read(schema.problem)

    async def write_problem(self) -> str | None:
        """Return why commits fail, or None. It tries one if there was none for a while."""
        now = asyncio.get_running_loop().time()
        if self._queue.is_stalled:
            return STALLED
        if now - self._failed_at < FAILING_SECONDS:
            return self._failure
        if now - self._committed_at < PROBE_SECONDS:
            return None
        if self._probe is None or self._probe.done():
            self._probe = asyncio.ensure_future(self._try_commit())
        return await asyncio.shield(self._probe)

    async def _try_commit(self) -> str | None:
        try:
            await self.write(_touch)
        except StorageError as error:
            return str(error)
        return None

    def write(
        self, unit: Unit[T], *args: object, tenant: str | None = None, held_bytes: int = 0
    ) -> Awaitable[T]:
        """Run `unit(tx, *args)`. The awaitable returns its result after the commit."""
        return self._enqueue(Item(unit, args, tenant=tenant, held_bytes=held_bytes))

    def write_batched(
        self,
        unit: Unit[Sequence[T]],
        item: object,
        *,
        tenant: str | None = None,
        held_bytes: int = 0,
        may_wait: bool = False,
    ) -> Awaitable[T]:
        """Like `write`, for a unit over a list: one call gets all items that wait for it."""
        new = Item(unit, (item,), batched=True, tenant=tenant, held_bytes=held_bytes)
        return self._enqueue(new, may_wait=may_wait)

    def write_always(self, unit: Unit[T], *args: object, tenant: str | None = None) -> Awaitable[T]:
        """Like `write`, but never refused: retried every second until stored or closed."""
        return self._enqueue(Item(unit, args, always=True, tenant=tenant))

    async def read(self, unit: Unit[T], *args: object) -> T:
        """Run `unit(tx, *args)`, a short one, on a snapshot, in parallel with the writer."""
        return await self._readers.read(group.read, unit, args, self._clock())

    async def search(self, tenant: str, unit: Unit[T], *args: object) -> T:
        """Like `read`, for a unit that may take long: one of a tenant at a time."""
        return await self._readers.search(tenant, group.read, unit, args, self._clock())

    async def apply(self, do: Callable[..., T], *args: object) -> T:
        """Run `do(connection, *args)` on the writer's thread, between two groups."""
        assert self._writer is not None
        try:
            return await self._writer.apply(do, *args)
        except sqlite3.Error as error:
            raise StorageError(f"the database failed: {error}") from error

    def holds(self, _id: str) -> bool:
        """Who works on a file does all of its work."""
        return True

    def hand_over(self, _id: str) -> bool:
        """Others see by themselves that something was committed."""
        return True

    @property
    def queued(self) -> int:
        """The number of units that wait for the next group."""
        return len(self._queue)

    def _enqueue(self, item: Item, *, may_wait: bool = False) -> Awaitable[Any]:
        if self._stream is None:
            raise StorageError("the database is closed")
        self._queue.put(item)
        if not may_wait:
            self._wake.set()
        elif self._wake_timer is None:
            loop = asyncio.get_running_loop()
            self._wake_timer = loop.call_later(PATIENCE_SECONDS, self._wake.set)
        return item.future

    async def _commit_stream(self) -> None:
        assert self._writer is not None
        while self._queue or self._stream is not None:
            await self._wake.wait()
            if self._wake_timer is not None:
                self._wake_timer.cancel()
                self._wake_timer = None
            items = self._queue.take()
            if not self._queue and self._stream is not None:
                self._wake.clear()
            if items:
                await self._commit(self._writer, items)

    async def _reopen(self, writer: Connection) -> None:
        """Open every connection anew, since SQLite keeps for ever what it opened for reading only.

        The readers too: all connections of a process share the index of the WAL, and how it was
        opened. The lock on the file is this object's own and stays.
        """
        self.file.look()  # To go on with another file would hide the loss.
        self._is_lost = False
        async with self._readers.kept_closed():
            await writer.drop()
            with contextlib.suppress(sqlite3.Error):  # The commit tries it again, and tells.
                await writer.apply(schema.version)
            self.file.watch()
        _log.info("database.reopened")

    async def _commit(self, writer: Connection, items: Sequence[Item]) -> None:
        failure: Exception | None = None
        after: group.AfterCommit = []
        loop = asyncio.get_running_loop()
        try:
            self.file.check(loop.time())
            if self._is_lost:
                await self._reopen(writer)
            after = await writer.apply(group.commit_group, items, self._clock())
        except Exception as error:  # noqa: BLE001  it becomes every caller's error
            failure = error
        self._note(loop.time(), [failure] if failure else [item.error for item in items])
        left = [] if failure else [item for item in items if not (item.has_run or item.error)]
        self._queue.finish(items, left)
        if left:
            self._wake.set()
            items = [item for item in items if item.has_run or item.error]
        if self._checkpoint_timer is None:
            self._checkpoint_timer = loop.call_later(CHECKPOINT_SECONDS, self._start_checkpoint)
        self._keep_or_resolve(items, failure)
        for do, args in after:
            try:
                do(*args)
            except Exception:  # noqa: BLE001  later commits must still happen
                _log.exception("commit.follow_up_failed")

    def _keep_or_resolve(self, items: Sequence[Item], failure: Exception | None) -> None:
        """Give the items their results, except those to try again: while it closes, none is."""
        retried: list[Item] = []
        if self._stream is not None:
            retried = [
                i for i in items if i.always and group.is_storage_failure(failure or i.error)
            ]
        _resolve([item for item in items if item not in retried], failure)
        if retried:
            error = failure or retried[0].error
            _log.error("commit.failed", error=str(error), retried=len(retried))
            self._retried += retried
            if self._retry_timer is None:
                loop = asyncio.get_running_loop()
                self._retry_timer = loop.call_later(RETRY_SECONDS, self._retry)

    def _note(self, now: float, errors: Sequence[BaseException | None]) -> None:
        """Remember how a commit ended, for `write_problem`."""
        failed = [error for error in errors if error is not None]
        failure = next(filter(_is_of_database, failed), None)
        self.file.note(failure)
        self._is_lost |= any(map(is_lost, failed))
        if failure is not None:
            self._failed_at, self._failure = now, str(failure)
        elif len(failed) < len(errors):
            self._committed_at = now

    def _retry(self) -> None:
        """Queue the items of `write_always` again that could not be stored."""
        if self._retry_timer is not None:
            self._retry_timer.cancel()
            self._retry_timer = None
        items, self._retried = self._retried, []
        for item in items:
            item.error = None
            self._queue.put(item)
        self._wake.set()

    def _start_checkpoint(self) -> None:
        self._checkpoint = asyncio.create_task(self._run_checkpoint(), name="checkpoint")

    async def _run_checkpoint(self) -> None:
        """Run a checkpoint on the writer, between two groups.

        In parallel with commits it would never let the WAL start over, so that a commit would have
        to run it after all; and SQLite before 3.51.3 may lose a commit when it resets the WAL
        meanwhile.
        """
        self.file.problem()  # Before the checkpoint fills up what was cut off.
        try:
            await self.apply(checkpoint)
        except StorageError as error:
            _log.warning("checkpoint.failed", error=str(error))  # The next checkpoint does more.
        finally:
            self._checkpoint_timer = None


async def _touch(tx: Transaction) -> None:
    """Write a row as it is: whether the disk takes it is all that is asked."""
    await tx.run("subscribers_touch_revision")
