"""Statistics of subscribers: counts of deliveries, durations of attempts, oldest delivery.

Deliveries are counted in an index, up to COUNT_MAX. Attempts of the last day are counted in buckets
by duration. Each bucket is a tenth wider than the one before, so quantiles are exact to a tenth.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from service.model.clock import DAY, HOUR, MINUTE, SECOND
from service.model.delivery import STATUSES
from service.model.ids import first_id, time_of
from service.store import rows
from service.store.database import Row, Transaction

# Attempts are counted by slots of time (not those of a lane): "the last hour" is exact to one slot.
SLOT_MS = 5 * MINUTE
RETENTION_MS = DAY + SLOT_MS
GROWTH = 1.1
BUCKET_MAX = 150  # Longer than any attempt that the settings allow.
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
COUNT_MAX = 10_000
# The oldest delivery is searched among so many due first, and due last; among fewer for many
# subscribers, so that a read of all of them is bounded.
OLDEST_SAMPLE, OLDEST_ROWS = 1_000, 100_000

_LOG_GROWTH = math.log(GROWTH)


def bucket_of(duration_ms: int) -> int:
    """Return the bucket of a duration. Bucket 0 is 0 ms."""
    return min(int(math.log1p(duration_ms) / _LOG_GROWTH + 1e-9), BUCKET_MAX)


def duration_of(bucket: int) -> float:
    """Return the middle of a bucket in milliseconds."""
    return round(float(GROWTH ** (bucket + 0.5)) - 1, 1)


def quantiles(counts: Mapping[int, int]) -> dict[str, float | None]:
    """Return the quantiles of durations from the count in each bucket; None without any."""
    buckets = sorted(counts)
    cumulative = list(accumulate(counts[bucket] for bucket in buckets))
    if not cumulative:
        return dict.fromkeys(QUANTILES)
    ranks = {name: math.ceil(cumulative[-1] * share) for name, share in QUANTILES.items()}
    return {
        name: duration_of(buckets[bisect_left(cumulative, rank)]) for name, rank in ranks.items()
    }


class AttemptCounts(dict[tuple[str, int, int, str], tuple[int, int]]):
    """Attempts counted in memory, to be stored together: how many, and when the last one began.

    A count is for a subscriber, five minutes, a bucket of duration and the delivery's new status.
    """

    def count(self, subscriber_id: str, started_at: int, duration_ms: int, status: str) -> None:
        """Count one attempt."""
        slot_at = started_at - started_at % SLOT_MS
        key = subscriber_id, slot_at, bucket_of(duration_ms), status
        count, last_at = self.get(key, (0, 0))
        self[key] = count + 1, max(last_at, started_at)


async def add(tx: Transaction, counts: AttemptCounts) -> None:
    """Add counts to those that are stored."""
    columns = ("subscriber_id", "slot_at", "bucket", "status", "count", "last_at")
    # Sorted: two processes that lock the same rows in different orders could deadlock.
    rows = [dict(zip(columns, key + count, strict=True)) for key, count in sorted(counts.items())]
    await tx.many("stats_add", rows)


async def get(tx: Transaction, subscriber_id: str) -> dict[str, Any]:
    """Return the subscriber's statistics as the API shows them."""
    # The slot that contains the beginning of the period began before it.
    hour, day = [
        await tx.all("stats_attempts", subscriber_id=subscriber_id, since_at=since_at - SLOT_MS)
        for since_at in (tx.now - HOUR, tx.now - DAY)
    ]
    by_status = _count_by("status", day)
    delivered, ended = by_status["delivered"], by_status["delivered"] + by_status["dead"]
    values = {"since_id": first_id("dlv", tx.now - DAY), "limit": COUNT_MAX}
    [row] = await tx.all("stats_counts", subscriber_id=subscriber_id, **values)
    counts = {**dict(row), "delivered": delivered}
    latency = {"hour": _count_by("bucket", hour), "day": _count_by("bucket", day)}
    return {
        "subscriber_id": subscriber_id,
        "counts": {status: counts[status] for status in STATUSES},
        "success_rate": delivered / ended if ended else None,
        "latency_ms": {period: quantiles(buckets) for period, buckets in latency.items()},
        "oldest_undelivered_seconds": (await _ages(tx, [subscriber_id])).get(subscriber_id),
    }


def _count_by(column: str, attempts: Sequence[Row]) -> Counter[Any]:
    counts: Counter[Any] = Counter()
    for row in attempts:
        counts[row[column]] += row["count"]
    return counts


async def _ages(tx: Transaction, ids: Sequence[str]) -> dict[str, float]:
    """Return the age of the oldest pending delivery in seconds, of those that have any."""
    limit = max(min(OLDEST_ROWS // max(len(ids), 1), OLDEST_SAMPLE), 1)
    oldest = await tx.all("stats_oldest", ids=rows.json_text(ids), limit=limit)
    return {
        row["subscriber_id"]: max(tx.now - time_of(row["id"]), 0) / SECOND
        for row in oldest
        if row["id"] is not None
    }


async def oldest_undelivered(tx: Transaction) -> dict[str, float]:
    """Return the age in seconds of the oldest pending delivery, for up to COUNT_MAX subscribers."""
    owed = await tx.all("subscribers_owed", limit=COUNT_MAX)
    return await _ages(tx, [row["subscriber_id"] for row in owed])


async def last_attempt_at(tx: Transaction, subscriber_id: str) -> int | None:
    """Return when the subscriber's latest attempt of the last hour began."""
    since_at = tx.now - HOUR - SLOT_MS
    return await rows.read_number(
        tx, "stats_last_attempt", subscriber_id=subscriber_id, since_at=since_at
    )
