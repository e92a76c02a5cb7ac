"""Statistics of subscribers: counts of deliveries, durations of attempts, oldest delivery.

Deliveries are counted in an index, up to COUNT_MAX. Attempts of the last day are counted in buckets
by duration. Each bucket is a tenth wider than the one before, so quantiles are exact to a tenth.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from service.model.clock import DAY, HOUR, MINUTE, SECOND
from service.model.ids import first_id, time_of
from service.store.database import Transaction

SLOT_MS = 5 * MINUTE  # Attempts are counted by slots of time: "the last hour" is exact to one slot.
RETENTION_MS = DAY + SLOT_MS
GROWTH = 1.1
BUCKET_MAX = 150  # Longer than any attempt that the settings allow.
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
STATUSES = ("pending", "delivered", "dead", "canceled")
COUNT_MAX = 10_000
OLDEST_SAMPLE = 1_000  # The oldest is searched among this many that are due first, and due last.

_LOG_GROWTH = math.log(GROWTH)


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """A subscriber's deliveries and attempts.

    Attributes:
        counts: pending and dead up to COUNT_MAX; delivered and canceled over the last day.
        success_rate: share of delivered in delivered and dead over the last day, or None.
        hour, day: quantiles of the attempts' durations in milliseconds.

    """

    counts: dict[str, int]
    success_rate: float | None
    hour: dict[str, float | None]
    day: dict[str, float | None]
    oldest_undelivered_seconds: float | None


def bucket_of(duration_ms: int) -> int:
    """Return the bucket of a duration. Bucket 0 is 0 ms."""
    return min(int(math.log1p(duration_ms) / _LOG_GROWTH + 1e-9), BUCKET_MAX)


def duration_of(bucket: int) -> float:
    """Return the middle of a bucket in milliseconds."""
    return round(float(GROWTH ** (bucket + 0.5)) - 1, 1)


def quantiles(counts: Mapping[int, int]) -> dict[str, float | None]:
    """Return the quantiles of durations from the count in each bucket; None without any."""
    return {name: _quantile(counts, share) for name, share in QUANTILES.items()}


def _quantile(counts: Mapping[int, int], share: float) -> float | None:
    rank = math.ceil(sum(counts.values()) * share)
    cumulative = 0
    for bucket in sorted(counts):
        cumulative += counts[bucket]
        if cumulative >= rank:
            return duration_of(bucket)
    return None


class AttemptCounts:
    """Attempts counted in memory, to be stored together.

    A count is for a subscriber, five minutes, a bucket of duration and the delivery's new status.
    """

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, int, int, str]] = Counter()
        self._last_at: dict[tuple[str, int, int, str], int] = {}

    def __bool__(self) -> bool:
        """True if there is something to store."""
        return bool(self._counts)

    def count(self, subscriber_id: str, started_at: int, duration_ms: int, status: str) -> None:
        """Count one attempt."""
        slot_at = started_at - started_at % SLOT_MS
        key = subscriber_id, slot_at, bucket_of(duration_ms), status
        self._counts[key] += 1
        self._last_at[key] = max(self._last_at.get(key, 0), started_at)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each count."""
        names = ("subscriber_id", "slot_at", "bucket", "status")
        return [
            {**dict(zip(names, key, strict=True)), "count": count, "last_at": self._last_at[key]}
            for key, count in self._counts.items()
        ]


async def add(tx: Transaction, counts: AttemptCounts) -> None:
    """Add counts to those that are stored."""
    await tx.many("stats_add", counts.rows())


async def get(tx: Transaction, subscriber_id: str) -> Stats:
    """Return the subscriber's statistics."""
    hour = await _attempts(tx, subscriber_id, tx.now - HOUR)
    day = await _attempts(tx, subscriber_id, tx.now - DAY)
    pending = await tx.one("stats_count_pending", subscriber_id=subscriber_id, limit=COUNT_MAX)
    assert pending is not None
    by_status: Counter[str] = Counter()
    for (_, status), count in day.items():
        by_status[status] += count
    return Stats(
        counts={
            "pending": pending["count"],
            "delivered": by_status["delivered"],
            "dead": await _count_ended(tx, subscriber_id, "dead", 0),
            "canceled": await _count_ended(tx, subscriber_id, "canceled", tx.now - DAY),
        },
        success_rate=_success_rate(by_status),
        hour=quantiles(_by_bucket(hour)),
        day=quantiles(_by_bucket(day)),
        oldest_undelivered_seconds=await _oldest_seconds(tx, subscriber_id),
    )


def _success_rate(by_status: Counter[str]) -> float | None:
    total = by_status["delivered"] + by_status["dead"]
    return by_status["delivered"] / total if total else None


async def _count_ended(tx: Transaction, subscriber_id: str, status: str, since_at: int) -> int:
    """Count dead or canceled deliveries that were created since a time, up to COUNT_MAX."""
    since_id = first_id("dlv", since_at)
    row = await tx.one(
        "stats_count_ended",
        subscriber_id=subscriber_id,
        status=status,
        since_id=since_id,
        limit=COUNT_MAX,
    )
    return row["count"] if row else 0


async def _oldest_seconds(tx: Transaction, subscriber_id: str) -> float | None:
    row = await tx.one("stats_oldest", subscriber_id=subscriber_id, limit=OLDEST_SAMPLE)
    if row is None or row["id"] is None:
        return None
    return max(tx.now - time_of(row["id"]), 0) / SECOND


async def _attempts(
    tx: Transaction, subscriber_id: str, since_at: int
) -> dict[tuple[int, str], int]:
    """Count attempts since a time by (bucket, status)."""
    since_at -= SLOT_MS  # The slot that contains `since_at` began before it.
    rows = await tx.all("stats_attempts", subscriber_id=subscriber_id, since_at=since_at)
    return {(row["bucket"], row["status"]): row["count"] for row in rows}


def _by_bucket(attempts: Mapping[tuple[int, str], int]) -> Counter[int]:
    counts: Counter[int] = Counter()
    for (bucket, _), count in attempts.items():
        counts[bucket] += count
    return counts


async def oldest_undelivered(tx: Transaction) -> dict[str, float]:
    """Return the age of each subscriber's oldest pending delivery in seconds."""
    ages: dict[str, float] = {}
    for row in await tx.all("deliveries_next_due_times"):
        age = await _oldest_seconds(tx, row["subscriber_id"])
        if age is not None:
            ages[row["subscriber_id"]] = age
    return ages


async def last_attempt_at(tx: Transaction, subscriber_id: str) -> int | None:
    """Return when the subscriber's latest attempt of the last hour began."""
    row = await tx.one(
        "stats_last_attempt", subscriber_id=subscriber_id, since_at=tx.now - HOUR - SLOT_MS
    )
    return row["last_at"] if row else None


async def delete_old(tx: Transaction, before: int, limit: int) -> int:
    """Delete up to `limit` rows from before a time; return how many."""
    return await tx.run("stats_delete_old", before=before, limit=limit)


def longest_waiting(ages: Mapping[str, float], limit: int) -> Sequence[tuple[str, float]]:
    """Return the `limit` subscribers with the oldest pending deliveries, and their ages."""
    return sorted(ages.items(), key=lambda item: item[1], reverse=True)[:limit]
