"""PostgreSQL by asyncpg: each unit in a transaction of its own, batched units in one for all items.

Up to WRITERS_MAX connections write at once; further units wait in the same bounded queue as on
SQLite. Transactions are READ COMMITTED: a unit locks first what it decides by and changes
(`Transaction.lock`), so it waits for others instead of running again. Only a transaction that the
server cancels to end a deadlock (SQLSTATE class 40) runs again.

If the answer to a COMMIT is lost, the server is asked whether the transaction was committed, and
the unit runs again only if it was not. Batched units, which run most often, are not asked about:
their callers get a StorageError, and repeat them if they must.
"""

import asyncio
import contextlib
import random  # noqa: TID251  two units in conflict must not repeat in step
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any

from service.model.clock import Clock, now_ms
from service.model.errors import StorageError
from service.store import writes
from service.store.database import T, Unit
from service.store.item import Item, batches_of, note_rows, run_batch
from service.store.postgres import schema
from service.store.postgres.connection import (
    CONNECT_SECONDS,
    Pool,
    is_repeatable,
    is_storage_fault,
    open_pool,
    reason,
    transaction_of,
)
from service.store.postgres.notices import Notices
from service.store.postgres.order import Order
from service.store.postgres.reads import READ_SECONDS, Reads, within
from service.store.postgres.transaction import (
    BATCH_CHARGE_MAX,
    TooManyRowsError,
    Transaction,
    Unanswered,
    number_of,
    was_committed,
)
from service.store.shards import Holding, shard_of
from service.store.writes import follow_up
from service.telemetry import log

_log = log.get()

CONNECTIONS = 10  # One of them holds the right to work.
WRITERS_MAX = 4  # Connections that write at the same time.
# A unit has so many batches at the same time: while the server commits one, the process makes the
# next.
BATCHES_MAX = 2
REPEATS_MAX = 30  # A unit in conflict with others is repeated so often.
REPEAT_SECONDS, REPEAT_SECONDS_MAX = 0.002, 0.2
ASK_SECONDS = 5.0  # How long a lost answer to COMMIT is asked about.


