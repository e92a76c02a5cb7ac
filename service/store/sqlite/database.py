"""SQLite: one writer that commits units in groups, and readers in parallel (docs/decisions/0002).

Statements on SQLite block, so a whole group of units runs on the writer's thread without a switch.
The units that queue up during a commit are the next group. There is no timer: a single unit is
committed at once, and under load many units share one commit.
"""

import asyncio
import sqlite3
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from service.model.clock import Clock, now_ms
from service.model.errors import StorageBusyError, StorageError
from service.store.database import Row, Unit
from service.store.sqlite import schema
from service.store.sqlite.connection import Connection, checkpoint, connect
from service.store.sqlite.statements import statements
from service.telemetry import log

_log = log.get()
T = TypeVar("T")
AfterCommit = list[tuple[Callable[..., None], tuple[Any, ...]]]

GROUP_MAX = 512
READERS = 2
CHECKPOINT_SECONDS = 0.5
RETRY_SECONDS = 1.0


class Transaction:
    """A transaction on one connection; see store/database.py."""

    __slots__ = ("_after", "_connection", "now")

    def __init__(self, connection: sqlite3.Connection, now: int, after: AfterCommit) -> None:
        self._connection = connection
        self._after = after
        self.now = now

    async def one(self, name: str, /, **values: object) -> Row | None:
        """Return the first row of the statement, or None."""
        row: Row | None = self._connection.execute(statements()[name], values).fetchone()
        return row

    async def all(self, name: str, /, **values: object) -> list[Row]:
        """Return every row of the statement."""
        return self._connection.execute(statements()[name], values).fetchall()

    def each(self, name: str, /, **values: object) -> Iterable[Row]:
        """Iterate over the rows of the statement."""
        return self._connection.execute(statements()[name], values)

    async def run(self, name: str, /, **values: object) -> int:
        """Execute the statement; return how many rows it changed."""
        return self._connection.execute(statements()[name], values).rowcount

    async def many(self, name: str, rows: Iterable[Mapping[str, object]]) -> int:
        """Execute the statement once for each of `rows`; return how many table rows changed."""
        return self._connection.executemany(statements()[name], rows).rowcount

    async def select(self, sql: str, values: Mapping[str, object]) -> list[Row]:
        """Return the rows of SQL that the code has composed."""
        return self._connection.execute(sql, values).fetchall()

    def after_commit(self, do: Callable[..., None], *args: object) -> None:
        """Call `do` on the event loop after the commit."""
        self._after.append((do, args))


class _Item:
    """A unit in the queue. Items of the same batched unit run in one call."""

    __slots__ = ("always", "args", "batched", "error", "future", "result", "unit")

    def __init__(
        self,
        unit: Unit[Any],
        args: tuple[Any, ...],
        *,
        batched: bool = False,
        always: bool = False,
    ) -> None:
        self.unit, self.args, self.batched, self.always = unit, args, batched, always
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.result: Any = None
        self.error: BaseException | None = None


def _run_unit(unit: Coroutine[Any, Any, T]) -> T:
    """Run a unit to its end, without an event loop."""
    try:
        unit.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    unit.close()
    raise AssertionError("a unit of work awaited something that is not its transaction")


def _batches(items: Sequence[_Item]) -> Iterable[list[_Item]]:
    """Split a group into single units and batches, which hold all items of one batched unit."""
    batches: dict[object, list[_Item]] = {}
    for item in items:
        batches.setdefault(item.unit if item.batched else item, []).append(item)
    return batches.values()


def _run(
    connection: sqlite3.Connection, batch: Sequence[_Item], now: int, after: AfterCommit
) -> None:
    """Run one unit, or one batched unit with all its items."""
    unit, transaction = batch[0].unit, Transaction(connection, now, after)
    if not batch[0].batched:
        batch[0].result = _run_unit(unit(transaction, *batch[0].args))
        return
    results = _run_unit(unit(transaction, [item.args[0] for item in batch]))
    for item, result in zip(batch, results, strict=True):
        item.result = result


def _run_alone(connection: sqlite3.Connection, item: _Item, now: int, after: AfterCommit) -> None:
    """Run one unit of a failed group in a savepoint, so that only this unit fails if it raises."""
    own: AfterCommit = []
    connection.execute("SAVEPOINT unit")
    try:
        _run(connection, [item], now, own)
    except BaseException as error:
        if not connection.in_transaction:
            raise  # SQLite has rolled back the transaction, as on a full disk: the group fails.
        connection.execute("ROLLBACK TO unit")
        item.error = error
    else:
        after.extend(own)
    connection.execute("RELEASE unit")


