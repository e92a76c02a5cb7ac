"""The poll rate as a row (a token bucket), which all processes share."""

from service.store.database import Transaction
from service.store.rows import read_number

UNUSED_KEPT_US = 10_000  # Unused rate is kept for so long, in microseconds.
AHEAD_US = 5_000_000  # That another machine's clock may be ahead.


async def take(tx: Transaction, count: int, rate_per_second: float) -> int:
    """Take up to `count` polls from the rate; return how many may be sent now.

    The row has the time at which the next poll may be sent, in microseconds since the epoch.
    """
    await tx.lock_names("poll_rate")
    interval, now = 1_000_000 / rate_per_second, tx.now * 1_000
    free_at = await read_number(tx, "poll_rate_get") or 0
    if free_at > now + interval + AHEAD_US:  # A clock was wrong.
        free_at = 0
    begin = max(free_at, now - UNUSED_KEPT_US)
    if begin > now:
        return 0
    taken = min(count, 1 + int((now - begin) / interval))
    await tx.run("poll_rate_put", free_at=round(begin + taken * interval))
    return taken
