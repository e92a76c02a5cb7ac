"""SQLite: one writer with one commit stream, readers beside it, and the transactions they run.

On SQLite a transaction never waits, so a whole group of units runs on the connection's thread in
one go. The units that queue up while a commit runs are the next group: there is no timer, so a
lone unit pays for one commit and a crowd shares it (docs/decisions/0002).
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
        """Return the rows of SQL that is put together from fixed parts."""
        return self._connection.execute(sql, values).fetchall()

    def after_commit(self, do: Callable[..., None], *args: object) -> None:
        """Call `do` on the event loop once the transaction is durable."""
        self._after.append((do, args))


class _Item:
    """A unit in the queue. Items of the same batched unit run as one call over all of them."""

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


def _complete(unit: Coroutine[Any, Any, T]) -> T:
    """Run a unit that never waits to its end."""
    try:
        unit.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    unit.close()
    raise AssertionError("a unit of work awaited something that is not its transaction")


def _batches(items: Sequence[_Item]) -> Iterable[list[_Item]]:
    """Return the group in order, all items of one batched unit together."""
    batches: dict[object, list[_Item]] = {}
    for item in items:
        batches.setdefault(item.unit if item.batched else item, []).append(item)
    return batches.values()


def _run(
    connection: sqlite3.Connection, batch: Sequence[_Item], now: int, after: AfterCommit
) -> None:
    """Run one unit, or a batched unit over its items."""
    unit, transaction = batch[0].unit, Transaction(connection, now, after)
    if not batch[0].batched:
        batch[0].result = _complete(unit(transaction, *batch[0].args))
        return
    results = _complete(unit(transaction, [item.args[0] for item in batch]))
    for item, result in zip(batch, results, strict=True):
        item.result = result


def _run_alone(connection: sqlite3.Connection, item: _Item, now: int, after: AfterCommit) -> None:
    """Run one unit of a group that failed, so that it fails alone if it fails again."""
    own: AfterCommit = []
    connection.execute("SAVEPOINT unit")
    try:
        _run(connection, [item], now, own)
    except BaseException as error:
        if not connection.in_transaction:
            raise  # SQLite rolled back everything, as when the disk is full: the group has failed.
        connection.execute("ROLLBACK TO unit")
        item.error = error
    else:
        after.extend(own)
    connection.execute("RELEASE unit")


def _run_group(connection: sqlite3.Connection, items: Sequence[_Item], now: int) -> AfterCommit:
    """Run the units as they are: a savepoint for each would make SQLite copy every page."""
    after: AfterCommit = []
    for batch in _batches(items):
        _run(connection, batch, now, after)
    return after


def _run_apart(connection: sqlite3.Connection, items: Sequence[_Item], now: int) -> AfterCommit:
    """Run each unit by itself."""
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
    """Commit the items in one transaction; if one of them fails, it alone is left out."""
    try:
        return _in_transaction(connection, _run_group, items, now)
    except Exception as error:
        if len(items) == 1 or _is_storage_failure(error):
            raise  # Running them again would fail in the same way.
    return _in_transaction(connection, _run_apart, items, now)


def _read(connection: sqlite3.Connection, unit: Unit[T], args: tuple[Any, ...], now: int) -> T:
    connection.execute("BEGIN")
    try:
        return _complete(unit(Transaction(connection, now, []), *args))
    finally:
        connection.execute("ROLLBACK")


def _is_storage_failure(error: BaseException | None) -> bool:
    """True if the disk or a lock is at fault, not the unit: it may pass."""
    return isinstance(error, sqlite3.OperationalError)


def _storage_error(error: BaseException) -> BaseException:
    if isinstance(error, sqlite3.IntegrityError) or not isinstance(error, sqlite3.Error):
        return error
    return StorageError(f"the database failed: {error}")


def _settle(items: Sequence[_Item], failure: BaseException | None) -> None:
    """Give every item's caller its result or its error."""
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
        retry = item.lasting and _is_storage_failure(failure or item.error)
        (retried if retry else resolved).append(item)
    return resolved, retried


def _call(do: Callable[..., None], args: tuple[Any, ...]) -> None:
    """Call what follows a commit; its failure must not end the commit stream."""
    try:
        do(*args)
    except Exception:  # noqa: BLE001  see above
        _log.exception("commit.follow_up_failed")


class Database:
    """The database of one process; see store/database.py. `close` finishes the queue."""

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
        """Open the writer. StorageError if the file cannot be used."""
        try:
            self._writer = await connect(self.path, writes=True)
        except sqlite3.Error as error:
            raise StorageError(f"cannot open {self.path}: {error}") from error
        self._stream = asyncio.create_task(self._commit_stream(), name="commit-stream")

    async def close(self) -> None:
        """Commit what is queued, then close every connection."""
        stream, self._stream = self._stream, None
        self._retry()
        if stream:
            await stream
        _settle(self._retried, StorageError("the database is closed"))
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
        """Bring the schema to this version; return the names of the migrations applied.

        StorageError if a newer version made the database, or if the file is no database.
        """
        try:
            return await self.apply(schema.migrate)
        except sqlite3.Error as error:
            raise StorageError(f"cannot migrate {self.path}: {error}") from error

    async def schema_problem(self) -> str | None:
        """Return why the schema is not this version's, None if it is."""
        return await self._on_reader(schema.problem)

    def write(self, unit: Unit[T], *args: object) -> Awaitable[T]:
        """Run `unit(tx, *args)`; its result once it is committed."""
        return self._enqueue(_Item(unit, args))

    def write_batched(self, unit: Unit[Sequence[T]], item: object) -> Awaitable[T]:
        """Like `write`, for a unit over a list: items that wait together share one call."""
        return self._enqueue(_Item(unit, (item,), batched=True))

    def write_always(self, unit: Unit[T], *args: object) -> Awaitable[T]:
        """Like `write`, but never refused: retried every second until stored or closed."""
        return self._enqueue(_Item(unit, args, lasting=True))

    async def read(self, unit: Unit[T], *args: object) -> T:
        """Run `unit(tx, *args)` on a snapshot, beside the writer."""
        result: T = await self._on_reader(_read, unit, args, self._clock())
        return result

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
        except Exception as error:  # noqa: BLE001  every caller gets it
            failure = error
        self._plan_checkpoint()
        resolved, retried = _split_retried(items, failure)
        _settle(resolved, failure)
        if retried:
            cause = str(failure or retried[0].error)
            _log.error("commit.failed", error=cause, retried=len(retried))
            self._retried += retried
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._retry)
        for do, args in after:
            _call(do, args)

    def _retry(self) -> None:
        """Queue what must be stored once more."""
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
        """Twice a second while there are commits, beside them, on a reader's thread."""
        try:
            await self._on_reader(checkpoint)
        except StorageError as error:
            _log.warning("checkpoint.failed", error=str(error))  # The next one catches up.
        finally:
            self._checkpoint_timer = None
