"""How a subscriber is doing: counts by status, how long attempts take, the oldest thing owed.

Nothing here counts deliveries when it is asked: counts are kept as they change, and a latency is
kept as a count in its bucket. Buckets grow by a tenth, so a quantile is exact to that.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from service.model.clock import DAY, HOUR, MINUTE, SECOND
from service.store.database import Row, Transaction

SLOT_MS = 5 * MINUTE  # How finely "the last hour" is known.
KEPT_MS = DAY + SLOT_MS
GROWTH = 1.1
BUCKET_MAX = 150  # Beyond the longest attempt that a setting allows.
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
STATUSES = ("pending", "delivered", "dead", "canceled")

_LOG_GROWTH = math.log(GROWTH)


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """What the API says about a subscriber's deliveries and attempts."""

    counts: dict[str, int]
    hour: dict[str, float | None]
    day: dict[str, float | None]
    oldest_undelivered_seconds: float | None

    @property
    def success_rate(self) -> float | None:
        """Delivered of delivered and dead; None while there are neither."""
        ended = self.counts["delivered"] + self.counts["dead"]
        return self.counts["delivered"] / ended if ended else None


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
    """Count attempts, given as rows, towards the latency of their subscribers."""
    counted: Counter[tuple[str, int, int]] = Counter()
    last: dict[tuple[str, int, int], int] = {}
    for row in attempts:
        at = row["started_at"]
        key = row["subscriber_id"], at - at % SLOT_MS, bucket_of(row["duration_ms"])
        counted[key] += 1
        last[key] = max(last.get(key, 0), at)
    rows = [
        {"subscriber_id": s, "slot_at": at, "bucket": b, "count": n, "last_at": last[s, at, b]}
        for (s, at, b), n in counted.items()
    ]
    await tx.many("stats_add", rows)


async def count(tx: Transaction, changes: Mapping[tuple[str, str], int]) -> None:
    """Note that there are so many more, or fewer, deliveries of each (subscriber id, status).

    Whoever makes, moves or deletes deliveries says so here, in the same transaction.
    """
    await tx.many(
        "stats_count",
        [
            {"subscriber_id": subscriber_id, "status": status, "count": number}
            for (subscriber_id, status), number in changes.items()
            if number
        ],
    )


async def forget(tx: Transaction, keys: Iterable[tuple[str, str]]) -> None:
    """Drop the counts that have come down to nothing."""
    rows = [{"subscriber_id": subscriber_id, "status": status} for subscriber_id, status in keys]
    await tx.many("stats_count_gone", rows)


async def get(tx: Transaction, subscriber_id: str) -> Stats:
    """How the subscriber is doing."""
    counts = dict.fromkeys(STATUSES, 0)
    for row in await tx.all("stats_counts", subscriber_id=subscriber_id):
        counts[row["status"]] = row["count"]
    oldest = await tx.one("stats_oldest", subscriber_id=subscriber_id)
    return Stats(
        counts=counts,
        hour=quantiles(await _latency(tx, subscriber_id, tx.now - HOUR)),
        day=quantiles(await _latency(tx, subscriber_id, tx.now - DAY)),
        oldest_undelivered_seconds=_age_seconds(oldest, tx.now) if oldest else None,
    )


def _age_seconds(of: Row, now: int) -> float:
    created_at: int = of["created_at"]
    return max(now - created_at, 0) / SECOND


async def _latency(tx: Transaction, subscriber_id: str, since_at: int) -> dict[int, int]:
    since_at -= SLOT_MS  # The slot that a time falls in began before it.
    rows = await tx.all("stats_latency", subscriber_id=subscriber_id, since_at=since_at)
    return {row["bucket"]: row["count"] for row in rows}


async def oldest_owed(tx: Transaction) -> dict[str, float]:
    """How old the oldest delivery owed to each subscriber is, in seconds; whatever holds it."""
    rows = await tx.all("stats_owed")
    return {row["subscriber_id"]: _age_seconds(row, tx.now) for row in rows}


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