def _run_group(connection: sqlite3.Connection, items: Sequence[_Item], now: int) -> AfterCommit:
    """Run the units without savepoints, which would make SQLite copy every changed page."""
    after: AfterCommit = []
    for batch in _batches(items):
        _run(connection, batch, now, after)
    return after


def _run_each(connection: sqlite3.Connection, items: Sequence[_Item], now: int) -> AfterCommit:
    """Run each unit in a savepoint of its own."""
    after: AfterCommit = []
    for item in items:
        _run_alone(connection, item, now, after)
    return after


def _in_transaction(
    connection: sqlite3.Connection,
    run: Callable[[sqlite3.Connection, Sequence[_Item], int], AfterCommit],
    items: Sequence[_Item],
    now: int,
) -> AfterCommit:
    connection.execute("BEGIN IMMEDIATE")
    try:
        after = run(connection, items, now)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return after


def _commit_group(connection: sqlite3.Connection, items: Sequence[_Item], now: int) -> AfterCommit:
    """Commit the items in one transaction, without those that fail."""
    try:
        return _in_transaction(connection, _run_group, items, now)
    except Exception as error:
        if len(items) == 1 or _is_storage_failure(error):
            raise  # A second run would fail in the same way.
    return _in_transaction(connection, _run_each, items, now)


def _read(connection: sqlite3.Connection, unit: Unit[T], args: tuple[Any, ...], now: int) -> T:
    connection.execute("BEGIN")
    try:
        return _run_unit(unit(Transaction(connection, now, []), *args))
    finally:
        connection.execute("ROLLBACK")


def _is_storage_failure(error: BaseException | None) -> bool:
    """Return whether the disk or a lock is at fault, not the unit: a retry may succeed."""
    return isinstance(error, sqlite3.OperationalError)


def _storage_error(error: BaseException) -> BaseException:
    if isinstance(error, sqlite3.IntegrityError) or not isinstance(error, sqlite3.Error):
        return error
    return StorageError(f"the database failed: {error}")


def _resolve(items: Sequence[_Item], failure: BaseException | None) -> None:
    """Set the result or the error of every item's future."""
    for item in items:
        if item.future.done():
            continue
        error = failure or item.error
        if error is None:
            item.future.set_result(item.result)
        else:
            item.future.set_exception(_storage_error(error))


def _split_retried(
    items: Sequence[_Item], failure: Exception | None
) -> tuple[list[_Item], list[_Item]]:
    """Split items into those to resolve now and those to retry."""
    resolved: list[_Item] = []
    retried: list[_Item] = []
    for item in items:
        retry = item.always and _is_storage_failure(failure or item.error)
        (retried if retry else resolved).append(item)
    return resolved, retried


def _call_after_commit(do: Callable[..., None], args: tuple[Any, ...]) -> None:
    """Call a function after a commit. If it raises, later commits must still happen."""
    try:
        do(*args)
    except Exception:  # noqa: BLE001  see above
        _log.exception("commit.follow_up_failed")


