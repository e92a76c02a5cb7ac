"""The database as both engines share it: the queue of writes, retries, and why commits fail."""

import asyncio
import math
import secrets
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence
from typing import Any

from service.model.errors import UnstoredError
from service.store.database import AfterCommit, T, Transaction, Unit
from service.store.item import Item
from service.store.write_queue import STALLED, Queue
from service.telemetry import log

_log = log.get()

RETRY_SECONDS = 1.0
PATIENCE_SECONDS = 0.02  # How long a unit that `may_wait` waits for others.
FAILING_SECONDS = 5.0  # How long `write_problem` reports a failed commit.
PROBE_SECONDS = 10.0  # If the last commit is older, `commit_problem` tries a commit.


class Database(ABC):
    """The database of one process. A task commits the units that wait."""

    def __init__(self, queue_max: int) -> None:
        self._wake = asyncio.Event()
        self._queue = Queue(queue_max, self._wake.set)
        self._wake_timer: asyncio.TimerHandle | None = None
        # Units with BATCHES_MAX batches in a commit (PostgreSQL only); a commit's end wakes them.
        self._held_units: set[object] = set()
        self._stream: asyncio.Task[None] | None = None  # Commits; None once it closes.
        self._retried: list[Item] = []
        # Of the units that have failed and are retried, until they are stored or given up.
        self._owed: set[asyncio.Future[Any]] = set()
        self._retry_timer: asyncio.TimerHandle | None = None
        # On the loop's clock; and the error of the last commit that failed.
        self._committed_at, self._failed_at, self._failure = -math.inf, -math.inf, ""
        self._probe: asyncio.Future[str | None] | None = None

    def write(
        self, unit: Unit[T], *args: object, tenant: str | None = None, held_bytes: int = 0
    ) -> Awaitable[T]:
        """Run `unit(tx, *args)`. The awaitable returns its result after the commit.

        The awaitable raises StorageError if the commit failed or took too long. If the unit raised
        an error, the awaitable raises that error, and the unit is rolled back. `write` itself
        raises UnstoredError if the queue is full. The queue is bounded in units and in
        `held_bytes`, the bytes of the request's body that the unit holds in memory.

        Tenants take turns by the rows that they write; units with `tenant=None`, as they concern no
        tenant or several, take turns like one more tenant.
        """
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
        """Like `write`, for a unit over a list: one call gets all items that wait for it.

        With `may_wait` the item waits some milliseconds for others, which saves a commit.
        """
        new = Item(unit, (item,), batched=True, tenant=tenant, held_bytes=held_bytes)
        return self._enqueue(new, may_wait=may_wait)

    def write_always(self, unit: Unit[T], *args: object, tenant: str | None = None) -> Awaitable[T]:
        """Like `write`, but never refused: retried every second until stored or closed.

        For answers that upstream will not repeat. The caller limits how many of these calls wait.
        If it is canceled, the unit is not retried: what must be stored even then is shielded.
        """
        return self._enqueue(Item(unit, args, always=True, tenant=tenant))

    def write_behind(self, unit: Unit[T], *args: object, tenant: str | None = None) -> Awaitable[T]:
        """Like `write_always`, but after all units that are queued or in a commit now.

        It may overtake one that waits for its retry. So who undoes what a `write_always` may have
        done cancels that first.
        """
        return self._enqueue(Item(unit, args, always=True, is_behind=True, tenant=tenant))

    @abstractmethod
    async def read(self, unit: Unit[T], *args: object) -> T:
        """Run `unit(tx, *args)`, a short one, on a snapshot, in parallel with the writer."""

    @abstractmethod
    async def search(self, tenant: str, unit: Unit[T], *args: object) -> T:
        """Like `read`, for a unit that may take long: one of a tenant at a time.

        SearchTooLongError if it takes too long.
        """

    @abstractmethod
    def holds(self, id_: str) -> bool:
        """Whether this process, if it works at all, holds the shard of a subscriber or generation.

        The shard may move to another process at any time: ask before each step of work.
        """

    @abstractmethod
    def hand_over(self, id_: str) -> bool:
        """Return whether this process holds the shard of the id; if not, notify its holder."""

    @abstractmethod
    async def order_events(self, seconds: float | None = None) -> None:
        """Give every committed event its `seq`. To be called before events are read in order.

        StorageError after `seconds`, or after the time of a read; what is ordered stays ordered.
        """

    @abstractmethod
    async def schema_problem(self) -> str | None:
        """Return what is wrong with the version of the schema, or None."""

    @property
    def queued(self) -> int:
        """The number of units that wait for the next commit."""
        return len(self._queue)

    @property
    def is_retrying(self) -> bool:
        """Whether units that have failed will be tried again."""
        return bool(self._owed)

    async def write_problem(self) -> str | None:
        """Return why commits fail, or have failed within FAILING_SECONDS; None if they do not.

        It tries a commit if there was none lately.
        """
        if asyncio.get_running_loop().time() - self._failed_at < FAILING_SECONDS:
            return self._failure
        return await self.commit_problem()

    async def commit_problem(self) -> str | None:
        """Return why this process cannot commit, or None.

        It tries a commit, unless the last one was lately and did not fail.
        """
        now = asyncio.get_running_loop().time()
        if self._queue.is_stalled and not self._may_start(write_trial):
            return STALLED
        is_recent = now - self._committed_at < PROBE_SECONDS
        if is_recent and self._committed_at > self._failed_at and not self._queue.is_stalled:
            return None
        if self._probe is None or self._probe.done():
            self._probe = asyncio.ensure_future(self._try_commit())
        return await asyncio.shield(self._probe)

    async def _try_commit(self) -> str | None:
        try:
            await self.write(write_trial)
        except Exception as error:  # noqa: BLE001  nothing is stored, whatever the reason
            return str(error) or repr(error)
        return None

    def _enqueue(self, item: Item, *, may_wait: bool = False) -> Awaitable[Any]:
        if self._stream is None:
            raise UnstoredError("the database is closed")
        if self._queue.is_stalled and not (item.always or self._may_start(item.unit)):
            raise UnstoredError(STALLED)
        self._queue.put(item)
        if not may_wait:
            if item.unit not in self._held_units:
                self._wake.set()
        elif self._wake_timer is None:
            loop = asyncio.get_running_loop()
            self._wake_timer = loop.call_later(PATIENCE_SECONDS, self._wake.set)
        return item.future

    def _may_start(self, _unit: object) -> bool:
        """Whether a commit of the unit may start although none has ended for WAIT_SECONDS."""
        return False

    async def _end_stream(self) -> None:
        """Have the queue committed, then end the task that commits.

        The end of an event loop cancels that task first: what is queued is lost, as in a crash.
        """
        stream, self._stream = self._stream, None
        self._retry()
        try:
            if stream is not None:
                await wait_for_end(stream)
        finally:
            self._queue.clear()

    # For the task that commits.

    async def _wait_for_items(self) -> None:
        """Wait until something has to be committed."""
        await self._wake.wait()
        if self._wake_timer is not None:
            self._wake_timer.cancel()
            self._wake_timer = None

    def _plan_retries(self, items: Sequence[Item], error: str) -> list[Item]:
        """Plan a retry of the items that are `always`; return the others.

        While the database closes, no retry is planned.
        """
        again = [item for item in items if item.always] if self._stream is not None else []
        if again:
            _log.error("commit.failed", error=error, retried=len(again))
            self._retried += again
            for future in {item.future for item in again} - self._owed:
                self._owed.add(future)
                future.add_done_callback(self._owed.discard)
            if self._retry_timer is None:
                loop = asyncio.get_running_loop()
                self._retry_timer = loop.call_later(RETRY_SECONDS, self._retry)
        return [item for item in items if item not in again]

    def _retry(self) -> None:
        """Put the items to retry into the queue again, unless their callers were canceled."""
        if self._retry_timer is not None:
            self._retry_timer.cancel()
            self._retry_timer = None
        items, self._retried = self._retried, []
        for item in items:
            if not item.future.cancelled():
                item.error = None
                self._queue.put(item)
        self._wake.set()


async def wait_for_end(task: asyncio.Task[None]) -> None:
    """Wait for a task, which others may cancel, and raise its error.

    If the caller is canceled, cancel the task.
    """
    try:
        await asyncio.wait([task])
    finally:
        task.cancel()
    if not task.cancelled():
        task.result()


def follow_up(after: AfterCommit) -> None:
    """Call the functions that units gave to `after_commit`."""
    for do, args in after:
        try:
            do(*args)
        except Exception:  # noqa: BLE001  later commits must still happen
            _log.exception("commit.follow_up_failed")


async def write_trial(tx: Transaction) -> None:
    """Insert a row and delete it: a commit that stores nothing, but does whatever commits do.

    Its name is new: to wait for a row that another process has locked would prove nothing.
    """
    noun = f"trial {secrets.token_hex(8)}"
    await tx.run("trial_insert", noun=noun)
    await tx.run("trial_delete", noun=noun)
