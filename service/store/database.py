"""What the verbs know of a database: transactions of named statements, reads, the right to work.

A unit of work is `async def unit(tx, …)`. It awaits nothing but its transaction, so that a
database may run it more than once or together with others. store/sqlite/ implements this.
"""

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
Row = Mapping[str, Any]
Unit = Callable[..., Coroutine[Any, Any, T]]


class Transaction(Protocol):
    """One transaction: named statements in, rows out, and what to do once it is committed.

    Attributes:
        now: milliseconds since the epoch, the same for the whole transaction.

    """

    now: int

    async def one(self, name: str, /, **values: object) -> Row | None:
        """Return the first row of the statement, or None."""
        ...

    async def all(self, name: str, /, **values: object) -> list[Row]:
        """Return every row of the statement; the statement itself has a limit."""
        ...

    def each(self, name: str, /, **values: object) -> Iterable[Row]:
        """Iterate over the rows of the statement, reading no further than the caller goes."""
        ...

    async def run(self, name: str, /, **values: object) -> int:
        """Execute the statement; return how many rows it changed."""
        ...

    async def many(self, name: str, rows: Iterable[Mapping[str, object]]) -> int:
        """Execute the statement once for each of `rows`; return how many table rows changed."""
        ...

    async def select(self, sql: str, values: Mapping[str, object]) -> list[Row]:
        """Return the rows of SQL that is put together from fixed parts, as lists need."""
        ...

    def after_commit(self, do: Callable[..., None], *args: object) -> None:
        """Call `do` on the event loop once the transaction is durable, never if it is not."""
        ...


class Database(Protocol):
    """The database of one process."""

    @property
    def queued(self) -> int:
        """How many units wait for the next commit."""
        ...

    def write(self, unit: Unit[T], *args: object) -> Awaitable[T]:
        """Run `unit(tx, *args)`; its result once it is committed.

        The awaitable raises StorageError if it could not be stored, or what the unit raised (then
        nothing of it is stored). StorageBusyError is raised at once if the queue is full.
        """
        ...

    def write_batched(self, unit: Unit[Sequence[T]], item: object) -> Awaitable[T]:
        """Like `write`, for a unit over a list: items that wait together share one call."""
        ...

    def write_always(self, unit: Unit[T], *args: object) -> Awaitable[T]:
        """Like `write`, but never refused: retried every second until stored.

        For answers that upstream will not repeat. The caller bounds how many there are.
        """
        ...

    async def read(self, unit: Unit[T], *args: object) -> T:
        """Run `unit(tx, *args)` on a snapshot, beside the writer."""
        ...

    async def schema_problem(self) -> str | None:
        """Return why the schema is not this version's, None if it is."""
        ...


class Ownership(Protocol):
    """The right to do due work on a database: at most one process has it at a time."""

    @property
    def is_held(self) -> bool:
        """True while this process has the right."""
        ...

    def acquire(self) -> bool:
        """Take the right if nobody has it. StorageError if that cannot be known."""
        ...

    def release(self) -> None:
        """Let another process have the right."""
        ...

    async def other_process_committed(self) -> bool:
        """True if another process has committed since the last call."""
        ...
