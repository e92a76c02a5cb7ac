"""SQLite: one writer that commits units in groups, and readers in parallel (docs/decisions/0002).

Statements on SQLite block, so a whole group of units runs on the writer's thread without a switch.
The units that queue up during a commit are the next group. There is no timer: a single unit is
committed at once, and under load many units share one commit. Only units that may wait, such as
records of attempts, wait a moment for others: each commit costs a sync of the disk.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Sequence

from service.model.clock import Clock, now_ms
from service.model.errors import StorageError
from service.store import writes
from service.store.database import AfterCommit, T, Unit
from service.store.item import Item
from service.store.sqlite import group, schema
from service.store.sqlite.connection import (
    Connection,
    checkpoint,
    connect,
    is_storage_fault,
    must_reopen,
)
from service.store.sqlite.file import File, LostFileError
from service.store.sqlite.readers import Readers
from service.store.writes import follow_up, wait_for_end
from service.telemetry import log

_log = log.get()

CHECKPOINT_SECONDS = 0.25  # Often, so that each one is short.


def _may_succeed_later(error: BaseException | None) -> bool:
    """Whether a retry makes sense: not if the file is damaged."""
    return isinstance(error, sqlite3.OperationalError) and is_storage_fault(error)


class Database(writes.Database):
    """The database of one process; see store/writes.py."""

    def __init__(self, path: str, *, clock: Clock = now_ms, queue_max: int = 10_000) -> None:
        super().__init__(queue_max)
        self.path = path
        self._clock = clock
        self.file = File(path)
        self._readers = Readers(self.file)
        self._writer: Connection | None = None
        self._must_reopen = False  # The connections have to be opened anew before the next group.
        self._checkpoint_timer: asyncio.TimerHandle | None = None
        self._checkpoint: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open the writer's connection. StorageError if the file cannot be opened."""
        self.file = File(self.path)
        self.file.open()
        try:
            self._writer = await connect(self.path, descriptor=self.file.descriptor)
            self.file.watch()
        except BaseException as error:
            await self.close()
            if isinstance(error, LostFileError):
                raise StorageError(str(error)) from error
            raise
        if self.file.is_new:
            _log.warning("database.created", path=self.path)
        self._readers, self._must_reopen = Readers(self.file), False
        self._stream = asyncio.create_task(self._commit_stream(), name="commit-stream")

    async def close(self) -> None:
        """Commit the queue, then close every connection, whatever is cancelled meanwhile."""
        async with contextlib.AsyncExitStack() as stack:  # In reverse.
            stack.callback(self.file.close)
            stack.push_async_callback(self._close_writer)
            stack.push_async_callback(self._readers.close)
            stack.push_async_callback(self._end_checkpoint)
            await self._end_stream()

    async def _end_checkpoint(self) -> None:
        if self._checkpoint_timer:
            self._checkpoint_timer.cancel()
            self._checkpoint_timer = None
        if self._checkpoint:
            await wait_for_end(self._checkpoint)

    async def _close_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer:
            await writer.close()

    async def migrate(self) -> list[str]:
        """Apply the missing migrations; return their names. StorageError if that is impossible."""
        try:
            return await self.apply(schema.migrate)
        except StorageError as error:
            if error.__cause__ is None:
                raise  # Its message says what is wrong with the schema.
            raise StorageError(f"cannot migrate {self.path}: {error.__cause__}") from error

    @property
    def schema_version(self) -> int:
        """The version of the schema that this genhook needs."""
        return schema.latest()

    async def order_events(self, seconds: float | None = None) -> None:
        """Do nothing: on SQLite an event has its `seq` as soon as it is committed."""

    async def schema_problem(self) -> str | None:
        """Return what is wrong with the file or the version of its schema, or None."""
        problem = self.file.find_problem() or self.file.damage
        return problem or await self._readers.read(schema.problem)

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
            self.file.note(error)
            raise StorageError(f"the database failed: {error}") from error

    def holds(self, _id: str) -> bool:
        """Return True: one process does all the work on a file."""
        return True

    def hand_over(self, _id: str) -> bool:
        """Return True: other processes notice commits by themselves (PRAGMA data_version)."""
        return True

    async def _commit_stream(self) -> None:
        assert self._writer is not None
        while self._queue or self._stream is not None:
            await self._wait_for_items()
            self._wake.clear()
            items = self._queue.take()
            if items and self._queue:
                self._wake.set()
            if items:
                await self._commit(self._writer, items)

    async def _reopen(self, writer: Connection) -> None:
        """Open every connection anew, since a connection opens no file a second time.

        The readers too: all connections of a process share the index of the WAL, and the mode in
        which it was opened. The right to work, a lock on the descriptor of `self.file`, stays.
        """
        self.file.require_safe()  # To go on with another file would hide the loss.
        async with self._readers.kept_closed():
            await writer.drop()
            with contextlib.suppress(sqlite3.Error):  # The commit meets the error, too.
                await writer.apply(schema.version)
            self.file.watch()
        self._must_reopen = False
        _log.info("database.reopened")

    async def _commit(self, writer: Connection, items: Sequence[Item]) -> None:
        after: AfterCommit = []
        loop = asyncio.get_running_loop()
        try:
            self.file.check(loop.time())
            if self._must_reopen:
                await self._reopen(writer)
            items = self._queue.drop_refused(items)
            if items:
                after = await writer.apply(group.commit_group, items, self._clock())
        except Exception as error:  # noqa: BLE001  it becomes every caller's error
            for item in items:
                item.error = error
        self._note(loop.time(), [item.error for item in items])
        left = [item for item in items if not (item.has_run or item.error)]
        if left:
            items = [item for item in items if item.has_run or item.error]
        self._queue.finish(items)  # Also of none: the writer is free again.
        if left:
            self._queue.put_back(left)
            self._wake.set()
        if self._checkpoint_timer is None:
            self._checkpoint_timer = loop.call_later(CHECKPOINT_SECONDS, self._start_checkpoint)
        self._keep_or_resolve(items)
        follow_up(after)

    def _keep_or_resolve(self, items: Sequence[Item]) -> None:
        """Give the items their results, except those that are tried again."""
        failed = [item for item in items if item.always and _may_succeed_later(item.error)]
        if failed:
            given_up = self._plan_retries(failed, str(failed[0].error))
            items = [item for item in items if item not in failed] + given_up
        for item in items:
            error = item.error
            if is_storage_fault(error):
                error = StorageError(f"the database failed: {error}")
            item.resolve(error)

    def _note(self, now: float, errors: Sequence[BaseException | None]) -> None:
        """Remember how a commit ended, for `write_problem`."""
        failed = [error for error in errors if error is not None]
        failure = next(filter(is_storage_fault, failed), None)
        self.file.note(failure)
        self._must_reopen |= any(map(must_reopen, failed))
        if failure is not None:
            self._failed_at, self._failure = now, str(failure)
        elif len(failed) < len(errors):
            self._committed_at = now

    def _start_checkpoint(self) -> None:
        self._checkpoint = asyncio.create_task(self._run_checkpoint(), name="checkpoint")

    async def _run_checkpoint(self) -> None:
        """Run a checkpoint on the writer, between two groups.

        In parallel with commits it would never let the WAL start over, so that a commit would have
        to run it after all; and SQLite before 3.51.3 may lose a commit when it resets the WAL
        meanwhile.
        """
        with contextlib.suppress(OSError):  # The next commit tells of it.
            self.file.note_cut()
        try:
            await self.apply(checkpoint)
        except StorageError as error:
            _log.warning("checkpoint.failed", error=str(error))  # The next checkpoint does more.
        finally:
            self._checkpoint_timer = None
