"""PostgreSQL by asyncpg: each unit in a transaction of its own, batched units in one for all items.

Some connections write at the same time; while all of them do, what comes waits in the same bounded
queue as on SQLite, and is the next batch. A unit that PostgreSQL could not order among the others
(SQLSTATE class 40) runs again.
"""

import asyncio
import contextlib
import math
import random  # noqa: TID251  two units that met must not meet again
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import asyncpg

from service.model.clock import Clock, now_ms
from service.model.errors import StorageError
from service.store.database import Row, T, Unit
from service.store.item import HEAVY_ROWS, Item
from service.store.postgres import schema
from service.store.postgres.connection import connect_arguments, is_failure, is_repeatable
from service.store.postgres.statements import DIALECT, statements
from service.store.queue import STALLED, Queue
from service.telemetry import log

_log = log.get()

CONNECTIONS = 10
WRITERS = 4  # Connections that write at the same time.
PREFETCH_ROWS = 20  # Of a statement whose rows are read one by one.
REPEATS_MAX = 8  # Of a unit that met others.
REPEAT_SECONDS = 0.01
RETRY_SECONDS = 1.0
NOTICE_SECONDS = 0.01  # Commits of so long are told by one notice.
PATIENCE_SECONDS = 0.02
FAILING_SECONDS = 5.0
PROBE_SECONDS = 10.0
CONNECT_SECONDS = 5.0
SEARCH_MS = 10_000
COMMAND_SECONDS = 30.0

AfterCommit = list[tuple[Callable[..., None], tuple[Any, ...]]]
Arguments = tuple[Any, ...]


class Transaction:
    """A transaction on one connection; see store/database.py."""

    __slots__ = ("_connection", "_database", "after", "charged", "now")

    def __init__(self, database: "Database", connection: Any, now: int) -> None:
        self._database = database
        self._connection = connection
        self.after: AfterCommit = []
        self.charged: Counter[str] = Counter()
        self.now = now

    async def one(self, name: str, /, **values: object) -> Row | None:
        """Return the first row of the statement, or None."""
        sql, bind = statements()[name]
        row: Row | None = await self._connection.fetchrow(sql, *_clean(bind(values)))
        return row

    async def all(self, name: str, /, **values: object) -> list[Row]:
        """Return every row of the statement."""
        sql, bind = statements()[name]
        rows: list[Row] = await self._connection.fetch(sql, *_clean(bind(values)))
        return rows

    async def each(self, name: str, /, **values: object) -> AsyncIterator[Row]:
        """Iterate over the rows of the statement."""
        sql, bind = statements()[name]
        async for row in self._cursor(sql, bind(values)):
            yield row

    async def run(self, name: str, /, **values: object) -> int:
        """Execute the statement; return how many rows it changed."""
        sql, bind = statements()[name]
        status: str = await self._connection.execute(sql, *_clean(bind(values)))
        return int(status.rpartition(" ")[2])

    async def many(self, name: str, rows: Iterable[Mapping[str, object]]) -> None:
        """Execute the statement once for each of `rows`, all in one exchange with the server."""
        sql, bind = statements()[name]
        arguments = [_clean(bind(row)) for row in rows]
        if arguments:
            await self._connection.executemany(sql, arguments)

    async def select(self, sql: str, values: Mapping[str, object]) -> list[Row]:
        """Return the rows of SQL that the code has composed."""
        statement = DIALECT.compose(sql)
        rows: list[Row] = await self._connection.fetch(
            statement.sql, *_clean(statement.bind(values))
        )
        return rows

    async def scan(self, sql: str, values: Mapping[str, object]) -> AsyncIterator[Row]:
        """Iterate over the rows of SQL that the code has composed."""
        statement = DIALECT.compose(sql)
        async for row in self._cursor(statement.sql, statement.bind(values)):
            yield row

    async def lock(self, name: str, /, **values: object) -> None:
        """Lock rows until the end of the transaction."""
        await self.all(name, **values)

    async def order_events(self) -> None:
        """Give every committed event its place in the order, on a connection of its own."""
        await self._database.order_events()

    def after_commit(self, do: Callable[..., None], *args: object) -> None:
        """Call `do` on the event loop after the commit."""
        self.after.append((do, args))

    def charge(self, tenant: str, rows: int) -> None:
        """Count rows that are written on account of a tenant, where they may be many."""
        self.charged[tenant] += rows

    async def _cursor(self, sql: str, arguments: Arguments) -> AsyncIterator[Row]:
        async for row in self._connection.cursor(sql, *_clean(arguments), prefetch=PREFETCH_ROWS):
            yield row


