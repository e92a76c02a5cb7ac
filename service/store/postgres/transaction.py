"""A transaction on PostgreSQL, and whether it is committed if its COMMIT gets no answer."""

import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any

import asyncpg
import msgspec

from service.store.database import AfterCommit, Row
from service.store.postgres.connection import Pool
from service.store.postgres.statements import DIALECT, statements
from service.store.shards import NONE
from service.store.writes import write_trial

# Two schemas of a database have different names.
_LOCK_NAMES = """
SELECT pg_advisory_xact_lock(hashtextextended('genhook ' || current_schema() || ' ' || name, 0))
FROM unnest(CAST($1 AS TEXT[])) name"""
# A transaction's number, if it has written; and how one with a number has ended.
_NUMBER = "SELECT CAST(pg_current_xact_id_if_assigned() AS TEXT)"
_STATUS = "SELECT pg_xact_status(CAST(CAST($1 AS TEXT) AS xid8))"
PREFETCH_ROWS = 20  # Of a cursor, at a time.
BATCH_CHARGE_MAX = 5_000  # That a batch may charge for, if it has several items.
_ESCAPED_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")

# An INSERT of one row whose values are the parameters in order, without DO UPDATE, which must not
# meet the same row twice in a statement.
_INSERT = re.compile(r"(?s)(INSERT INTO \w+ \([^)]*\))\s+VALUES \([$\d,\s]+\)((?!.*DO UPDATE).*)")
_joined: dict[str, str] = {}  # INSERTs of many rows, by the statement's name.
Arguments = tuple[Any, ...]


class TooManyRowsError(Exception):
    """A batch would write more than BATCH_CHARGE_MAX rows: it has to run with fewer items."""

    def __init__(self, rows: int) -> None:
        super().__init__(f"{rows} rows in one batch")
        self.rows = rows


class Transaction:
    """The statements of one unit, or of one batched unit with all its items."""

    __slots__ = (
        "_connection",
        "_is_pooled",
        "_shards",
        "after",
        "charged",
        "has_many_items",
        "locked",
        "now",
    )

    def __init__(
        self, connection: Any, now: int, shards: frozenset[int], *, is_pooled: bool = False
    ) -> None:
        self._connection = connection
        self._is_pooled = is_pooled
        self._shards = list(shards)  # For the marks `held` and `held_id`.
        self.after: AfterCommit = []
        self.charged: Counter[str] = Counter()
        self.has_many_items = False
        self.locked: set[str] = set()
        self.now = now

    async def one(self, name: str, /, **values: object) -> Row | None:
        """Return the first row of the statement, or None."""
        row: Row | None = await self._connection.fetchrow(*self._bind(name, values))
        return row

    async def all(self, name: str, /, **values: object) -> list[Row]:
        """Return every row of the statement."""
        rows: list[Row] = await self._connection.fetch(*self._bind(name, values))
        return rows

    async def lock(self, name: str, /, **values: object) -> list[Row]:
        """Return every row of the statement, which nobody else changes until the commit."""
        rows = await self._lock(name, "FOR UPDATE", values)
        self.locked.update(row["id"] for row in rows)
        return rows

    async def keep(self, name: str, /, **values: object) -> list[Row]:
        """Return every row of the statement, which nobody else deletes until the commit."""
        return await self._lock(name, "FOR KEY SHARE", values)

    async def _lock(self, name: str, strength: str, values: dict[str, object]) -> list[Row]:
        lock = statements()[name].lock
        sql, *arguments = self._bind(name, values)
        sql = f"{sql} {strength} OF {lock.tables}"
        rows: list[Row] = await self._connection.fetch(sql, *arguments)
        if lock.looks_again:
            locked = {row["id"] for row in rows}
            rows = [row for row in await self.all(name, **values) if row["id"] in locked]
        return rows

    async def lock_names(self, *names: str) -> None:
        """Wait until no other transaction has locked one of these names; hold them."""
        if names:
            await self._connection.execute(_LOCK_NAMES, sorted(map(_clean_text, names)))

    async def each(self, name: str, /, **values: object) -> AsyncIterator[Row]:
        """Iterate over the rows of the statement."""
        async for row in self._cursor(*self._bind(name, values)):
            yield row

    async def run(self, name: str, /, **values: object) -> int:
        """Execute the statement; return how many rows it changed."""
        status: str = await self._connection.execute(*self._bind(name, values))
        return int(status.rpartition(" ")[2])

    async def many(self, name: str, rows: Iterable[Mapping[str, object]]) -> None:
        """Execute the statement once for each of `rows`, all in one exchange with the server."""
        sql, bind, _ = statements()[name]
        arguments = [_clean(bind(row)) for row in rows]
        if len(arguments) > 1 and (match := _INSERT.fullmatch(sql)):
            if (joined := _joined.get(name)) is None:
                types = (await self._connection.prepare(sql)).get_parameters()
                joined = _joined[name] = _join(match, [type_.name for type_ in types])
            await self._connection.execute(joined, *zip(*arguments, strict=True))
        elif arguments:
            await self._connection.executemany(sql, arguments)

    async def select(self, sql: str, values: Mapping[str, object]) -> list[Row]:
        """Return the rows of SQL that the code has composed."""
        composed, bind, _ = DIALECT.compose(sql)
        rows: list[Row] = await self._connection.fetch(composed, *_clean(bind(values)))
        return rows

    async def scan(self, sql: str, values: Mapping[str, object]) -> AsyncIterator[Row]:
        """Iterate over the rows of SQL that the code has composed."""
        composed, bind, _ = DIALECT.compose(sql)
        async for row in self._cursor(composed, *_clean(bind(values))):
            yield row

    def after_commit(self, do: Callable[..., None], *args: object) -> None:
        """Call `do` on the event loop after the commit."""
        self.after.append((do, args))

    def charge(self, rows: Mapping[str, int]) -> None:
        """Count rows that are written on account of tenants, where they may be many.

        TooManyRowsError if they are too many for a batch of several items.
        """
        self.charged.update(rows)
        if self.has_many_items and (total := self.charged.total()) > BATCH_CHARGE_MAX:
            raise TooManyRowsError(total)

    def _bind(self, name: str, values: dict[str, object]) -> Arguments:
        """Return a statement's SQL, and its arguments."""
        sql, bind, _ = statements()[name]
        values["shards"] = self._shards
        return sql, *_clean(bind(values))

    async def _cursor(self, sql: str, *arguments: object) -> AsyncIterator[Row]:
        source: Any = self._connection
        if self._is_pooled:  # An earlier client of the session may have used a name.
            statement = await source.prepare(sql, name="")
            rows = statement.cursor(*arguments, prefetch=PREFETCH_ROWS)
        else:
            rows = source.cursor(sql, *arguments, prefetch=PREFETCH_ROWS)
        async for row in rows:
            yield row


