"""SQLite: one writer with one commit stream, readers beside it, and the transactions they run.

A unit of work is `async def unit(tx, …)`. On SQLite a transaction never waits, so a whole group of
units runs on the connection's thread in one go; on another database the same units would wait.
What queues up while a commit runs is the next group: there is no timer, so a lone unit pays for
one commit and a crowd shares it.
"""

import asyncio
import sqlite3
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from service.model.clock import Clock, now_ms
from service.model.errors import StorageBusyError, StorageError
from service.store.sqlite.connection import Connection, checkpoint, connect
from service.store.sqlite.statements import statements
from service.telemetry import log

_log = log.get()
T = TypeVar("T")
Row = Mapping[str, Any]
Unit = Callable[..., Coroutine[Any, Any, T]]

GROUP_MAX = 512
READERS = 2
CHECKPOINT_SECONDS = 0.5
RETRY_SECONDS = 1.0


class Transaction:
    """One transaction: named statements in, rows out, and what to do once it is committed."""

    __slots__ = ("_after", "_connection", "now")

    def __init__(
        self,
        connection: sqlite3.Connection,
        now: int,
        after: list[tuple[Callable[..., None], tuple[Any, ...]]],
    ) -> None:
        self._connection = connection
        self._after = after
        self.now = now

    async def one(self, name: str, /, **values: object) -> Row | None:
        """The first row of the statement, or None."""
        found: Row | None = self._connection.execute(statements()[name], values).fetchone()
        return found

    async def all(self, name: str, /, **values: object) -> list[Row]:
        """Every row of the statement; the statement itself has a limit."""
        return self._connection.execute(statements()[name], values).fetchall()

    def each(self, name: str, /, **values: object) -> Iterable[Row]:
        """The rows of the statement one by one, for as long as they are wanted."""
        return self._connection.execute(statements()[name], values)

    async def run(self, name: str, /, **values: object) -> int:
        """Execute the statement; how many rows it changed."""
        return self._connection.execute(statements()[name], values).rowcount

    async def many(self, name: str, rows: Iterable[Mapping[str, object]]) -> int:
        """Execute the statement once for each of `rows`; how many rows of the table it changed."""
        return self._connection.executemany(statements()[name], rows).rowcount

    async def select(self, sql: str, values: Mapping[str, object]) -> list[Row]:
        """Rows of a statement put together from fixed parts, as lists with filters need."""
        return self._connection.execute(sql, values).fetchall()

    def after_commit(self, do: Callable[..., None], *args: object) -> None:
        """Call `do` on the event loop once this transaction is durable; never if it is not."""
        self._after.append((do, args))


def _complete(unit: Coroutine[Any, Any, T]) -> T:
    """Run a unit that never waits to its end."""
    try:
        unit.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    unit.close()
    raise AssertionError("a unit of work waited for something that is not its transaction")


class _Item:
    """A unit in the queue. Units with the same `batch` run as one call over all their items."""

    __slots__ = ("args", "batched", "error", "future", "lasting", "result", "unit")

    def __init__(
        self,
        unit: Unit[Any],
        args: tuple[Any, ...],
        *,
        batched: bool = False,
        lasting: bool = False,
    ) -> None:
        self.unit, self.args, self.batched, self.lasting = unit, args, batched, lasting
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.result: Any = None
        self.error: BaseException | None = None


After = list[tuple[Callable[..., None], tuple[Any, ...]]]


def _batches(items: Sequence[_Item]) -> Iterable[list[_Item]]:
    """The group in order, neighbours and strangers of one batched unit drawn together."""
    gathered: dict[Unit[Any], list[_Item]] = {}
    order: list[list[_Item]] = []
    for item in items:
        if item.batched and item.unit in gathered:
            gathered[item.unit].append(item)
        else:
            order.append([item])
            if item.batched:
                gathered[item.unit] = order[-1]
    return order