def _clean(arguments: Arguments) -> Arguments:
    """Replace the character NUL, which PostgreSQL does not take in text."""
    for value in arguments:
        if type(value) is str and "\0" in value:
            return tuple(v.replace("\0", "\ufffd") if isinstance(v, str) else v for v in arguments)
    return arguments


class Database:
    """The database of one process; see store/database.py."""

    def __init__(
        self,
        url: str,
        *,
        clock: Clock = now_ms,
        queue_max: int = 10_000,
        connections: int = CONNECTIONS,
    ) -> None:
        self.url = url
        self._clock = clock
        self._connections = connections
        self._queue = Queue(queue_max)
        self._pool: Any = None
        self._writers = asyncio.Semaphore(max(1, min(WRITERS, connections - 1)))
        self._wake = asyncio.Event()
        self._wake_timer: asyncio.TimerHandle | None = None
        self._stream: asyncio.Task[None] | None = None
        self._commits: set[asyncio.Task[None]] = set()
        self._retried: list[Item] = []
        self._retry_timer: asyncio.TimerHandle | None = None
        self._ordering = asyncio.Lock()
        self.is_owner = False  # This process does the due work: it needs no notice of its commits.
        self._notice: asyncio.TimerHandle | None = None
        self._notices: set[asyncio.Task[None]] = set()
        self._committed_at, self._failed_at, self._failure = -math.inf, -math.inf, ""

    async def open(self) -> None:
        """Connect. StorageError if the server does not answer or refuses."""
        arguments = connect_arguments(self.url)
        self._pool = asyncpg.create_pool(
            **arguments,
            min_size=1,
            max_size=self._connections,
            command_timeout=COMMAND_SECONDS,
            timeout=CONNECT_SECONDS,
        )
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._pool
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            self._pool.terminate()
            raise StorageError(
                f"cannot open the database: {error or type(error).__name__}"
            ) from error
        self._stream = asyncio.create_task(self._commit_stream(), name="commit-stream")

    async def close(self) -> None:
        """Commit the queue, then close every connection."""
        stream, self._stream = self._stream, None
        self._retry()
        if stream:
            await stream
        for tasks in (self._commits, self._notices):
            if tasks:
                await asyncio.wait(tasks)
        self._queue.clear()
        if self._pool is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CONNECT_SECONDS):
                    await self._pool.close()
            self._pool.terminate()

    async def migrate(self) -> list[str]:
        """Apply the missing migrations; return their names."""
        async with self._connection() as connection:
            return await schema.migrate(connection)

    async def schema_problem(self) -> str | None:
        """Return what is wrong with the version of the schema, or None."""
        async with self._connection() as connection:
            return await schema.problem(connection)

    async def write_problem(self) -> str | None:
        """Return why commits fail, or None. It tries one if there was none for a while."""
        now = asyncio.get_running_loop().time()
        if self._queue.is_stalled:
            return STALLED
        if now - self._failed_at < FAILING_SECONDS:
            return self._failure
        if now - self._committed_at < PROBE_SECONDS:
            return None
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
        """Run `unit(tx, *args)`, a short one, on a snapshot."""
        async with self._connection() as connection:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                return await unit(Transaction(self, connection, self._clock()), *args)

    async def search(self, _tenant: str, unit: Unit[T], *args: object) -> T:
        """Like `read`, for a unit that may take long."""
        return await self.read(unit, *args)

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        """A connection of the pool; failures of the server become StorageError."""
        try:
            async with self._pool.acquire(timeout=CONNECT_SECONDS) as connection:
                yield connection
        except Exception as error:
            if is_failure(error):
                message = f"the database failed: {error or type(error).__name__}"
                raise StorageError(message) from error
            raise

    async def order_events(self) -> None:
        """Give every committed event without a place in the order its place."""
        async with self._ordering, self._connection() as connection:
            if await connection.fetchval(_HAS_UNORDERED):
                async with connection.transaction():
                    await connection.execute(_LOCK_ORDER)
                    await connection.execute(_ORDER)

    @property
    def queued(self) -> int:
        """The number of units that wait for a commit."""
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
        """Start a commit whenever something waits and a writer is free."""
        while self._queue or self._stream is not None:
            await self._wake.wait()
            if self._wake_timer is not None:
                self._wake_timer.cancel()
                self._wake_timer = None
            async with self._writers:  # While all are busy, what comes waits for the next group.
                items = self._queue.take()
            if not self._queue and self._stream is not None:
                self._wake.clear()
            for batch in _batches(items):
                await self._writers.acquire()
                task = asyncio.create_task(self._commit(batch), name="commit")
                self._commits.add(task)
                task.add_done_callback(self._finish_commit)

    def _finish_commit(self, task: asyncio.Task[None]) -> None:
        self._commits.discard(task)
        self._writers.release()

    async def _commit(self, batch: Sequence[Item]) -> None:
        """Commit items of one unit, each alone where they fail together."""
        try:
            await self._run_batch(batch)
        except Exception as error:  # noqa: BLE001  it becomes the callers' error
            if len(batch) == 1 or is_failure(error):
                self._fail(batch, error)
            else:
                for item in batch:
                    try:
                        await self._run_batch([item])
                    except Exception as own:  # noqa: BLE001  the same
                        self._fail([item], own)
        finally:
            self._queue.finish(batch)

    async def _run_batch(self, batch: Sequence[Item]) -> None:
        """Run one unit, or one batched unit with all its items, again where others were met."""
        for repeats in range(REPEATS_MAX + 1):
            try:
                results, after, charged = await self._run_once(batch)
                break
            except Exception as error:
                if not is_repeatable(error) or repeats == REPEATS_MAX:
                    raise
                await asyncio.sleep(REPEAT_SECONDS * (repeats + random.random()))  # noqa: S311
        loop = asyncio.get_running_loop()
        self._committed_at = loop.time()
        if not self.is_owner and self._notice is None:
            self._notice = loop.call_later(NOTICE_SECONDS, self._start_notice)
        counts = Counter(item.tenant for item in batch)
        for item, result in zip(batch, results, strict=True):
            if charged:
                rows = charged[item.tenant or ""] // counts[item.tenant]
                item.rows = rows if rows >= HEAVY_ROWS else 0
            if not item.future.done():
                item.future.set_result(result)
        for do, args in after:
            try:
                do(*args)
            except Exception:  # noqa: BLE001  later commits must still happen
                _log.exception("commit.follow_up_failed")

    async def _run_once(
        self, batch: Sequence[Item]
    ) -> tuple[Sequence[Any], AfterCommit, Counter[str]]:
        async with self._pool.acquire(timeout=CONNECT_SECONDS) as connection:
            async with connection.transaction():
                tx = Transaction(self, connection, self._clock())
                if batch[0].batched:
                    results = await batch[0].unit(tx, [item.args[0] for item in batch])
                else:
                    results = [await batch[0].unit(tx, *batch[0].args)]
        return results, tx.after, tx.charged

    def _start_notice(self) -> None:
        self._notice = None
        task = asyncio.create_task(self._notify(), name="notice")
        self._notices.add(task)
        task.add_done_callback(self._notices.discard)

    async def _notify(self) -> None:
        """Tell the process that works that something was committed; its own looks stand behind."""
        with contextlib.suppress(StorageError):
            async with self._connection() as connection:
                await connection.execute(_NOTIFY)

    def _fail(self, batch: Sequence[Item], error: Exception) -> None:
        """Give the items their error, except those to try again: while it closes, none is."""
        if is_failure(error):
            message = f"the database failed: {error or type(error).__name__}"
            self._failed_at, self._failure = asyncio.get_running_loop().time(), message
            error = StorageError(message)
            if self._stream is not None:
                retried = [item for item in batch if item.always]
                batch = [item for item in batch if not item.always]
                if retried:
                    _log.error("commit.failed", error=message, retried=len(retried))
                    self._retried += retried
                    if self._retry_timer is None:
                        loop = asyncio.get_running_loop()
                        self._retry_timer = loop.call_later(RETRY_SECONDS, self._retry)
        for item in batch:
            if not item.future.done():
                item.future.set_exception(error)

    def _retry(self) -> None:
        """Queue the items of `write_always` again that could not be stored."""
        if self._retry_timer is not None:
            self._retry_timer.cancel()
            self._retry_timer = None
        items, self._retried = self._retried, []
        for item in items:
            self._queue.put(item)
        self._wake.set()


def _batches(items: Iterable[Item]) -> Iterable[Sequence[Item]]:
    """Group the items that run in one call, and so in one transaction."""
    batches: dict[object, list[Item]] = {}
    for item in items:
        batches.setdefault(item.unit if item.batched else item, []).append(item)
    return batches.values()


_NOTIFY = "SELECT pg_notify('genhook.' || current_schema(), '')"
_HAS_UNORDERED = "SELECT EXISTS (SELECT 1 FROM events WHERE seq IS NULL)"
_LOCK_ORDER = (
    "SELECT pg_advisory_xact_lock(hashtextextended('genhook.events' || current_schema(), 0))"
)
_ORDER = """
UPDATE events SET seq = q.seq FROM (
    SELECT id, row_number() OVER (ORDER BY id)
        + (SELECT coalesce(max(seq), 0) FROM events) AS seq
    FROM events WHERE seq IS NULL) q
WHERE events.id = q.id"""


async def _touch(tx: Transaction) -> None:
    """Write a row as it is: whether the server takes it is all that is asked."""
    await tx.run("subscribers_touch_revision")
