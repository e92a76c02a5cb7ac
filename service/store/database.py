"""The interface of the database: transactions, reads and ownership. store/sqlite/ implements it.

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
AfterCommit = list[tuple[Callable[..., None], tuple[Any, ...]]]  # What a unit leaves to be called.


class Transaction(Protocol):
    """One transaction. It executes named statements, and calls functions after its commit."""

    now: int  # Milliseconds since the epoch, the same for the whole transaction.

    async def one(self, name: str, /, **values: object) -> Row | None:
        """Return the first row of the statement, or None."""

    async def all(self, name: str, /, **values: object) -> list[Row]:
        """Return every row of the statement. The statement itself limits their number."""

    def each(self, name: str, /, **values: object) -> AsyncIterator[Row]:
        """Iterate over the rows of the statement. A row is read when the caller asks for it."""

    async def run(self, name: str, /, **values: object) -> int:
        """Execute the statement; return how many rows it changed."""

    async def many(self, name: str, rows: Iterable[Mapping[str, object]]) -> int:
        """Execute the statement once for each of `rows`; return how many table rows changed."""

    async def select(self, sql: str, values: Mapping[str, object]) -> list[Row]:
        """Return the rows of SQL that the code has composed, as for lists."""

    def scan(self, sql: str, values: Mapping[str, object]) -> AsyncIterator[Row]:
        """Iterate over the rows of SQL that the code has composed, one row in memory at a time."""

    def charge(self, tenant: str, rows: int) -> None:
        """Count rows that are written on account of a tenant, where they may be many."""

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

        The awaitable raises StorageError if the commit failed or took too long, or what the unit
        raised (the unit is then rolled back). `write` itself raises StorageBusyError if the queue
        is full, which is bounded in units and in `held_bytes`, those of the request's body.

        Units of a tenant run in their order. Tenants have turns, by the rows that they write; what
        is of no tenant, or of several, has turns as another.
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

        If it `may_wait`, it waits some milliseconds for a group, which saves a commit.
        """

    def write_always(self, unit: Unit[T], *args: object, tenant: str | None = None) -> Awaitable[T]:
        """Like `write`, but never refused: retried every second until stored.

        For answers that upstream will not repeat. The caller limits how many of these calls wait.
        """

    def write_behind(self, unit: Unit[T], *args: object, tenant: str | None = None) -> Awaitable[T]:
        """Like `write_always`, but after every unit of this process that waits for its commit now.

        `tenant` is the one in whose turn it was that this is about.
        """

    async def read(self, unit: Unit[T], *args: object) -> T:
        """Run `unit(tx, *args)`, a short one, on a snapshot, in parallel with the writer."""

    async def search(self, tenant: str, unit: Unit[T], *args: object) -> T:
        """Like `read`, for a unit that may take long: one of a tenant at a time.

        SearchTooLongError if it takes too many steps.
        """

    def holds(self, id_: str) -> bool:
        """Whether the work on a subscriber or a generation is this process's, if it works at all.

        It may be another's from one moment to the next, so it is looked at when something starts.
        """

    def hand_over(self, id_: str) -> bool:
        """Return whether this process does what was just committed; else tell who does."""

    async def order_events(self) -> None:
        """Give every committed event its place in the order, before somebody reads by it."""

    async def schema_problem(self) -> str | None:
        """Return what is wrong with the version of the schema, or None."""

    async def write_problem(self) -> str | None:
        """Return why commits fail, or None. It tries one if there was none for a while."""


class Ownership(Protocol):
    """The right to do the due work of a database: shards, each held by at most one process.

    On SQLite one lock is all of them. Statements that look for due work see only that of `shards`.
    """

    # Set by who works: the shards with requests under way, which are not given up.
    busy: Callable[[], Collection[int]]

    @property
    def refusal(self) -> str | None:
        """Why this process can never have the right to work, as a sentence; None if it may."""

    @property
    def is_held(self) -> bool:
        """True while this process has the right to any shard."""

    @property
    def shards(self) -> frozenset[int]:
        """The shards on which this process may start something now."""

    async def acquire(self, shards: Collection[int] | None = None) -> bool:
        """Take those of these shards that are free; None: this worker's share, for long.

        Return whether any is held. StorageError if that cannot be determined.
        """

    async def release(self) -> None:
        """Let other processes have everything."""

    async def other_process_committed(self) -> bool:
        """True if another process has committed since the last call."""