def _run(connection: sqlite3.Connection, batch: Sequence[_Item], now: int, after: After) -> None:
    """Run units that share a call, as one unit."""
    first, mine = batch[0], After()
    tx = Transaction(connection, now, mine)
    if first.batched:
        results = _complete(first.unit(tx, [item.args[0] for item in batch]))
        for item, result in zip(batch, results, strict=True):
            item.result = result
    else:
        first.result = _complete(first.unit(tx, *first.args))
    after.extend(mine)


def _run_batch(
    connection: sqlite3.Connection, batch: Sequence[_Item], now: int, after: After
) -> None:
    """Run units that share a call; if the call fails, each alone, so that one fails alone."""
    connection.execute("SAVEPOINT unit")
    try:
        _run(connection, batch, now, after)
    except BaseException as error:
        if not connection.in_transaction:
            raise  # SQLite gave up the whole transaction: the group failed, not the unit.
        connection.execute("ROLLBACK TO unit")
        if len(batch) > 1:
            for item in batch:
                _run_batch(connection, [item], now, after)
        else:
            batch[0].error = error
    finally:
        if connection.in_transaction:
            connection.execute("RELEASE unit")


def _commit_group(connection: sqlite3.Connection, items: Sequence[_Item], now: int) -> After:
    """One transaction for all of `items`, on the connection's own thread."""
    after: After = []
    connection.execute("BEGIN IMMEDIATE")
    try:
        if len(items) == 1:  # Its failure is the group's.
            _run(connection, items, now, after)
        else:
            for batch in _batches(items):
                _run_batch(connection, batch, now, after)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return after


def _read(connection: sqlite3.Connection, unit: Unit[T], args: tuple[Any, ...], now: int) -> T:
    connection.execute("BEGIN")
    try:
        return _complete(unit(Transaction(connection, now, []), *args))
    finally:
        connection.execute("ROLLBACK")


def _storage_error(error: BaseException) -> BaseException:
    if isinstance(error, sqlite3.IntegrityError) or not isinstance(error, sqlite3.Error):
        return error
    return StorageError(f"the database failed: {error}")


def _settle(items: Sequence[_Item], failure: BaseException | None) -> None:
    for item in items:
        if item.future.done():
            continue
        error = failure or item.error
        if error is None:
            item.future.set_result(item.result)
        else:
            item.future.set_exception(_storage_error(error))


def _parted(
    items: Sequence[_Item], failure: Exception | None
) -> tuple[Sequence[_Item], Sequence[_Item]]:
    """Those who are told what became of them, and those that are stored later."""
    told: list[_Item] = []
    kept: list[_Item] = []
    for item in items:
        passing = isinstance(failure or item.error, sqlite3.OperationalError)
        (kept if item.lasting and passing else told).append(item)
    return told, kept


def _call(do: Callable[..., None], args: tuple[Any, ...]) -> None:
    """What follows a commit is a convenience: its failure must not end the commit stream."""
    try:
        do(*args)
    except Exception:  # noqa: BLE001  see above
        _log.exception("commit.follow_up_failed")