class Database(writes.Database):
    """The database of one process; see store/writes.py."""

    def __init__(
        self,
        url: str,
        *,
        clock: Clock = now_ms,
        queue_max: int = 10_000,
        connections: int = CONNECTIONS,
    ) -> None:
        super().__init__(queue_max)
        self.url = url
        self.name = f"genhook-{secrets.token_hex(8)}"  # Of all connections of this process.
        self._clock = clock
        self._pool_size = connections - 1
        # One connection is left to the order of events and to notices.
        self._writers_max = max(1, min(WRITERS_MAX, (self._pool_size - 1) // 2))
        self._reads = Reads(self._pool_size - self._writers_max - 1)
        self._writers = asyncio.Semaphore(self._writers_max)
        self._pool: Pool = None  # type: ignore[assignment]  # From `open` on.
        self._commits: dict[asyncio.Task[None], object] = {}  # With the unit, if it is batched.
        self._closing = asyncio.Event()
        self.lock_connection: Any = None  # For the right to work; not of the pool.
        self.holding = Holding()  # The right to work sets it.
        self._order, self._notices = Order(), Notices(self.name)

    async def open(self) -> None:
        """Connect. StorageError if the server does not answer or refuses."""
        self._pool = await open_pool(self.url, self._pool_size, self.name)
        self._closing.clear()
        self._stream = asyncio.create_task(self._commit_stream(), name="commit-stream")

    async def close(self) -> None:
        """Commit the queue, then close every connection, whatever is cancelled meanwhile."""
        self._closing.set()
        async with contextlib.AsyncExitStack() as stack:  # In reverse.
            stack.push_async_callback(_close, self._pool)  # It refuses reads that come too late.
            stack.push_async_callback(self._close_lock_connection)
            stack.push_async_callback(self._notices.close)
            await self._end_stream()

    async def _close_lock_connection(self) -> None:
        try:
            await _close(self.lock_connection)
        finally:
            self.lock_connection = None

    async def migrate(self) -> list[str]:
        """Apply the missing migrations; return their names."""
        async with transaction_of(self._pool) as connection:
            return await schema.migrate(connection)

    @property
    def schema_version(self) -> int:
        """The version of the schema that this genhook needs."""
        return schema.latest()

    async def schema_problem(self) -> str | None:
        """Return what is wrong with the version of the schema, or None."""
        return await self.read_raw(schema.problem)

    async def read_raw(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """Return the result of short work on a connection with a snapshot."""
        return await within(READ_SECONDS, self._reads.read(self._pool, work))

    async def read(self, unit: Unit[T], *args: object) -> T:
        """Run `unit(tx, *args)`, a short one, on a snapshot."""
        return await self.read_raw(partial(self._run_on, unit, args))

    async def search(self, tenant: str, unit: Unit[T], *args: object) -> T:
        """Like `read`, for a unit that may take long. SearchTooLongError if it does."""
        return await self._reads.search(self._pool, tenant, partial(self._run_on, unit, args))

    async def order_events(self, seconds: float | None = None) -> None:
        """Give every committed event its `seq`. To be called before events are read in order.

        What is ordered within READ_SECONDS, or `seconds`, stays ordered, and the next call goes on.
        """
        await within(seconds or READ_SECONDS, self._order.extend(self._pool))

    async def _run_on(self, unit: Unit[T], args: tuple[object, ...], connection: Any) -> T:
        return await unit(self._transaction(connection), *args)

    def _transaction(self, connection: Any) -> Transaction:
        held, is_pooled = self.holding.shards, self.is_pooled
        return Transaction(connection, self._clock(), held, is_pooled=is_pooled)

    @property
    def is_pooled(self) -> bool:
        """Whether this process is connected through a pooler."""
        return self._pool is not None and self._pool.is_pooled

    @property
    def is_tracked(self) -> bool:
        """Whether others see what the sessions of this process do."""
        return self._pool is None or self._pool.is_tracked

    def holds(self, id_: str) -> bool:
        """Whether this process holds the shard of a subscriber or a generation."""
        return self.holding.has(id_)

    def hand_over(self, id_: str) -> bool:
        """Return whether this process holds the shard of the id; if not, notify its holder."""
        if not (is_here := self.holds(id_)):
            self._notices.plan(self._pool, shard_of(id_))
        return is_here

    async def _commit_stream(self) -> None:
        """Start a commit whenever something waits and a writer is free."""
        while self._queue or self._commits or self._stream is not None:
            await self._wait_for_items()
            await self._wait_for_writer()
            self._wake.clear()
            items = self._queue.take()
            # If some were put back, or all that wait are behind, the end of a commit wakes this.
            if await self._start_commits(items) and items and self._queue:
                self._wake.set()

    async def _wait_for_writer(self) -> None:
        """Wait until a writer is free: meanwhile, items wait for the next group."""
        async with self._writers:
            # Requests that have arrived are read first: they share the commit.
            await asyncio.sleep(0)  # noqa: TID251  it only yields

    async def _start_commits(self, items: Iterable[Item]) -> bool:
        """Commit the items of each unit, when a writer is free; return whether all could be.

        Items that come while BATCHES_MAX batches of a unit are committed form its next batch, once
        any commit has ended. Until then other units go on.
        """
        left: list[Item] = []
        for batch in batches_of(items):
            unit = batch[0].unit if batch[0].batched else None
            if unit is not None and [*self._commits.values()].count(unit) >= BATCHES_MAX:
                left += batch
                self._held_units.add(unit)
                continue
            await self._writers.acquire()
            task = asyncio.create_task(self._commit(batch), name="commit")
            self._commits[task] = unit
            task.add_done_callback(self._finish_commit)
        if left:
            self._queue.put_back(left)
        return not left

    def _may_start(self, unit: object) -> bool:
        # The commits that hang may wait for rows, and a writer is free for others.
        return len(self._commits) < self._writers_max and unit not in self._held_units

    def _finish_commit(self, task: asyncio.Task[None]) -> None:
        del self._commits[task]
        self._writers.release()
        self._held_units.clear()
        self._wake.set()

    async def _commit(self, batch: Sequence[Item]) -> None:
        """Commit items of one unit, each alone where they fail together.

        If they would write more than BATCH_CHARGE_MAX rows, the last ones wait for their next turn:
        half of them at least, since the rows of the first ones are not known, only those of all.
        """
        parts = deque([batch])
        while parts:
            part = self._queue.drop_refused(parts.popleft())
            if not part:
                self._queue.finish(part)
                continue
            try:
                await self._run_batch(part)
            except TooManyRowsError as error:
                few = max(min(len(part) // 2, len(part) * BATCH_CHARGE_MAX // error.rows), 1)
                self._queue.put_back(part[few:])
                parts.append(part[:few])
                continue
            except Exception as error:  # noqa: BLE001  it becomes the callers' error
                if len(part) > 1 and not is_storage_fault(error):
                    parts.extend([item] for item in part)
                    continue
                self._fail(part, error)
            self._queue.finish(part)

    async def _run_batch(self, batch: Sequence[Item]) -> None:
        """Run one unit, or one batched unit with all its items, and give them their results."""
        results, tx = await self._repeat(batch)
        self._committed_at = asyncio.get_running_loop().time()
        if tx.charged:
            note_rows(tx.charged, batch)
        for item, result in zip(batch, results, strict=True):
            item.result, item.has_run = result, True
            item.resolve(None)
        follow_up(tx.after)

    async def _repeat(self, batch: Sequence[Item]) -> tuple[Sequence[Any], Transaction]:
        """Run a batch; repeat it after a conflict, or if its COMMIT got no answer."""
        repeats, loop = 0, asyncio.get_running_loop()
        ends_at = loop.time() + ASK_SECONDS
        while True:
            try:
                return await self._run_once(batch)
            except Exception as error:
                is_unanswered = batch[0].unanswered is not None and is_storage_fault(error)
                may_ask = is_unanswered and loop.time() < ends_at and not self._closing.is_set()
                if not (is_repeatable(error) or may_ask) or repeats == REPEATS_MAX:
                    raise
            repeats += 1
            seconds = min(REPEAT_SECONDS * 2**repeats, REPEAT_SECONDS_MAX)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds * random.random()):  # noqa: S311
                    await self._closing.wait()

    async def _run_once(self, batch: Sequence[Item]) -> tuple[Sequence[Any], Transaction]:
        first = batch[0]
        before: Unanswered | None = first.unanswered
        if before is not None and await was_committed(self._pool, before.number):
            return before.results, before.tx
        first.unanswered = None
        async with self._pool.transaction() as connection:
            tx = self._transaction(connection)
            tx.has_many_items = len(batch) > 1
            results = await run_batch(batch, tx)
            if not first.batched:  # Batched units are not asked about.
                first.unanswered = Unanswered(await number_of(connection), results, tx)
        return results, tx

    def _fail(self, batch: Sequence[Item], error: Exception) -> None:
        """Give the items their error, except those that are tried again."""
        if is_storage_fault(error):
            message = f"the database failed: {reason(error)}"
            error.__traceback__ = None  # Its frames hold the items, and a driver may hold it.
            self._failed_at, self._failure = asyncio.get_running_loop().time(), message
            error = StorageError(message)
            batch = self._plan_retries(batch, message)
        for item in batch:
            item.resolve(error)


async def _close(opened: Any) -> None:
    """Close a pool or a connection, if there is one; by force if the server does not answer."""
    if opened is None:
        return
    try:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(CONNECT_SECONDS):
                await opened.close()
    finally:
        opened.terminate()