class Unanswered(msgspec.Struct, frozen=True):
    """A transaction whose COMMIT was sent, with the results and follow-ups if it was committed."""

    number: str | None  # pg_current_xact_id; None: it has written nothing.
    results: Sequence[Any]
    tx: Transaction


async def number_of(connection: Any) -> str | None:
    """Return the number of the transaction of a connection; None if it has written nothing."""
    number: str | None = await connection.fetchval(_NUMBER)
    return number


async def was_committed(pool: Pool, number: str | None) -> bool:
    """Return whether a transaction was committed. TimeoutError if it has not ended yet.

    One that has written nothing counts as not committed: it may run again.

    The server says "committed" before the synchronous standbys have it, too, such as after the end
    of a session that waited for them. Standbys get commits in order, so a later one is waited for.
    """
    if number is None:
        return False
    async with pool.transaction() as connection:
        try:
            status = await connection.fetchval(_STATUS, number)
        except asyncpg.InvalidParameterValueError:  # A new primary that never got the transaction.
            return False
        if status == "committed":
            await write_trial(Transaction(connection, 0, NONE))
    if status == "in progress":
        raise TimeoutError
    return bool(status == "committed")


def _join(insert: re.Match[str], types: Sequence[str]) -> str:
    """Return an INSERT of many rows, whose parameters are lists of values: one for each column.

    It costs the server half of what one execution for each row does.
    """
    lists = ", ".join(f"${number}::{type_}[]" for number, type_ in enumerate(types, 1))
    return f"{insert[1]} SELECT * FROM unnest({lists}) {insert[2]}"  # noqa: S608  our own text


def _clean(arguments: Arguments) -> Arguments:
    """Replace NUL by U+FFFD: PostgreSQL takes it neither in text nor in a list in JSON."""
    for value in arguments:
        if type(value) is str and ("\0" in value or "\\u0000" in value):
            return tuple(_clean_text(v) if isinstance(v, str) else v for v in arguments)
    return arguments


def _clean_text(text: str) -> str:
    # A JSON list. Statements also read the texts of one kind of JSON object, metadata: the API
    # refuses NUL in those.
    if text.startswith('["'):
        text = _ESCAPED_NUL.sub(r"\1\\ufffd", text)
    return text.replace("\0", "\ufffd")
