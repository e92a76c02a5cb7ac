"""The rate of questions to upstream as a row, for processes that work at the same time in turns."""

from service.store.database import Transaction
from service.store.rows import read_number

AT_ONCE_US = 10_000  # What may be asked at once is what the rate allows in so many microseconds.


async def take(tx: Transaction, count: int, rate_per_second: float) -> int:
    """Take up to `count` questions, at least one if the rate allows any; return how many.

    The row has the time from which on the next one may be asked, in microseconds.
    """
    interval, now = 1_000_000 / rate_per_second, tx.now * 1_000
    begin = max(await read_number(tx, "questions_get") or 0, now - AT_ONCE_US)
    if begin > now:
        return 0
    taken = min(count, 1 + int((now - begin) / interval))
    await tx.run("questions_put", free_at=round(begin + taken * interval))
    return taken