class Database:
    """The database of one process; see store/database.py."""

    def __init__(self, path: str, *, clock: Clock = now_ms, queue_max: int = 10_000) -> None:
        self.path = path
        self._clock = clock
        self._queue: deque[_Item] = deque()
        self._queue_max = queue_max
        self._retried: list[_Item] = []
        self._wake = asyncio.Event()
        self._readers: asyncio.Queue[Connection] = asyncio.Queue()
        self._reader_count = 0
        self._writer: Connection | None = None
        self._stream: asyncio.Task[None] | None = None
        self._checkpoint_timer: asyncio.TimerHandle | None = None
        self._checkpoint: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open the writer's connection. StorageError if the file cannot be opened."""
        try:
            self._writer = await connect(self.path, writes=True)
        except sqlite3.Error as error:
            raise StorageError(f"cannot open {self.path}: {error}") from error
        self._stream = asyncio.create_task(self._commit_stream(), name="commit-stream")

    async def close(self) -> None:
        """Commit the queue, then close every connection."""
        stream, self._stream = self._stream, None
        self._retry()
        if stream:
            await stream
        _resolve(self._retried, StorageError("the database is closed"))
        if self._checkpoint_timer:
            self._checkpoint_timer.cancel()
        if self._checkpoint:
            await self._checkpoint
        for _ in range(self._reader_count):
            await (await self._readers.get()).close()
        self._reader_count = 0
        if self._writer:
            await self._writer.close()
            self._writer = None

    async def migrate(self) -> list[str]:
        """Apply the missing migrations; return their names.

        StorageError if a newer genhook made the database, or if the file is not a database.
        """
        try:
            return await self.apply(schema.migrate)
        except sqlite3.Error as error:
            raise StorageError(f"cannot migrate {self.path}: {error}") from error

    async def schema_problem(self) -> str | None:
        """Return what is wrong with the version of the schema, or None."""
        return await self._on_reader(schema.problem)

    def write(self, unit: Unit[T], *args: object) -> Awaitable[T]:
        """Run `unit(tx, *args)`. The awaitable returns its result after the commit."""
        return self._enqueue(_Item(unit, args))

    def write_batched(self, unit: Unit[Sequence[T]], item: object) -> Awaitable[T]:
        """Like `write`, for a unit over a list: one call gets all items that wait for it."""
        return self._enqueue(_Item(unit, (item,), batched=True))

    def write_always(self, unit: Unit[T], *args: object) -> Awaitable[T]:
        """Like `write`, but never refused: retried every second until stored or closed."""
        return self._enqueue(_Item(unit, args, always=True))

    async def read(self, unit: Unit[T], *args: object) -> T:
        """Run `unit(tx, *args)` on a snapshot, in parallel with the writer."""
        result: T = await self._on_reader(_read, unit, args, self._clock())
        return result

    async def apply(self, do: Callable[..., T], *args: object) -> T:
        """Run `do(connection, *args)` on the writer's thread, between two groups."""
        assert self._writer is not None
        return await self._writer.apply(do, *args)

    @property
    def queued(self) -> int:
        """The number of units that wait for the next group."""
        return len(self._queue)

    def _enqueue(self, item: _Item) -> Awaitable[Any]:
        if self._stream is None:
            raise StorageError("the database is closed")
        if len(self._queue) >= self._queue_max and not item.always:
            raise StorageBusyError("the queue in front of the database is full")
        self._queue.append(item)
        self._wake.set()
        return item.future

    async def _on_reader(self, do: Callable[..., T], *args: object) -> T:
        try:
            reader = await self._reader()
        except sqlite3.Error as error:
            raise StorageError(f"cannot open {self.path}: {error}") from error
        try:
            return await reader.apply(do, *args)
        except sqlite3.Error as error:
            raise StorageError(f"the database failed: {error}") from error
        finally:
            self._readers.put_nowait(reader)

    async def _reader(self) -> Connection:
        if self._readers.empty() and self._reader_count < READERS:
            self._reader_count += 1
            try:
                return await connect(self.path, writes=False)
            except BaseException:
                self._reader_count -= 1
                raise
        return await self._readers.get()

    async def _commit_stream(self) -> None:
        assert self._writer is not None
        while self._queue or self._stream is not None:
            if not self._queue:
                self._wake.clear()
                await self._wake.wait()
                continue
            items = [self._queue.popleft() for _ in range(min(len(self._queue), GROUP_MAX))]
            await self._commit(self._writer, items)

    async def _commit(self, writer: Connection, items: Sequence[_Item]) -> None:
        failure: Exception | None = None
        after: AfterCommit = []
        try:
            after = await writer.apply(_commit_group, items, self._clock())
        except Exception as error:  # noqa: BLE001  it becomes every caller's error
            failure = error
        self._plan_checkpoint()
        resolved, retried = _split_retried(items, failure)
        _resolve(resolved, failure)
        if retried:
            cause = str(failure or retried[0].error)
            _log.error("commit.failed", error=cause, retried=len(retried))
            self._retried += retried
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._retry)
        for do, args in after:
            _call_after_commit(do, args)

    def _retry(self) -> None:
        """Queue the items of `write_always` again that could not be stored."""
        items, self._retried = self._retried, []
        for item in items:
            item.error = None
        self._queue.extend(items)
        self._wake.set()

    def _plan_checkpoint(self) -> None:
        if self._checkpoint_timer is None:
            loop = asyncio.get_running_loop()
            self._checkpoint_timer = loop.call_later(CHECKPOINT_SECONDS, self._start_checkpoint)

    def _start_checkpoint(self) -> None:
        self._checkpoint = asyncio.create_task(self._run_checkpoint(), name="checkpoint")

    async def _run_checkpoint(self) -> None:
        """Run a checkpoint on a reader's thread, in parallel with commits."""
        try:
            await self._on_reader(checkpoint)
        except StorageError as error:
            _log.warning("checkpoint.failed", error=str(error))  # The next checkpoint does more.
        finally:
            self._checkpoint_timer = None