class Database:
    """The database of one process: `write` and `read` run units, `close` finishes the queue."""

    def __init__(self, path: str, *, clock: Clock = now_ms, queue_max: int = 10_000) -> None:
        self.path = path
        self._clock = clock
        self._queue: deque[_Item] = deque()
        self._queue_max = queue_max
        self._refused: list[_Item] = []
        self._wake = asyncio.Event()
        self._readers: asyncio.Queue[Connection] = asyncio.Queue()
        self._reader_count = 0
        self._writer: Connection | None = None
        self._stream: asyncio.Task[None] | None = None
        self._checkpoint_timer: asyncio.TimerHandle | None = None
        self._checkpoint: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open the writer. StorageError if the file cannot be used."""
        try:
            self._writer = await connect(self.path, writes=True)
        except sqlite3.Error as error:
            raise StorageError(f"cannot open {self.path}: {error}") from error
        self._stream = asyncio.create_task(self._commit_stream(), name="commit-stream")

    async def close(self) -> None:
        """Commit what is queued, then close every connection."""
        stream, self._stream = self._stream, None
        self._again()
        if stream:
            await stream
        _settle(self._refused, StorageError("the database is closed"))
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

    def write(self, unit: Unit[T], *args: object) -> Awaitable[T]:
        """Run `unit(tx, *args)`; its result once it is committed.

        The awaitable raises StorageError if it could not be stored, or what the unit raised (then
        nothing of it is stored). StorageBusyError is raised at once where the queue is full.
        """
        return self._enqueue(_Item(unit, args))

    def write_batched(self, unit: Unit[Sequence[T]], item: object) -> Awaitable[T]:
        """As `write`, for a unit over a list: items that wait together share one call."""
        return self._enqueue(_Item(unit, (item,), batched=True))

    def write_always(self, unit: Unit[T], *args: object) -> Awaitable[T]:
        """As `write`, though the queue is full or the disk is: for what nobody will say again.

        It is tried every second until it is stored or the database is closed. Whoever calls it has
        a bound of his own.
        """
        return self._enqueue(_Item(unit, args, lasting=True))

    async def read(self, unit: Unit[T], *args: object) -> T:
        """Run `unit(tx, *args)` on a snapshot, beside the writer."""
        try:
            connection = await self._reader()
        except sqlite3.Error as error:
            raise StorageError(f"cannot open {self.path}: {error}") from error
        try:
            return await connection.apply(_read, unit, args, self._clock())
        except sqlite3.Error as error:
            raise StorageError(f"the database failed: {error}") from error
        finally:
            self._readers.put_nowait(connection)

    async def apply(self, do: Callable[..., T], *args: object) -> T:
        """Run `do(connection, *args)` on the writer's own thread, between two groups."""
        assert self._writer is not None
        return await self._writer.apply(do, *args)

    @property
    def queued(self) -> int:
        """How many units wait for the next group."""
        return len(self._queue)

    def _enqueue(self, item: _Item) -> Awaitable[Any]:
        if self._stream is None:
            raise StorageError("the database is closed")
        if len(self._queue) >= self._queue_max and not item.lasting:
            raise StorageBusyError("the queue in front of the database is full")
        self._queue.append(item)
        self._wake.set()
        return item.future

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

    def _start_checkpoint(self) -> None:
        self._checkpoint = asyncio.create_task(self._run_checkpoint(), name="checkpoint")

    async def _run_checkpoint(self) -> None:
        """Twice a second while there are commits, beside them, on a reader's thread."""
        try:
            reader = await self._reader()
            try:
                await reader.apply(checkpoint)
            finally:
                self._readers.put_nowait(reader)
        except sqlite3.Error as error:
            _log.warning("checkpoint.failed", error=str(error))  # The next one takes it all.
        finally:
            self._checkpoint_timer = None

    def _again(self) -> None:
        """Try what has to be stored once more."""
        refused, self._refused = self._refused, []
        for item in refused:
            item.error = None
        self._queue.extend(refused)
        self._wake.set()

    async def _commit(self, writer: Connection, items: Sequence[_Item]) -> None:
        failure: Exception | None = None
        after: After = []
        try:
            after = await writer.apply(_commit_group, items, self._clock())
        except Exception as error:  # noqa: BLE001  every waiter is told
            failure = error
        if self._checkpoint_timer is None:
            loop = asyncio.get_running_loop()
            self._checkpoint_timer = loop.call_later(CHECKPOINT_SECONDS, self._start_checkpoint)
        told, kept = _parted(items, failure)
        _settle(told, failure)
        if kept:
            _log.error("commit.failed", error=str(failure or kept[0].error), kept=len(kept))
            self._refused += kept
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._again)
        for do, args in after:
            _call(do, args)
