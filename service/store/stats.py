"""How a subscriber is doing: counts by status, how long attempts take, its oldest delivery's age.

Deliveries are counted by index, up to COUNT_MAX. Attempts of the last day are counted in buckets
of duration that grow by a tenth, so that a quantile is exact to a tenth.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from service.model.clock import DAY, HOUR, MINUTE, SECOND
from service.model.ids import first_id, time_of
from service.store.database import Transaction

SLOT_MS = 5 * MINUTE  # How finely "the last hour" is known.
KEPT_MS = DAY + SLOT_MS
GROWTH = 1.1
BUCKET_MAX = 150  # Beyond the longest attempt that a setting allows.
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
STATUSES = ("pending", "delivered", "dead", "canceled")
COUNT_MAX = 10_000
OLDEST_OF = 1_000  # The oldest is looked for among so many that are due first, and due last.

_LOG_GROWTH = math.log(GROWTH)


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """A subscriber's deliveries and attempts.

    Attributes:
        counts: pending and dead up to COUNT_MAX; delivered and canceled over the last day.
        success_rate: delivered of delivered and dead over the last day; None without either.
        hour, day: quantiles of the attempts' durations in milliseconds.

    """

    counts: dict[str, int]
    success_rate: float | None
    hour: dict[str, float | None]
    day: dict[str, float | None]
    oldest_undelivered_seconds: float | None


def bucket_of(duration_ms: int) -> int:
    """The bucket of a duration: 0 is under a millisecond, each following one a tenth wider."""
    return min(int(math.log1p(duration_ms) / _LOG_GROWTH + 1e-9), BUCKET_MAX)


def duration_of(bucket: int) -> float:
    """The middle of a bucket in milliseconds."""
    return round(float(GROWTH ** (bucket + 0.5)) - 1, 1)


def quantiles(counts: Mapping[int, int]) -> dict[str, float | None]:
    """Quantiles of durations, by how many fell in each bucket; None where there are none."""
    return {name: _quantile(counts, share) for name, share in QUANTILES.items()}


def _quantile(counts: Mapping[int, int], share: float) -> float | None:
    rank = math.ceil(sum(counts.values()) * share)
    seen = 0
    for bucket in sorted(counts):
        seen += counts[bucket]
        if seen >= rank:
            return duration_of(bucket)
    return None


async def add(tx: Transaction, attempts: Iterable[Mapping[str, Any]]) -> None:
    """Count attempts: rows with subscriber_id, started_at, duration_ms and the status after it."""
    counts: Counter[tuple[str, int, int, str]] = Counter()
    last_at: dict[tuple[str, int, int, str], int] = {}
    for row in attempts:
        at = row["started_at"]
        bucket = bucket_of(row["duration_ms"])
        key = row["subscriber_id"], at - at % SLOT_MS, bucket, row["status"]
        counts[key] += 1
        last_at[key] = max(last_at.get(key, 0), at)
    names = ("subscriber_id", "slot_at", "bucket", "status")
    rows = [
        {**dict(zip(names, key, strict=True)), "count": count, "last_at": last_at[key]}
        for key, count in counts.items()
    ]
    await tx.many("stats_add", rows)


async def get(tx: Transaction, subscriber_id: str) -> Stats:
    """Return how the subscriber is doing."""
    hour = await _attempts(tx, subscriber_id, tx.now - HOUR)
    day = await _attempts(tx, subscriber_id, tx.now - DAY)
    pending = await tx.one("stats_count_pending", subscriber_id=subscriber_id, limit=COUNT_MAX)
    assert pending is not None
    ended_today: Counter[str] = Counter()
    for (_, status), count in day.items():
        ended_today[status] += count
    return Stats(
        counts={
            "pending": pending["count"],
            "delivered": ended_today["delivered"],
            "dead": await _count_ended(tx, subscriber_id, "dead", 0),
            "canceled": await _count_ended(tx, subscriber_id, "canceled", tx.now - DAY),
        },
        success_rate=_success_rate(ended_today),
        hour=quantiles(_by_bucket(hour)),
        day=quantiles(_by_bucket(day)),
        oldest_undelivered_seconds=await _oldest_seconds(tx, subscriber_id),
    )


def _success_rate(ended: Counter[str]) -> float | None:
    total = ended["delivered"] + ended["dead"]
    return ended["delivered"] / total if total else None


async def _count_ended(tx: Transaction, subscriber_id: str, status: str, since_at: int) -> int:
    """Count deliveries that were made since a time and are dead or canceled, up to COUNT_MAX."""
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
    row = await tx.one("stats_oldest", subscriber_id=subscriber_id, limit=OLDEST_OF)
    if row is None or row["id"] is None:
        return None
    return max(tx.now - time_of(row["id"]), 0) / SECOND


async def _attempts(
    tx: Transaction, subscriber_id: str, since_at: int
) -> dict[tuple[int, str], int]:
    """Count attempts since a time by (bucket, status)."""
    since_at -= SLOT_MS  # The slot that a time falls in began before it.
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
    for row in await tx.all("deliveries_lanes"):
        age = await _oldest_seconds(tx, row["subscriber_id"])
        if age is not None:
            ages[row["subscriber_id"]] = age
    return ages


async def last_attempt_at(tx: Transaction, subscriber_id: str) -> int | None:
    """When the latest attempt of the last hour began."""
    row = await tx.one(
        "stats_last_attempt", subscriber_id=subscriber_id, since_at=tx.now - HOUR - SLOT_MS
    )
    return row["last_at"] if row else None


async def delete_past(tx: Transaction, before: int, limit: int) -> int:
    """Forget how long attempts took before a time, a batch; how many rows went."""
    return await tx.run("stats_delete_past", before=before, limit=limit)


def worst(ages: Mapping[str, float], limit: int) -> Sequence[tuple[str, float]]:
    """The subscribers that have waited the longest."""
    return sorted(ages.items(), key=lambda item: item[1], reverse=True)[:limit]
