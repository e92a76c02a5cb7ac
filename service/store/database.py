"""The interface of the database, which store/sqlite/ and store/postgres/ implement.

A unit of work is `async def unit(tx, …)`. It awaits nothing but its transaction, so that a
database may run it again, or in one transaction with other units.
"""

from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
Row = Mapping[str, Any]
Unit = Callable[..., Coroutine[Any, Any, T]]
AfterCommit = list[tuple[Callable[..., None], tuple[Any, ...]]]  # Functions and arguments.


class Transaction(Protocol):
    """One transaction. It executes named statements, and calls functions after its commit."""

    now: int  # Milliseconds since the epoch, the same for the whole transaction.
    locked: set[str]  # The ids of the rows that `lock` has returned.

    async def one(self, name: str, /, **values: object) -> Row | None:
        """Return the first row of the statement, or None."""

    async def all(self, name: str, /, **values: object) -> list[Row]:
        """Return every row of the statement. The statement itself limits their number."""

    def each(self, name: str, /, **values: object) -> AsyncIterator[Row]:
        """Iterate over the rows of the statement. A row is read when the caller asks for it."""

    async def lock(self, name: str, /, **values: object) -> list[Row]:
        """Return every row of the statement, which nobody else changes until the commit.

        Other transactions that lock or change one of them wait. What a unit reads in order to
        change it, or what it decides by, it locks first; the rows are the newest then, and so is
        what later statements read. Units that lock several rows lock them in the order of their
        ids, so that no two wait for each other.
        """

    async def keep(self, name: str, /, **values: object) -> list[Row]:
        """Like `lock`, but others may still change the rows: only nobody deletes them."""

    async def lock_names(self, *names: str) -> None:
        """Wait until no other transaction has locked one of these names; hold them as `lock` does.

        For what is no row, such as a row that is not there yet.
        """

    async def run(self, name: str, /, **values: object) -> int:
        """Execute the statement; return how many rows it changed."""

    async def many(self, name: str, rows: Iterable[Mapping[str, object]]) -> None:
        """Execute the statement once for each of `rows`."""

    async def select(self, sql: str, values: Mapping[str, object]) -> list[Row]:
        """Return every row of a SELECT that the code has composed, as `pages.read` does."""

    def scan(self, sql: str, values: Mapping[str, object]) -> AsyncIterator[Row]:
        """Iterate over the rows of such a SELECT, one row in memory at a time."""

    def charge(self, rows: Mapping[str, int]) -> None:
        """Charge tenants for rows, before a unit writes many: they decide the tenants' turns.

        One call for all rows that the unit knows of: on PostgreSQL a batched unit may end here, and
        from their number follows with how many of its items it runs again.
        """

    def after_commit(self, do: Callable[..., None], *args: object) -> None:
        """Call `do` on the event loop after the commit, but not after a rollback."""


class Database(Protocol):
    """The database of one process."""

    @property
    def queued(self) -> int:
        """The number of units that wait for the next commit."""

    def write(
        self, unit: Unit[T], *args: object, tenant: str | None = None, held_bytes: int = 0
    ) -> Awaitable[T]:
        """Run `unit(tx, *args)`. The awaitable returns its result after the commit.

        The awaitable raises StorageError if the commit failed or took too long. If the unit raised
        an error, the awaitable raises that error, and the unit is rolled back. `write` itself
        raises StorageBusyError if the queue is full. The queue is bounded in units and in
        `held_bytes`, the bytes of the request's body that the unit holds in memory.

        Units of a tenant run in order. Tenants take turns by the rows that they write; units with
        `tenant=None`, as they concern no tenant or several, take turns like one more tenant.
        """

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

    def write_always(self, unit: Unit[T], *args: object, tenant: str | None = None) -> Awaitable[T]:
        """Like `write`, but never refused: retried every second until stored.

        For answers that upstream will not repeat. The caller limits how many of these calls wait.
        If it is canceled, the unit is not retried: what must be stored even then is shielded.
        """

    def write_behind(self, unit: Unit[T], *args: object, tenant: str | None = None) -> Awaitable[T]:
        """Like `write_always`, but after the units of `tenant` that are queued or in a commit now.

        It may overtake one that waits for its retry. So who undoes what a `write_always` may have
        done cancels that first.
        """

    async def read(self, unit: Unit[T], *args: object) -> T:
        """Run `unit(tx, *args)`, a short one, on a snapshot, in parallel with the writer."""

    async def search(self, tenant: str, unit: Unit[T], *args: object) -> T:
        """Like `read`, for a unit that may take long: one of a tenant at a time.

        SearchTooLongError if it takes too many steps.
        """

    def holds(self, id_: str) -> bool:
        """Whether this process, if it works at all, holds the shard of a subscriber or generation.

        The shard may move to another process at any time: ask before each step of work.
        """

    def hand_over(self, id_: str) -> bool:
        """Return whether this process holds the shard of the id; if not, notify its holder."""

    async def order_events(self, seconds: float | None = None) -> None:
        """Give every committed event its `seq`. To be called before events are read in order.

        StorageError after `seconds`, or after the time of a read; what is ordered stays ordered.
        """

    async def schema_problem(self) -> str | None:
        """Return what is wrong with the version of the schema, or None."""

    async def write_problem(self) -> str | None:
        """Return why commits fail, or have failed lately; None if they do not.

        It tries a commit if there was none lately.
        """

    async def commit_problem(self) -> str | None:
        """Return why this process cannot commit now, or None.

        It tries a commit, unless the last one was lately and did not fail.
        """


class Ownership(Protocol):
    """The right to do the due work of a database: shards, each held by at most one process.

    On SQLite one lock stands for all shards. Statements that read due work read only that of
    `shards`.
    """

    # The session sets it. It returns the shards with requests under way, which are not given up.
    busy: Callable[[], Collection[int]]
    # The session sets it. It is called with shards on which no work may start here any more, before
    # they can come back.
    on_lost: Callable[[frozenset[int]], None]

    @property
    def name(self) -> str:
        """The name of this process among those that work on the database."""

    @property
    def refusal(self) -> str | None:
        """Why this process can never have the right to work, as a sentence; None if it may."""

    @property
    def is_held(self) -> bool:
        """True while this process holds any shard."""

    @property
    def shards(self) -> frozenset[int]:
        """The shards on which this process may start work now."""

    @property
    def locked(self) -> frozenset[int]:
        """The shards that no other process can take now: `shards`, and those without a beat."""

    async def acquire(self, shards: Collection[int] | None = None) -> bool:
        """Take the free ones of these shards; None: this worker's share of all, kept up to date.

        Return whether any is held. StorageError if that cannot be determined.
        """

    async def release(self) -> None:
        """Give up every shard."""

    async def holders(self) -> Mapping[str, frozenset[int]]:
        """Return the shards of every process that works on the database, by its name."""

    async def other_process_committed(self, shards: Collection[int] | None = None) -> bool:
        """True if another process has committed since the last call, or may have.

        With `shards`, only if it is known of one of these, where commits are known by shard: so no
        process works on and on because time passes, or others commit in shards that it lacks.
        """
