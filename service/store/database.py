"""Transactions and the right to work, which store/sqlite/ and store/postgres/ implement.

A unit of work is `async def unit(tx, …)`. It awaits nothing but its transaction, so that a
database (store/writes.py) may run it again, or in one transaction with other units.
"""

from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Mapping
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

        Charge once, for all rows that the unit knows of: on PostgreSQL the call may end a batched
        unit, which then runs again with fewer items.
        """

    def after_commit(self, do: Callable[..., None], *args: object) -> None:
        """Call `do` on the event loop after the commit, but not after a rollback."""


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
        """The shards that no other process can take now.

        These are `shards`, and those that this process gives up or whose beat is late.
        """

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

        With `shards`: only if a notice named one of them (PostgreSQL). Passing time and commits in
        other shards do not count, so that no tick works without end.
        """
