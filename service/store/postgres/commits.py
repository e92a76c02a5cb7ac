"""Asks the server whether a transaction whose COMMIT got no answer was committed."""

from collections.abc import Sequence
from typing import Any

import asyncpg
import msgspec

from service.store.postgres.connection import Pool
from service.store.postgres.transaction import Transaction

_NUMBER = "SELECT CAST(pg_current_xact_id_if_assigned() AS TEXT)"
_STATUS = "SELECT pg_xact_status(CAST(CAST($1 AS TEXT) AS xid8))"


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
    """
    if number is None:
        return False
    async with pool.transaction() as connection:
        try:
            status = await connection.fetchval(_STATUS, number)
        except asyncpg.InvalidParameterValueError:  # A new primary that never got the transaction.
            return False
    if status == "in progress":
        raise TimeoutError
    return bool(status == "committed")
